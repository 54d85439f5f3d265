"""The definition of every layer, in NumPy. Whatever else evaluates a model must give the same words.

Bits are unpacked to the +1 and -1 they stand for and multiplied and added as the definition says; nothing
here knows of XNOR or popcount, so the fast backends are checked against arithmetic, not against themselves.
The matrix products run in float64, where sums of integers below 2**53 are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bnn_perception.backends.protocol import Device, StageTimer
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net import bits
from bnn_perception.net.model import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    InputResidualConv2d,
    Model,
    OutputBits,
    OutputDense,
    Pool,
    ResidualConv2d,
    Thermometer,
    WithResidual,
)


class Streamed(NamedTuple):
    """What a stream layer hands on.

    Attributes:
        words: (height, width, words) uint32.
        stream: (height, width, channels) int32.
    """

    words: NDArray[np.uint32]
    stream: NDArray[np.int32]


def thermometer(layer: Thermometer, pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(height, width, channels) uint8 -> (height, width, words) uint32."""
    reached = pixels[..., None] >= layer.thresholds  # (height, width, channels, levels)
    return bits.pack(reached.reshape(*pixels.shape[:2], -1))


def convolution(
    values: NDArray[np.int32],
    weights: NDArray[np.int32],
    stride: tuple[int, int],
    padding: tuple[int, int],
    padding_value: int,
) -> NDArray[np.int32]:
    """Plain integer convolution (as nets mean it: correlation).

    Args:
        values: (height, width, in_channels) int32.
        weights: (out_channels, kernel y, kernel x, in_channels) int32.
        stride, padding: (y, x).
        padding_value: what lies outside.

    Returns:
        (output height, output width, out_channels) int32.
    """
    (pad_y, pad_x), (_, kernel_y, kernel_x, _) = padding, weights.shape
    padded = np.pad(values, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), constant_values=padding_value)
    windows = sliding_window_view(padded, (kernel_y, kernel_x), axis=(0, 1))[:: stride[0], :: stride[1]]
    # windows: (output height, output width, in_channels, kernel y, kernel x)
    sums = np.tensordot(windows.astype(np.float64), weights.astype(np.float64), axes=([3, 4, 2], [1, 2, 3]))
    return sums.astype(np.int32)


def max_pool(values: NDArray[np.int32], pool: Pool | None) -> NDArray[np.int32]:
    """(height, width, channels) int32 -> maxima of square windows; ``None`` changes nothing."""
    if pool is None:
        return values
    windows = sliding_window_view(values, (pool.size, pool.size), axis=(0, 1))
    return windows[:: pool.stride, :: pool.stride].max(axis=(3, 4))


def threshold(layer: Conv2d | BinaryDense, values: NDArray[np.int32]) -> NDArray[np.uint32]:
    """(..., channels) int32 -> (..., words) uint32: ``bit = (value >= threshold) ^ flip``."""
    return bits.pack((values >= layer.threshold) ^ layer.flip)


def input_conv2d(layer: InputConv2d, pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(height, width, channels) uint8 -> (output height, output width, words) uint32."""
    return threshold(layer, input_sums(layer, pixels))


def input_sums(layer: InputConv2d, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(height, width, channels) uint8 -> (output height, output width, out_channels) int32 after the pool."""
    values = layer.levels[pixels].astype(np.int32)
    sums = convolution(values, bits.signs(layer.weights, layer.in_channels), layer.stride, layer.padding, 0)
    return max_pool(sums, layer.pool)


def binary_conv2d(layer: BinaryConv2d, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(height, width, words) uint32 -> (output height, output width, words) uint32."""
    return threshold(layer, binary_sums(layer, words))


def binary_sums(layer: BinaryConv2d, words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """(height, width, words) uint32 -> (output height, output width, out_channels) int32 after the pool."""
    values = bits.signs(words, layer.in_channels)
    weights = bits.signs(layer.weights, layer.in_channels)
    sums = convolution(values, weights, layer.stride, layer.padding, layer.padding_value)
    return max_pool(sums, layer.pool)


def scaled(layer: WithResidual, sums: NDArray[np.int32]) -> NDArray[np.int32]:
    """(..., channels) int32 dot products -> ``m * dot + offset``; a model's streams stay within int32."""
    return np.where(sums >= 0, layer.multiplier, layer.negative_multiplier) * sums + layer.offset


def input_stream_conv2d(layer: InputResidualConv2d, pixels: NDArray[np.uint8]) -> Streamed:
    """(height, width, channels) uint8 -> the first stream."""
    stream = scaled(layer, input_sums(layer, pixels))
    return Streamed(threshold(layer, stream), stream)


def average_pool(stream: NDArray[np.int32]) -> NDArray[np.int32]:
    """(height, width, channels) int32 -> means of 2x2, rounded down; an odd last row or column is left out."""
    height, width = stream.shape[0] // 2, stream.shape[1] // 2
    windows = stream[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return windows.sum(axis=(1, 3), dtype=np.int32) >> 2


def residual_conv2d(
    layer: ResidualConv2d, words: NDArray[np.uint32], before: NDArray[np.int32] | None
) -> Streamed:
    """(height, width, words) uint32 and the stream before, (height, width, in_channels) int32 -> the next stream."""
    stream = scaled(layer, binary_sums(layer, words))
    if layer.shortcut != "none":
        assert before is not None  # or it would be no Model
        shortcut = average_pool(before) if layer.shortcut == "average_pool" else before
        stream = stream + np.tile(shortcut, layer.out_channels // layer.in_channels)
    return Streamed(threshold(layer, stream), stream)


def dense(layer: BinaryDense | OutputDense, words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """(height, width, words) uint32 -> (out_features,) int32 dot products."""
    channels = layer.in_shape[2]
    values = bits.signs(words, channels).reshape(-1)
    weights = bits.signs(layer.weights.reshape(layer.out_features, -1, layer.pixel_words), channels)
    products = weights.reshape(layer.out_features, -1).astype(np.float64) @ values.astype(np.float64)
    return products.astype(np.int32)


def binary_dense(layer: BinaryDense, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(height, width, words) uint32 -> (1, 1, words) uint32."""
    return threshold(layer, dense(layer, words))[None, None, :]


def output_dense(layer: OutputDense, words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """(height, width, words) uint32 -> (out_features,) float32 logits."""
    return dense(layer, words).astype(np.float32) * layer.scale + layer.bias


def output_bits(layer: OutputBits, words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """(height, width, words) uint32 -> (out_features,) float32 logits."""
    fires = (dense(layer, words) >= layer.threshold) ^ layer.flip
    return np.where(fires, layer.scale + layer.bias, layer.bias)


EVALUATE: dict[type, Any] = {
    Thermometer: thermometer,
    InputConv2d: input_conv2d,
    InputResidualConv2d: input_stream_conv2d,
    BinaryConv2d: binary_conv2d,
    BinaryDense: binary_dense,
    OutputDense: output_dense,
    OutputBits: output_bits,
}


class ReferenceBackend:
    """Evaluates a model layer by layer with the functions of this module. Slow, and right by definition."""

    name = "reference"
    is_float = False
    device: Device = "cpu"
    device_name = "NumPy"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.times: dict[str, float] = {}

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        timer = StageTimer()
        inputs = [prepare_reference(frame, self.model.input) for frame in frames]
        timer.mark("preprocess")
        rows = [list(self._layers(value))[-1][1] for value in inputs]
        timer.mark("inference")
        self.times = timer.milliseconds
        return np.stack(rows)

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        pixels = prepare_reference(frame, self.model.input)
        yield "input", pixels
        yield from self._layers(pixels)

    def close(self) -> None:
        pass

    def _layers(self, pixels: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
        """The output of each layer in turn, by name; after that of a stream layer its stream."""
        value: NDArray[Any] = pixels
        stream: NDArray[np.int32] | None = None
        for layer in self.model.layers:
            if isinstance(layer, ResidualConv2d):
                result = residual_conv2d(layer, value, stream)
            else:
                result = EVALUATE[type(layer)](layer, value)
            value, stream = result if isinstance(result, Streamed) else (result, None)
            yield layer.name, value
            if stream is not None:
                yield f"{layer.name}.stream", stream
