"""Weights and thresholds as the kernels read them, so that the lanes of a warp load adjacent bytes: a convolution's 32
filters of a warp side by side, and a dense layer's rows of words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda.specs import (
    WARP,
    ConvTile,
    Dense,
    MmaTile,
    divide_up,
    level_offset,
    mma_steps,
    taps,
)
from bnn_perception.net import bits
from bnn_perception.net.model import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    OutputBits,
    OutputDense,
    Shape,
    WithResidual,
)


def _pad(values: NDArray[Any], filler: Any = 0) -> NDArray[Any]:
    """Append ``filler`` to the first axis up to a whole number of warps."""
    missing = -len(values) % WARP
    return np.concatenate([values, np.full((missing, *values.shape[1:]), filler, dtype=values.dtype)])


def _lanes_last(weights: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(filters, ...) -> (filter words, ..., 32), filters that do not exist being 0."""
    groups = _pad(weights).reshape(-1, WARP, *weights.shape[1:])
    return np.ascontiguousarray(np.moveaxis(groups, 1, -1))


def thresholds(layer: Conv2d | BinaryDense, threshold: NDArray[np.int32] | None = None) -> list[NDArray[Any]]:
    """threshold (filter words * 32,) int32, never reached by filters that do not exist; flip (filter words,) uint32."""
    return [_pad(layer.threshold if threshold is None else threshold, bits.NEVER), bits.pack(layer.flip)]


def convolution(layer: Conv2d, shape: Shape, tile: ConvTile | MmaTile) -> list[NDArray[Any]]:
    """The constants of a convolution's kernel, in the order of its arguments; those of a stream stand last."""
    if isinstance(layer, InputConv2d):
        return input_conv2d(layer)
    assert isinstance(layer, BinaryConv2d)
    return binary_conv2d(layer, shape, tile) if isinstance(tile, ConvTile) else binary_conv2d_mma(layer)


def binary_conv2d(layer: BinaryConv2d, shape: Shape, tile: ConvTile) -> list[NDArray[Any]]:
    """weights (filter words, chunks, kernel y, kernel x, chunk words, 32) uint32, threshold, flip, border int32."""
    height, width = layer.kernel
    chunked = layer.weights.reshape(layer.out_channels, height, width, -1, tile.chunk_words)
    row, column, table = layer.border_correction(shape)
    corrections = np.moveaxis(_pad(np.moveaxis(table, -1, 0)), 0, -1)
    border = np.concatenate([row, column, corrections.reshape(-1)]).astype(np.int32)
    weights = _lanes_last(chunked.transpose(0, 3, 1, 2, 4))
    return [
        weights,
        *thresholds(layer),
        border,
        *_scales(layer, np.zeros(layer.out_channels, dtype=np.int64)),
    ]


def binary_conv2d_mma(layer: BinaryConv2d) -> list[NDArray[Any]]:
    """weights (filter words, steps, 32 lanes, 4 matrices, 2 registers) uint32, threshold, flip.

    Matrix B ``b`` of a filter word holds filters ``8 b`` to ``8 b + 7``; lane ``4 g + t`` has words ``t`` and
    ``4 + t`` of column ``g`` (kernels/bmma.cuh). What is missing of the last step is 0.
    """
    flat = layer.weights.reshape(layer.out_channels, -1)
    steps = mma_steps(layer)
    padded = np.zeros((*flat.shape[:1], steps * 8), dtype=np.uint32)
    padded[:, : flat.shape[1]] = flat
    parts = _pad(padded).reshape(-1, 4, 8, steps, 2, 4)  # filter word, b, g, step, register, t
    weights = np.ascontiguousarray(parts.transpose(0, 3, 2, 5, 1, 4))
    ones = bits.popcount(flat).sum(axis=1, dtype=np.int64)
    return [weights, *thresholds(layer, _shift(layer.threshold, 2 * ones - layer.fan_in))]


def _shift(threshold: NDArray[np.int32], by: NDArray[np.int64]) -> NDArray[np.int32]:
    """Thresholds for sums that are more by ``by``; constant ones stay."""
    constant = (threshold == bits.NEVER) | (threshold == bits.ALWAYS)
    shifted = np.clip(threshold.astype(np.int64) + by, bits.ALWAYS, bits.NEVER)
    return np.where(constant, threshold, shifted).astype(np.int32)


def _scales(layer: Conv2d, lacking: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """Where the layer has a stream: (filter words * 32, 4) int32, the multiplier, the negative multiplier, the offset
    and what the kernel's sums lack to be dot products (kernels/residual.cuh)."""
    if not isinstance(layer, WithResidual):
        return []
    columns = (layer.multiplier, layer.negative_multiplier, layer.offset, lacking.astype(np.int32))
    return [_pad(np.stack(columns, axis=1))]


def input_conv2d(layer: InputConv2d) -> list[NDArray[Any]]:
    """weights (filter words, kernel y, taps x, 32) uint32 of signed bytes, threshold, flip, levels (256,) uint8."""
    tap = taps(layer)
    signs = bits.signs(layer.weights, layer.in_channels).astype(
        np.int8
    )  # (filters, kernel y, kernel x, channels)
    # A tap's bytes are the channels of one pixel, or `step` grey pixels; what is missing is 0.
    per_tap = (
        signs.reshape(*signs.shape[:2], -1, layer.in_channels * tap.step)
        if tap.step == 1
        else _grey_taps(signs)
    )
    four = np.zeros((*per_tap.shape[:3], 4), dtype=np.int8)
    four[..., : per_tap.shape[3]] = per_tap
    words = np.ascontiguousarray(four).view("<u4")[..., 0].astype(np.uint32)
    offset = level_offset(layer)
    # The staged levels are less by `offset`, and so are the sums by offset * sum(weights).
    lacking = offset * signs.sum(axis=(1, 2, 3), dtype=np.int64)
    # A stream is not compared as a sum.
    threshold = layer.threshold if isinstance(layer, WithResidual) else _shift(layer.threshold, -lacking)
    levels = ((layer.levels.astype(np.int32) - offset) & 0xFF).astype(np.uint8)
    return [_lanes_last(words), *thresholds(layer, threshold), levels, *_scales(layer, lacking)]


def _grey_taps(signs: NDArray[np.int8]) -> NDArray[np.int8]:
    """(filters, kernel y, kernel x, 1) -> (filters, kernel y, taps, 4)."""
    filters, height, width, _ = signs.shape
    columns = divide_up(width, 4)
    padded = np.zeros((filters, height, columns * 4), dtype=np.int8)
    padded[..., :width] = signs[..., 0]
    return padded.reshape(filters, height, columns, 4)


def dense(layer: Dense) -> list[NDArray[Any]]:
    """weights (outputs, input words) uint32, then by the kind of layer: threshold and flip; scale and bias
    (output words * 32,) float32; or threshold, flip and the logits of a 1 and of a 0."""
    weights = np.ascontiguousarray(layer.weights)
    if isinstance(layer, OutputDense):
        return [weights, _pad(layer.scale), _pad(layer.bias)]
    if isinstance(layer, OutputBits):
        return [weights, *thresholds(layer), _pad(layer.scale + layer.bias), _pad(layer.bias)]
    return [weights, *thresholds(layer)]
