"""A detector's boxes as regions of an image."""

from __future__ import annotations

import math
from typing import NamedTuple

#: Numbers beyond are no box in an image of at most 16384 pixels a side.
LARGEST = 1e9


class Box(NamedTuple):
    """A box as a detector gives it, in pixels of the image; the first pixel reaches from 0 to 1.

    Attributes:
        x, y: of its middle.
        width, height: of its sides before it is turned.
        theta: by which it is turned around its middle, radians.
    """

    x: float
    y: float
    width: float
    height: float
    theta: float = 0.0


def region_of(
    box: Box, width: int, height: int, margin: float = 0.0
) -> tuple[float, float, float, float] | None:
    """The upright rectangle around a box, as far as it lies in the image.

    Args:
        box: any numbers.
        width, height: of the image, in pixels.
        margin: by which the box is enlarged on each side, as a fraction of its width and height.

    Returns:
        The region of a :class:`~bnn_perception.frames.frame.Frame`, whole pixels and at least one; None for a box that
        has no area, lies outside, or holds a number that is not finite or beyond :data:`LARGEST`.
    """
    if not all(abs(number) <= LARGEST for number in box) or box.width <= 0 or box.height <= 0:
        return None
    cosine, sine = abs(math.cos(box.theta)), abs(math.sin(box.theta))
    side_x, side_y = box.width / 2 * (1 + 2 * margin), box.height / 2 * (1 + 2 * margin)
    half_x, half_y = side_x * cosine + side_y * sine, side_x * sine + side_y * cosine
    left, right = _clamp(box.x - half_x, width), _clamp(box.x + half_x, width)
    top, bottom = _clamp(box.y - half_y, height), _clamp(box.y + half_y, height)
    if left >= right or top >= bottom:
        return None
    x, columns = _whole(left, right, width)
    y, rows = _whole(top, bottom, height)
    return x / width, y / height, columns / width, rows / height


def _clamp(value: float, size: int) -> float:
    return min(max(value, 0.0), float(size))


def _whole(first: float, last: float, size: int) -> tuple[int, int]:
    """Where whole pixels nearest to an interval begin, and how many they are."""
    begin = min(round(first), size - 1)
    return begin, max(1, round(last) - begin)
