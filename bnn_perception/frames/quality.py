"""How usable a picture is, measured on the pixels that the net sees."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import LUMA, prepare, prepare_reference
from bnn_perception.net.model import InputSpec

#: Side of an input whose sharpness is taken as it is; that of a larger one, with finer pixels, is scaled to it.
SIDE = 32

#: Source pixels of an input's pixel, along a side, that are averaged where numba is missing; others are passed over.
SAMPLES = 4


class Quality(NamedTuple):
    """What a picture is like.

    Attributes:
        brightness: mean luma, 0 to 255.
        sharpness: mean step between neighbours over the contrast (standard deviation, 1 at least). Sharp pictures of
            roads have 0.2 to 0.5 whatever their light, blurred ones 0.05 to 0.2, one of a single colour 0. An input of
            a single pixel cannot be blurred and has 1.
        digest: equal for equal pixels. No two pictures of a sensor are equal, for the noise of it.
    """

    brightness: float
    sharpness: float
    digest: int


def measure(pixels: NDArray[np.uint8]) -> Quality:
    """The quality of a net's input, (height, width, 1 or 3) uint8."""
    weights = np.asarray(LUMA if pixels.shape[2] == 3 else (256,), np.float32) / 256
    luma = pixels.astype(np.float32) @ weights
    steps = [np.abs(np.diff(luma, axis=axis)).mean() for axis in (0, 1) if luma.shape[axis] > 1]
    contrast = max(float(luma.std()), 1.0)
    scale = np.sqrt(luma.size) / SIDE
    sharpness = float(np.mean(steps)) / contrast * scale if steps else 1.0
    return Quality(float(luma.mean()), float(sharpness), zlib.crc32(pixels.tobytes()))


def seen(frame: Frame, spec: InputSpec) -> NDArray[np.uint8]:
    """The pixels that a net sees of a frame, (height, width, channels) uint8.

    Where numba is missing, as it may be beside a GPU, they are made of every n-th pixel of a large frame.
    """
    try:
        return prepare(frame, spec)
    except ImportError:
        height, width, _ = frame.pixels.shape
        _, _, columns, rows = frame.region
        step = int(min(height * rows / spec.height, width * columns / spec.width)) // SAMPLES
        pixels = frame.pixels[:: max(1, step), :: max(1, step)]
        return prepare_reference(Frame(pixels, frame.encoding, frame.region), spec)
