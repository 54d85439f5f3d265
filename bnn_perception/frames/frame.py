"""A camera frame as it lies in memory: its pixels, their encoding, and the part of it that is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Encoding(NamedTuple):
    """How the pixels of an encoding lie in memory.

    Attributes:
        channels: bytes a pixel.
        rgb: which of them are red, green and blue.
    """

    channels: int
    rgb: tuple[int, int, int]


#: The encodings that are taken, by their names in sensor_msgs/image_encodings.
ENCODINGS = {
    "rgb8": Encoding(3, (0, 1, 2)),
    "bgr8": Encoding(3, (2, 1, 0)),
    "rgba8": Encoding(4, (0, 1, 2)),
    "bgra8": Encoding(4, (2, 1, 0)),
    "mono8": Encoding(1, (0, 0, 0)),
}

#: Region of interest that takes the whole frame: x, y, width, height as fractions of the frame.
WHOLE = (0.0, 0.0, 1.0, 1.0)

#: Longest side of a frame, pixels: the sums of :mod:`bnn_perception.frames.preprocess` then stay below 2**63, and
#: those of one column below 2**32.
MAX_SIDE = 16384


class Rect(NamedTuple):
    """A rectangle of pixels inside a frame."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One camera frame as it lies in memory.

    Attributes:
        pixels: (height, width, channels) uint8, rows any distance apart, pixels adjacent in a row.
        encoding: a key of :data:`ENCODINGS`.
        region: region of interest, (x, y, width, height) as fractions of the frame.
    """

    pixels: NDArray[np.uint8]
    encoding: str = "rgb8"
    region: tuple[float, float, float, float] = WHOLE

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding '{self.encoding}' is not one of {', '.join(ENCODINGS)}")
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3:
            raise ValueError(
                f"pixels are {self.pixels.dtype} of shape {self.pixels.shape}, not uint8 (height, width, channels)"
            )
        height, width, channels = self.pixels.shape
        if channels != ENCODINGS[self.encoding].channels:
            raise ValueError(f"{channels} channels in an image of encoding {self.encoding}")
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise ValueError(f"image of {width}x{height} pixels; sides must be 1 to {MAX_SIDE}")


def check_region(region: Sequence[float]) -> tuple[float, float, float, float]:
    """Validate a region of interest.

    Raises:
        ValueError: naming what is wrong, unless 0 <= x, 0 <= y, width > 0, height > 0, x + width <= 1 and
            y + height <= 1 (to 1e-9).
    """
    if len(region) != 4:
        raise ValueError(f"region has {len(region)} numbers; it takes x, y, width and height as fractions")
    x, y, width, height = (float(value) for value in region)
    if not all(np.isfinite((x, y, width, height))):
        raise ValueError(f"region {list(region)} holds a number that is not finite")
    if x < 0 or y < 0 or width <= 0 or height <= 0 or x + width > 1 + 1e-9 or y + height > 1 + 1e-9:
        raise ValueError(
            f"region {list(region)} does not lie inside the image; x, y, width, height are fractions of it"
        )
    return x, y, width, height
