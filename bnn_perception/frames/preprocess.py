"""From a camera frame to the model's input, defined in integers so that every backend gives the same pixels.

Three steps, in this order:

1. *Region*: the rectangle of the frame that is looked at, then, for ``fit: crop``, the largest centred
   rectangle of the model's aspect ratio inside it.
2. *Resize* by area averaging. Source pixel i of S covers the units [i*D, (i+1)*D) of a line of S*D units,
   destination pixel j of D covers [j*S, (j+1)*S). The weight of i in j is the number of units they share,
   an integer, and the weights of one j add up to S. With both axes::

       out[y, x] = (sum_ij wy[y, i] * wx[x, j] * p[i, j] + n / 2) // n,      n = S_height * S_width

   in exact integer arithmetic. For S > D it is the mean over the area (no aliasing), for S = D the identity,
   for S < D the nearest pixel, blended where an edge falls inside one.
3. *Colour*: the channels are brought to the model's order (RGB, or one grey channel by ITU-R BT.601 weights
   in 1/256, rounded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.model import InputSpec

#: Channel index of red, green and blue in each encoding; names as in sensor_msgs/image_encodings.
ENCODINGS: dict[str, tuple[int, int, int]] = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
    "mono8": (0, 0, 0),
}
#: Number of channels in memory of each encoding.
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}

#: Luma weights of red, green and blue in 1/256 (ITU-R BT.601), as integers that add up to 256.
LUMA = (77, 150, 29)

#: Region of interest that takes the whole frame: x, y, width, height as fractions of the frame.
WHOLE = (0.0, 0.0, 1.0, 1.0)

#: Longest side of a frame, so that the sums above stay below 2**63 and rows of them below 2**32.
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
        if channels != CHANNELS[self.encoding]:
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


def source_rect(height: int, width: int, region: Sequence[float], spec: InputSpec) -> Rect:
    """The rectangle of a (height, width) frame that becomes the model's input; at least one pixel."""
    x0, y0, w, h = region
    left, top = min(round(x0 * width), width - 1), min(round(y0 * height), height - 1)
    rect_w = max(1, min(round(w * width), width - left))
    rect_h = max(1, min(round(h * height), height - top))
    if spec.fit == "crop":
        cropped_w = min(rect_w, max(1, round(rect_h * spec.width / spec.height)))
        cropped_h = min(rect_h, max(1, round(rect_w * spec.height / spec.width)))
        left, top = left + (rect_w - cropped_w) // 2, top + (rect_h - cropped_h) // 2
        rect_w, rect_h = cropped_w, cropped_h
    return Rect(left, top, rect_w, rect_h)


def area_weights(source: int, destination: int) -> NDArray[np.int64]:
    """(destination, source) integer weights of the area average along one axis; each row adds up to ``source``."""
    first = np.arange(destination)[:, None] * source
    start = np.arange(source)[None, :] * destination
    overlap = np.minimum(first + source, start + destination) - np.maximum(first, start)
    return np.maximum(overlap, 0).astype(np.int64)


def prepare(frame: Frame, spec: InputSpec, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Bring a frame to the model's input, compiled, without the GIL; the same pixels as :func:`prepare_reference`.

    Args:
        frame: of any size, row stride and encoding.
        spec: of the model.
        out: where to write, (height, width, channels) uint8, C-contiguous; None makes an array.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ImportError: where numba is missing, with the remedy.
    """
    try:
        from bnn_perception import native
    except ImportError as error:
        raise ImportError(f"preprocessing on the CPU needs numba ({error}); pip install numba") from None
    pixels = frame.pixels
    if pixels.strides[1:] != (pixels.shape[2], 1):
        pixels = np.ascontiguousarray(pixels)
    rect = source_rect(pixels.shape[0], pixels.shape[1], frame.region, spec)
    if out is None:
        out = np.empty(spec.shape, dtype=np.uint8)
    red, _, blue = ENCODINGS[frame.encoding]
    native.resize(
        pixels.ctypes.data + rect.y * pixels.strides[0] + rect.x * pixels.shape[2],
        pixels.strides[0],
        rect.height,
        rect.width,
        pixels.shape[2],
        out.ctypes.data,
        *spec.shape,
        red,
        blue,
        LUMA,
    )
    return out


def prepare_reference(frame: Frame, spec: InputSpec) -> NDArray[np.uint8]:
    """The definition of the preprocessing, in NumPy: (height, width, channels) uint8 of the model's input."""
    rect = source_rect(frame.pixels.shape[0], frame.pixels.shape[1], frame.region, spec)
    pixels = frame.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width].astype(np.int64)
    rows = np.tensordot(area_weights(rect.height, spec.height), pixels, axes=(1, 0))
    sums = np.einsum("xj,yjc->yxc", area_weights(rect.width, spec.width), rows)
    area = rect.height * rect.width
    resized = (sums + area // 2) // area
    rgb = resized[..., list(ENCODINGS[frame.encoding])]
    if spec.channels == 3:
        return rgb.astype(np.uint8)
    grey = (rgb @ np.asarray(LUMA, dtype=np.int64) + 128) >> 8
    return grey[..., None].astype(np.uint8)
