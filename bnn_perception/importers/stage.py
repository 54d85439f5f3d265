"""One stage of a float twin: what a backend of this package's own evaluates of a net in floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.layer import Pool, Shape

#: What a stage adds of the one before it, with the side of the square window that it averages; 0 adds nothing.
SHORTCUTS = {"none": 0, "identity": 1, "average_pool": 2}


@dataclass(frozen=True, eq=False)
class Stage:
    """``y = clip(scale * max_pool(conv(x, weights)) + shift + shortcut, low, high)``.

    Attributes:
        name: the name of the node with the weights.
        input_shape: (height, width, channels).
        weights: (out_channels, kernel y, kernel x, in_channels) float32.
        stride: (y, x).
        padding: (top, left, bottom, right), with zeros.
        pool: max pooling, or None.
        scale, shift: (out_channels,) float32.
        low, high: bounds of the clip; infinite where there is none.
        shortcut: what is added from the stage before, taken before its clip: ``none``, ``identity``, or
            ``average_pool``: means of 2x2 with stride 2, an odd last row or column left out. Output channel c gets
            channel ``c % in_channels``.
    """

    name: str
    input_shape: Shape
    weights: NDArray[np.float32]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    pool: Pool | None
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    low: float = -np.inf
    high: float = np.inf
    shortcut: Literal["none", "identity", "average_pool"] = "none"

    @property
    def kernel(self) -> tuple[int, int]:
        """(y, x)"""
        return self.weights.shape[1], self.weights.shape[2]

    @property
    def out_channels(self) -> int:
        return self.weights.shape[0]

    @property
    def conv_shape(self) -> Shape:
        """Before the pool."""
        height, width, _ = self.input_shape
        top, left, bottom, right = self.padding
        return (
            (height + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (width + left + right - self.kernel[1]) // self.stride[1] + 1,
            self.out_channels,
        )

    @property
    def output_shape(self) -> Shape:
        height, width, channels = self.conv_shape
        if self.pool is None:
            return height, width, channels
        return self.pool.length(height), self.pool.length(width), channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one frame."""
        height, width, _ = self.conv_shape
        return height * width * int(self.weights.size)
