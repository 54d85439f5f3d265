"""The frames of a batch on their way to the GPU: the regions that are looked at, as they lie in memory, one after the
other behind a table that says where each one is and how it is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.memory import SharedBuffer
from bnn_perception.backends.cuda.specs import FRAME, divide_up
from bnn_perception.frames.frame import ENCODINGS, Frame, Rect
from bnn_perception.frames.preprocess import source_rect
from bnn_perception.net.model import InputSpec

#: Regions begin at multiples of this; the kernel reads words, the bus moves lines.
_ALIGNMENT = 128


class FrameUpload:
    """The upload buffer of a backend, ``upload`` of kernels/preprocess.cu."""

    def __init__(self, gpu: Gpu, spec: InputSpec) -> None:
        self._gpu = gpu
        self._spec = spec
        self._buffer = SharedBuffer(gpu, (_ALIGNMENT,), np.uint8)

    @property
    def device(self) -> Any:
        """The buffer as the kernels see it."""
        return self._buffer.device

    def stage(self, frames: Sequence[Frame]) -> tuple[int, bool]:
        """Copy the regions of frames into the host's side.

        Regions of the same pixels, a detector's boxes say, are copied as the rectangle around them where that is less.

        Returns:
            bytes to bring to the GPU, rounded up by at most a sixteenth, so that regions of nearly the same size share
            a graph; and whether the buffer had to grow, and graphs that use the old one are void.
        """
        patches = _patches(frames, self._spec)
        offsets = [divide_up(len(frames) * FRAME.itemsize, _ALIGNMENT) * _ALIGNMENT]
        for patch in patches:
            offsets.append(divide_up(offsets[-1] + patch.rect.height * patch.step, _ALIGNMENT) * _ALIGNMENT)
        granule = max(4096, 1 << max(0, offsets[-1].bit_length() - 5))
        bytes_ = divide_up(offsets[-1], granule) * granule
        grows = bytes_ > self._buffer.host.nbytes
        if grows:
            self._buffer = SharedBuffer(self._gpu, (bytes_,), np.uint8)
        table = self._buffer.host[: len(frames) * FRAME.itemsize].view(FRAME)
        for patch, offset in zip(patches, offsets):
            self._stage_patch(patch, offset, table)
        return bytes_, grows

    def _stage_patch(self, patch: _Patch, offset: int, table: NDArray[Any]) -> None:
        left, top, width, height = patch.rect
        channels = patch.pixels.shape[2]
        copied = np.ndarray(
            (height, width, channels), np.uint8, self._buffer.host.data, offset, (patch.step, channels, 1)
        )
        copied[...] = patch.pixels[top : top + height, left : left + width]
        for index, encoding, rect in patch.regions:
            first = offset + (rect.y - top) * patch.step + (rect.x - left) * channels
            lead = first % 4
            rgb = ENCODINGS[encoding].rgb
            table[index] = (first - lead, patch.step, channels, *rgb, rect.height, rect.width, lead)

    def copy(self, stream: Any, bytes_: int) -> None:
        """Bring the first bytes to the GPU, in the order of ``stream``."""
        self._buffer.upload(stream, bytes_)


@dataclass
class _Patch:
    """A rectangle of an image that is copied, and the regions that lie in it.

    Attributes:
        pixels: (height, width, channels) uint8 of the image.
        rect: that is copied of them.
        regions: of which frames of the batch: number, encoding, rectangle in the image.
    """

    pixels: NDArray[np.uint8]
    rect: Rect
    regions: list[tuple[int, str, Rect]]

    @property
    def step(self) -> int:
        """Bytes from one row of the copy to the next, whole words."""
        return divide_up(self.rect.width * self.pixels.shape[2], 4) * 4


def _patches(frames: Sequence[Frame], spec: InputSpec) -> list[_Patch]:
    by_image: dict[int, list[_Patch]] = {}
    for index, frame in enumerate(frames):
        rect = source_rect(frame.pixels.shape[0], frame.pixels.shape[1], frame.region, spec)
        # The frames of a batch hold their pixels, so that each array has an address of its own.
        alone = _Patch(frame.pixels, rect, [(index, frame.encoding, rect)])
        by_image.setdefault(id(frame.pixels), []).append(alone)
    return [patch for patches in by_image.values() for patch in _joined(patches)]


def _joined(patches: list[_Patch]) -> list[_Patch]:
    """Patches of one image as one where that is less to copy."""
    x, y = min(patch.rect.x for patch in patches), min(patch.rect.y for patch in patches)
    right = max(patch.rect.x + patch.rect.width for patch in patches)
    bottom = max(patch.rect.y + patch.rect.height for patch in patches)
    around = Rect(x, y, right - x, bottom - y)
    if around.width * around.height > sum(patch.rect.width * patch.rect.height for patch in patches):
        return patches
    return [_Patch(patches[0].pixels, around, [region for patch in patches for region in patch.regions])]
