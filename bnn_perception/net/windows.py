"""The geometry of windows that slide over a padded map: what convolutions and pools share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.checks import ModelError, check_whole
from bnn_perception.net.layer import Pads, Shape


def pads(padding: tuple[int, ...]) -> Pads:
    """The four pads of a field ``padding``: (y, x) on both sides, or (top, left, bottom, right)."""
    top, left, bottom, right = padding if len(padding) == 4 else (*padding, *padding)
    return top, left, bottom, right


def check_pads(where: str, kernel: tuple[int, int], padding: tuple[int, ...]) -> None:
    """Refuse a padding as large as the window: a window would lie outside altogether."""
    for index, size in enumerate(padding):
        check_whole(f"{where}.padding", size, 0, kernel[index % 2] - 1)


def windows_shape(
    name: str,
    shape: Sequence[int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, ...],
) -> tuple[int, int]:
    """(height, width) of what windows over a map give.

    Raises:
        ModelError: where not one window fits.
    """
    top, left, bottom, right = pads(padding)
    height = (shape[0] + top + bottom - kernel[0]) // stride[0] + 1
    width = (shape[1] + left + right - kernel[1]) // stride[1] + 1
    if height < 1 or width < 1:
        raise ModelError(f"{name}: kernel {list(kernel)} is larger than its padded input {list(shape[:2])}")
    return height, width


def inside_patterns(
    shape: Shape, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...], axis: int
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which taps of a window lie inside, along one axis; few windows of a map differ.

    Args:
        axis: 0 for rows, 1 for columns.

    Returns:
        (patterns, kernel) bool, the different patterns; (windows,) which of them each window has.
    """
    before, after = pads(padding)[axis], pads(padding)[axis + 2]
    count = (shape[axis] + before + after - kernel[axis]) // stride[axis] + 1
    tap = np.arange(count)[:, None] * stride[axis] - before + np.arange(kernel[axis])
    inside = (tap >= 0) & (tap < shape[axis])
    patterns, index = np.unique(inside, axis=0, return_inverse=True)
    return patterns, index.reshape(-1)


def window_text(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...]) -> str:
    """A few characters for a table: ``k3 s2 p1``."""

    def pair(values: Sequence[int]) -> str:
        return "x".join(map(str, values)) if len(set(values)) > 1 else str(values[0])

    text = f"k{pair(kernel)}"
    if pair(stride) != "1":
        text += f" s{pair(stride)}"
    if pair(padding) != "0":
        text += f" p{pair(padding)}"
    return text
