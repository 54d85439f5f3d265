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

import numpy as np
from numpy.typing import NDArray

from bnn_perception.frames.frame import ENCODINGS, Frame, Rect
from bnn_perception.net.model import InputSpec

#: Luma weights of red, green and blue in 1/256 (ITU-R BT.601), as integers that add up to 256.
LUMA = (77, 150, 29)


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
        frame: a frame of any size, row stride and encoding.
        spec: the model's input.
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
    red, _, blue = ENCODINGS[frame.encoding].rgb
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
    rgb = resized[..., list(ENCODINGS[frame.encoding].rgb)]
    if spec.channels == 3:
        return rgb.astype(np.uint8)
    grey = (rgb @ np.asarray(LUMA, dtype=np.int64) + 128) >> 8
    return grey[..., None].astype(np.uint8)
