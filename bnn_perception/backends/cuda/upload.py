"""The frames of a batch on their way to the GPU: the regions that are looked at, as they lie in memory, one after the
other behind a table that says where each one is and how it is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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

        Returns:
            bytes to bring to the GPU, rounded up by at most a sixteenth, so that regions of nearly the same size share
            a graph; and whether the buffer had to grow, and graphs that use the old one are void.
        """
        rects = [
            source_rect(frame.pixels.shape[0], frame.pixels.shape[1], frame.region, self._spec)
            for frame in frames
        ]
        steps = [divide_up(rect.width * frame.pixels.shape[2], 4) * 4 for frame, rect in zip(frames, rects)]
        offsets = [divide_up(len(frames) * FRAME.itemsize, _ALIGNMENT) * _ALIGNMENT]
        for rect, step in zip(rects, steps):
            offsets.append(divide_up(offsets[-1] + rect.height * step, _ALIGNMENT) * _ALIGNMENT)
        granule = max(4096, 1 << max(0, offsets[-1].bit_length() - 5))
        bytes_ = divide_up(offsets[-1], granule) * granule
        grows = bytes_ > self._buffer.host.nbytes
        if grows:
            self._buffer = SharedBuffer(self._gpu, (bytes_,), np.uint8)
        for index, (frame, rect, step) in enumerate(zip(frames, rects, steps)):
            self._stage_frame(index, frame, rect, step, offsets[index])
        return bytes_, grows

    def _stage_frame(self, index: int, frame: Frame, rect: Rect, step: int, offset: int) -> None:
        host, channels = self._buffer.host, frame.pixels.shape[2]
        region = np.ndarray(
            (rect.height, rect.width, channels), np.uint8, host.data, offset, (step, channels, 1)
        )
        region[...] = frame.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
        table = host[: (index + 1) * FRAME.itemsize].view(FRAME)
        table[index] = (offset, step, channels, *ENCODINGS[frame.encoding].rgb, rect.height, rect.width, 0)

    def copy(self, stream: Any, bytes_: int) -> None:
        """Bring the first bytes to the GPU, in the order of ``stream``."""
        self._buffer.upload(stream, bytes_)
