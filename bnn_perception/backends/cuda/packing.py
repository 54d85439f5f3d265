"""Weights and thresholds as the kernels read them, so that the lanes of a warp load adjacent bytes: a convolution's 32
filters of a warp side by side, and the rows of words of a fully connected layer.

There is one function for each kind of layer; it returns the constants of the kernel in the order of its arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda.specs import (
    WARP,
    ConvTile,
    divide_up,
    level_offset,
    mma_steps,
    taps,
)
from bnn_perception.net import bits
from bnn_perception.net.layer import Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    OfBits,
    OfPixels,
    OutputBits,
    OutputDense,
    SignConv2d,
)
from bnn_perception.net.signals import RealConv2d, RealInputConv2d, ScaledBinaryConv2d, ScaledInputConv2d


def pad(values: NDArray[Any], filler: Any = 0) -> NDArray[Any]:
    """Append ``filler`` to the first axis up to a whole number of warps."""
    missing = -len(values) % WARP
    return np.concatenate([values, np.full((missing, *values.shape[1:]), filler, dtype=values.dtype)])


def lanes_last(weights: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(filters, ...) -> (filter words, ..., 32), filters that do not exist being 0."""
    groups = pad(weights).reshape(-1, WARP, *weights.shape[1:])
    return np.ascontiguousarray(np.moveaxis(groups, 1, -1))


def thresholds(
    layer: SignConv2d | BinaryDense, threshold: NDArray[np.int32] | None = None
) -> list[NDArray[Any]]:
    """threshold (filter words * 32,) int32, never reached by filters that do not exist; flip (filter words,) uint32."""
    return [pad(layer.threshold if threshold is None else threshold, bits.NEVER), bits.pack(layer.flip)]


def _nothing(filters: int, lacking: NDArray[np.int64] | None = None) -> list[NDArray[Any]]:
    """In place of thresholds, where a signal follows: what sums lack to be dot products, int32, and no flips."""
    missing = np.zeros(filters, np.int32) if lacking is None else lacking.astype(np.int32)
    return [pad(missing), bits.pack(np.zeros(filters, bool))]


def _binary_words(layer: OfBits, shape: Shape, tile: ConvTile) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """weights (filter words, chunks, kernel y, kernel x, chunk words, 32) uint32, border int32."""
    height, width = layer.kernel
    chunked = layer.weights.reshape(layer.out_channels, height, width, -1, tile.chunk_words)
    row, column, table = layer.border_correction(shape)
    corrections = np.moveaxis(pad(np.moveaxis(table, -1, 0)), 0, -1)
    border = np.concatenate([row, column, corrections.reshape(-1)]).astype(np.int32)
    return lanes_last(chunked.transpose(0, 3, 1, 2, 4)), border


def binary_conv2d(layer: BinaryConv2d, shape: Shape, tile: ConvTile) -> list[NDArray[Any]]:
    """weights, threshold, flip, border; see :func:`_binary_words`."""
    weights, border = _binary_words(layer, shape, tile)
    return [weights, *thresholds(layer), border]


def scaled_binary_conv2d(layer: ScaledBinaryConv2d, shape: Shape, tile: ConvTile) -> list[NDArray[Any]]:
    """The same where a signal follows."""
    weights, border = _binary_words(layer, shape, tile)
    return [weights, *_nothing(layer.out_channels), border]


def binary_conv2d_mma(layer: BinaryConv2d) -> list[NDArray[Any]]:
    """weights (filter words, steps, 32 lanes, 4 matrices, 2 registers) uint32, threshold, flip.

    Matrix B ``b`` of a filter word holds filters ``8 b`` to ``8 b + 7``; lane ``4 g + t`` has words ``t`` and
    ``4 + t`` of column ``g`` (kernels/bmma.cuh). What is missing of the last step is 0.
    """
    flat = layer.weights.reshape(layer.out_channels, -1)
    steps = mma_steps(layer)
    padded = np.zeros((*flat.shape[:1], steps * 8), dtype=np.uint32)
    padded[:, : flat.shape[1]] = flat
    parts = pad(padded).reshape(-1, 4, 8, steps, 2, 4)  # filter word, b, g, step, register, t
    weights = np.ascontiguousarray(parts.transpose(0, 3, 2, 5, 1, 4))
    ones = bits.popcount(flat).sum(axis=1, dtype=np.int64)
    return [weights, *thresholds(layer, _raise_thresholds(layer.threshold, 2 * ones - layer.fan_in))]


def _raise_thresholds(threshold: NDArray[np.int32], by: NDArray[np.int64]) -> NDArray[np.int32]:
    """Add ``by`` to every threshold, except ALWAYS and NEVER."""
    constant = (threshold == bits.NEVER) | (threshold == bits.ALWAYS)
    shifted = np.clip(threshold.astype(np.int64) + by, bits.ALWAYS, bits.NEVER)
    return np.where(constant, threshold, shifted).astype(np.int32)


def input_conv2d(layer: InputConv2d, shape: Shape, tile: ConvTile) -> list[NDArray[Any]]:
    """weights (filter words, kernel y, taps x, 32) uint32 of signed bytes, threshold, flip, levels (256,) uint8."""
    words, levels, lacking = _input_words(layer)
    return [words, *thresholds(layer, _raise_thresholds(layer.threshold, -lacking)), levels]


def scaled_input_conv2d(layer: ScaledInputConv2d, shape: Shape, tile: ConvTile) -> list[NDArray[Any]]:
    """The same where a signal follows."""
    words, levels, lacking = _input_words(layer)
    return [words, *_nothing(layer.out_channels, lacking), levels]


def _input_words(layer: OfPixels) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]:
    """The weights, the staged levels, and what the kernel's sums lack to be dot products."""
    tap = taps(layer)
    # (filters, kernel y, kernel x, channels)
    signs = bits.signs(layer.weights, layer.in_channels).astype(np.int8)
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
    levels = ((layer.levels.astype(np.int32) - offset) & 0xFF).astype(np.uint8)
    return lanes_last(words), levels, lacking


def _grey_taps(signs: NDArray[np.int8]) -> NDArray[np.int8]:
    """(filters, kernel y, kernel x, 1) -> (filters, kernel y, taps, 4)."""
    filters, height, width, _ = signs.shape
    columns = divide_up(width, 4)
    padded = np.zeros((filters, height, columns * 4), dtype=np.int8)
    padded[..., :width] = signs[..., 0]
    return padded.reshape(filters, height, columns, 4)


def real_conv2d(layer: RealConv2d) -> list[NDArray[Any]]:
    """weights (kernel y, kernel x, channels of a group, filter words * 32) float32."""
    return [np.ascontiguousarray(np.moveaxis(pad(layer.weights), 0, -1))]


def real_input_conv2d(layer: RealInputConv2d, shape: Shape) -> list[NDArray[Any]]:
    """weights (kernel y, kernel x, 3 digits, filter words * 32) uint32 of signed bytes, what sums lack int64, scale
    float32, patterns (out height + out width,) int32, offsets (rows, columns, filter words * 32) float32."""
    full = np.zeros((*layer.weights.shape[:3], layer.in_channels), np.int64)
    filters = layer.out_channels // layer.groups
    for group in range(layer.groups):
        own, channels = slice(group * filters, (group + 1) * filters), layer.group_channels
        full[own, ..., group * channels : (group + 1) * channels] = layer.weights[own]
    lacking = 128 * full.sum(axis=(1, 2, 3))
    digits, rest = [], full
    for _ in range(3):
        digit = (rest + 128) % 256 - 128
        digits.append(digit)
        rest = (rest - digit) // 256
    four = np.zeros((*full.shape[:3], 3, 4), np.int8)
    four[..., : layer.in_channels] = np.stack(digits, axis=3)
    words = np.moveaxis(pad(four.view("<u4")[..., 0].astype(np.uint32)), 0, -1)
    row, column, table = layer.offsets(shape)
    offsets = np.moveaxis(pad(np.moveaxis(table, -1, 0)), 0, -1)
    return [
        np.ascontiguousarray(words),
        pad(lacking),
        pad(layer.scale),
        np.concatenate([row, column]).astype(np.int32),
        np.ascontiguousarray(offsets),
    ]


def epilogue(
    rows: list[NDArray[np.float32]], threshold: NDArray[np.float32], flip: NDArray[np.bool_]
) -> list[NDArray[Any]]:
    """parameters (rows + 1, filter words * 32) float32, thresholds last, and flip (filter words,) uint32.

    Filters that do not exist have parameters of 0 and thresholds that no value reaches.
    """
    padded = [pad(row) for row in rows]
    return [np.stack([*padded, pad(threshold, np.inf)]).astype(np.float32), bits.pack(flip)]


def binary_dense(layer: BinaryDense) -> list[NDArray[Any]]:
    """weights (outputs, input words) uint32, threshold, flip."""
    return [np.ascontiguousarray(layer.weights), *thresholds(layer)]


def output_dense(layer: OutputDense) -> list[NDArray[Any]]:
    """weights (outputs, input words) uint32, scale and bias (output words * 32,) float32."""
    return [np.ascontiguousarray(layer.weights), pad(layer.scale), pad(layer.bias)]


def output_bits(layer: OutputBits) -> list[NDArray[Any]]:
    """The constants of :func:`binary_dense`, and the logits (output words * 32,) float32 of a 1 and of a 0."""
    return [*binary_dense(layer), pad(layer.scale + layer.bias), pad(layer.bias)]
