"""The definition of every layer, in NumPy. Whatever else evaluates a model must give the same words and values.

Bits are unpacked to the +1 and -1 they stand for and multiplied and added as the definition says; nothing
here knows of XNOR or popcount, so the fast backends are checked against arithmetic, not against themselves.
Sums of whole numbers run in float64, where those below 2**53 are exact. Operations on a signal run in float32, one at a
time, in the order that the layer's docstring states (:mod:`bnn_perception.net.signals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bnn_perception.backends.protocol import Device, StageTimer
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net import bits
from bnn_perception.net.layer import Layer, Pads, Pool
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    OfBits,
    OfPixels,
    OutputBits,
    OutputDense,
    SignConv2d,
    Thermometer,
)
from bnn_perception.net.model import Model
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Clip,
    Concat,
    MaxPool,
    PRelu,
    RealConv2d,
    RealInputConv2d,
    Scaled,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
    Sign,
)
from bnn_perception.net.windows import pads

Signal = NDArray[np.float32]
"""(height, width, channels)."""


def thermometer(layer: Thermometer, pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(height, width, channels) uint8 -> (height, width, words) uint32."""
    reached = pixels[..., None] >= layer.thresholds  # (height, width, channels, levels)
    return bits.pack(reached.reshape(*pixels.shape[:2], -1))


def windows_of(
    values: NDArray[Any], kernel: tuple[int, int], stride: tuple[int, int], padding: Pads, outside: Any
) -> NDArray[Any]:
    """(height, width, channels) -> (output height, output width, channels, kernel y, kernel x).

    What lies outside counts as ``outside``.
    """
    top, left, bottom, right = padding
    padded = np.pad(values, ((top, bottom), (left, right), (0, 0)), constant_values=outside)
    return sliding_window_view(padded, kernel, axis=(0, 1))[:: stride[0], :: stride[1]]


def convolution(
    values: NDArray[np.int32],
    weights: NDArray[np.int32],
    stride: tuple[int, int],
    padding: Pads,
    padding_value: int,
) -> NDArray[np.int32]:
    """Plain integer convolution (as nets mean it: correlation).

    Args:
        values: (height, width, in_channels) int32.
        weights: (out_channels, kernel y, kernel x, in_channels) int32.
        stride: (y, x).
        padding: top, left, bottom, right.
        padding_value: what lies outside.

    Returns:
        (output height, output width, out_channels) int32.
    """
    _, kernel_y, kernel_x, _ = weights.shape
    windows = windows_of(values, (kernel_y, kernel_x), stride, padding, padding_value)
    sums = np.tensordot(windows.astype(np.float64), weights.astype(np.float64), axes=([3, 4, 2], [1, 2, 3]))
    return sums.astype(np.int32)


def max_pool(values: NDArray[np.int32], pool: Pool | None) -> NDArray[np.int32]:
    """(height, width, channels) int32 -> maxima of square windows; ``None`` changes nothing."""
    if pool is None:
        return values
    windows = sliding_window_view(values, (pool.size, pool.size), axis=(0, 1))
    return windows[:: pool.stride, :: pool.stride].max(axis=(3, 4))


def threshold(layer: SignConv2d | BinaryDense, values: NDArray[np.int32]) -> NDArray[np.uint32]:
    """(..., channels) int32 -> (..., words) uint32: ``bit = (value >= threshold) ^ flip``."""
    return bits.pack((values >= layer.threshold) ^ layer.flip)


def input_conv2d(layer: InputConv2d, pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(height, width, channels) uint8 -> (output height, output width, words) uint32."""
    return threshold(layer, input_sums(layer, pixels))


def input_sums(layer: OfPixels, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(height, width, channels) uint8 -> (output height, output width, out_channels) int32 after the pool."""
    values = layer.levels[pixels].astype(np.int32)
    weights = bits.signs(layer.weights, layer.in_channels)
    sums = convolution(values, weights, layer.stride, pads(layer.padding), 0)
    return max_pool(sums, layer.pool)


def binary_conv2d(layer: BinaryConv2d, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(height, width, words) uint32 -> (output height, output width, words) uint32."""
    return threshold(layer, binary_sums(layer, words))


def binary_sums(layer: OfBits, words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """(height, width, words) uint32 -> (output height, output width, out_channels) int32 after the pool."""
    values = bits.signs(words, layer.in_channels)
    weights = bits.signs(layer.weights, layer.in_channels)
    sums = convolution(values, weights, layer.stride, pads(layer.padding), layer.padding_value)
    return max_pool(sums, layer.pool)


def scaled(layer: Scaled, sums: NDArray[np.int32]) -> Signal:
    """(..., channels) int32 dot products -> ``add(mul(scale, float(dot)), bias)``."""
    return sums.astype(np.float32) * layer.scale + layer.bias


def scaled_input_conv2d(layer: ScaledInputConv2d, pixels: NDArray[np.uint8]) -> Signal:
    """(height, width, channels) uint8 -> (output height, output width, out_channels) float32."""
    return scaled(layer, input_sums(layer, pixels))


def scaled_binary_conv2d(layer: ScaledBinaryConv2d, words: NDArray[np.uint32]) -> Signal:
    """(height, width, words) uint32 -> (output height, output width, out_channels) float32."""
    return scaled(layer, binary_sums(layer, words))


def real_input_conv2d(layer: RealInputConv2d, pixels: NDArray[np.uint8]) -> Signal:
    """(height, width, channels) uint8 -> (output height, output width, out_channels) float32."""
    windows = windows_of(pixels.astype(np.float64), layer.kernel, layer.stride, pads(layer.padding), 0)
    by_group = np.split(windows, layer.groups, axis=2)
    weights = np.split(layer.weights.astype(np.float64), layer.groups)
    sums: list[NDArray[np.float64]] = [
        np.tensordot(x, w, axes=([3, 4, 2], [1, 2, 3])) for x, w in zip(by_group, weights)
    ]
    row, column, table = layer.offsets((pixels.shape[0], pixels.shape[1], layer.in_channels))
    return np.concatenate(sums, axis=2).astype(np.float32) * layer.scale + table[row][:, column]


def real_conv2d(layer: RealConv2d, x: Signal) -> Signal:
    """(height, width, in_channels) float32 -> (output height, output width, out_channels) float32."""
    windows = windows_of(x, layer.kernel, layer.stride, pads(layer.padding), np.float32(0))
    filters, size = layer.out_channels // layer.groups, layer.group_channels
    total = np.zeros((*windows.shape[:2], layer.out_channels), np.float32)
    for y in range(layer.kernel[0]):
        for x_ in range(layer.kernel[1]):
            tap = windows[..., y, x_].reshape(*windows.shape[:2], layer.groups, size)
            for channel in range(size):
                # Each filter's own channel: that of its group.
                total += np.repeat(tap[..., channel], filters, axis=-1) * layer.weights[:, y, x_, channel]
    return total + layer.bias


def affine(layer: Affine, x: Signal) -> Signal:
    """(height, width, channels) float32 -> the same shape, as the functions that follow."""
    return x * layer.scale + layer.bias


def prelu(layer: PRelu, x: Signal) -> Signal:
    return np.where(x >= 0, x, x * layer.slope)


def clip(layer: Clip, x: Signal) -> Signal:
    return np.minimum(np.maximum(x, layer.low), layer.high)


def sign(layer: Sign, x: Signal) -> NDArray[np.uint32]:
    """(height, width, channels) float32 -> (height, width, words) uint32."""
    return bits.pack((x >= layer.threshold) ^ layer.flip)


def add(layer: Add, x: Signal, other: Signal) -> Signal:
    return x + other


def concat(layer: Concat, *signals: Signal) -> Signal:
    """(height, width, channels) float32 each -> (height, width, all channels) float32."""
    return np.concatenate(signals, axis=2)


def channel_pad(layer: ChannelPad, x: Signal) -> Signal:
    """(height, width, channels) float32 -> (height, width, before + channels + after) float32."""
    return np.pad(x, ((0, 0), (0, 0), (layer.before, layer.after)))


def signal_max_pool(layer: MaxPool, x: Signal) -> Signal:
    """(height, width, channels) float32 -> (output height, output width, channels) float32."""
    windows = windows_of(x, layer.kernel, layer.stride, pads(layer.padding), np.float32(-np.inf))
    return windows.max(axis=(3, 4))


def binary_max_pool(layer: BinaryMaxPool, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(height, width, words) uint32 -> (output height, output width, words) uint32."""
    values = bits.signs(words, layer.channels)
    windows = windows_of(values, layer.kernel, layer.stride, pads(layer.padding), -1)
    return bits.pack(windows.max(axis=(3, 4)) > 0)


def average_pool(layer: AveragePool, x: Signal) -> Signal:
    """(height, width, channels) float32 -> (output height, output width, channels) float32."""
    windows = windows_of(x, layer.kernel, layer.stride, pads(layer.padding), np.float32(0))
    total = np.zeros(windows.shape[:3], np.float32)
    for y in range(layer.kernel[0]):
        for x_ in range(layer.kernel[1]):
            total += windows[..., y, x_]
    mean: Signal = np.divide(
        total, layer.counts((x.shape[0], x.shape[1], layer.channels))[..., None].astype(np.float32)
    )
    return mean


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


#: How each kind of layer is evaluated: from the layer and its inputs.
EVALUATE: dict[type[Layer], Callable[..., NDArray[Any]]] = {
    Thermometer: thermometer,
    InputConv2d: input_conv2d,
    ScaledInputConv2d: scaled_input_conv2d,
    RealInputConv2d: real_input_conv2d,
    BinaryConv2d: binary_conv2d,
    ScaledBinaryConv2d: scaled_binary_conv2d,
    RealConv2d: real_conv2d,
    Affine: affine,
    PRelu: prelu,
    Clip: clip,
    Sign: sign,
    Add: add,
    Concat: concat,
    ChannelPad: channel_pad,
    MaxPool: signal_max_pool,
    BinaryMaxPool: binary_max_pool,
    AveragePool: average_pool,
    BinaryDense: binary_dense,
    OutputDense: output_dense,
    OutputBits: output_bits,
}


def evaluate(layer: Layer, *inputs: NDArray[Any]) -> NDArray[Any]:
    """The output of one layer for one frame.

    Args:
        layer: of any kind.
        inputs: each (height, width, channels) uint8 pixels or float32 signal, or (height, width, words) uint32 bits,
            as the layer takes.

    Returns:
        (height, width, words) uint32 bits, (height, width, channels) float32 signal or (classes,) float32 logits.
    """
    return EVALUATE[type(layer)](layer, *inputs)


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
        """The output of each layer in turn, by name; of the last, the logits."""
        values: list[NDArray[Any]] = [pixels]
        for layer, places in zip(self.model.layers, self.model.sources()):
            values.append(evaluate(layer, *(values[place + 1] for place in places)))
            is_last = layer is self.model.layers[-1]
            yield layer.name, values[-1].reshape(-1) if is_last else values[-1]
