"""The kinds of layers whose arithmetic is that of integers, from pixels and bits to bits and logits.

:mod:`bnn_perception.net.signals` has the others, those of real values between two signs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net import bits
from bnn_perception.net.checks import MAX_CHANNELS, MAX_KERNEL, ModelError
from bnn_perception.net.fields import array, check_finite, choice, optional, pair_or_pads, whole, wholes
from bnn_perception.net.layer import Layer, Pads, Pool, Shape
from bnn_perception.net.windows import check_pads, inside_patterns, pads, window_text, windows_shape


@dataclass(frozen=True, eq=False)
class Thermometer(Layer):
    """Encodes 8-bit pixels as bits, ``levels`` a channel: bit ``c * levels + l`` is ``p[c] >= thresholds[c, l]``.

    With one level a channel this is the input binarization of arXiv 1808.00209; with 32 levels a channel it is the
    thermometer code of FracBNN (arXiv 2012.12206).

    Attributes:
        thresholds: (channels, levels) uint8.
    """

    kind = "thermometer"
    takes = "pixels"
    operands = "nothing"
    precision = "8 -> 1"
    channels: int = field(metadata=whole(1, MAX_CHANNELS))
    levels: int = field(metadata=whole(1, 255))
    thresholds: NDArray[np.uint8] = field(
        metadata=array(np.uint8, lambda sizes: (sizes.channels, sizes.levels))
    )

    @property
    def fan_in(self) -> int:
        return 0

    @property
    def outputs(self) -> int:
        return self.channels * self.levels

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        self._expect("channels", self.channels, shape[2])
        return shape[0], shape[1], self.outputs

    def macs(self, shape: Shape, *others: Shape) -> int:
        return 0

    @property
    def detail(self) -> str:
        return f"{self.levels} a channel"


def per_filter(sizes: Any) -> tuple[int, ...]:
    """The shape of an array with a value for each filter."""
    return (sizes.out_channels,)


@dataclass(frozen=True, eq=False)
class Conv2d(Layer):
    """What all convolutions with ±1 weights share: ``dot = maxpool(conv(x))``, an integer.

    Attributes:
        kernel, stride: (y, x) each.
        padding: (y, x) on both sides, or (top, left, bottom, right).
        pool: max pooling of the integers, or None.
        weights: (out_channels, kernel y, kernel x, words_for(in_channels)) uint32.
    """

    in_channels: int = field(metadata=whole(1, MAX_CHANNELS))
    out_channels: int = field(metadata=whole(1, MAX_CHANNELS))
    kernel: tuple[int, int] = field(metadata=wholes(2, 1, MAX_KERNEL))
    stride: tuple[int, int] = field(metadata=wholes(2, 1, MAX_KERNEL))
    padding: tuple[int, ...] = field(metadata=pair_or_pads())
    pool: Pool | None = field(metadata=optional(Pool))
    weights: NDArray[np.uint32] = field(
        metadata=array(
            np.uint32,
            lambda sizes: (sizes.out_channels, *sizes.kernel, bits.words_for(sizes.in_channels)),
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pads(self.name, self.kernel, self.padding)
        check_spare(self.name, self.weights, self.in_channels)

    @property
    def fan_in(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.in_channels

    @property
    def outputs(self) -> int:
        return self.out_channels

    @property
    def border(self) -> Pads:
        return pads(self.padding)

    @property
    def max_dot(self) -> int:
        """The largest magnitude of a dot product: of bits unless a subclass says otherwise."""
        return self.fan_in

    @property
    def window(self) -> Pool:
        """Its pool, or the pool of single pixels that changes nothing."""
        return self.pool or Pool(1, 1)

    def conv_shape(self, shape: Shape) -> Shape:
        """Shape of the integers before the pool."""
        self._expect("in_channels", self.in_channels, shape[2])
        height, width = windows_shape(self.name, shape, self.kernel, self.stride, self.padding)
        return height, width, self.out_channels

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        height, width, channels = self.conv_shape(shape)
        height, width = self.window.length(height), self.window.length(width)
        if height < 1 or width < 1:
            raise ModelError(f"{self.name}: pool.size {self.window.size} is larger than its input")
        return height, width, channels

    def macs(self, shape: Shape, *others: Shape) -> int:
        return math.prod(self.conv_shape(shape)) * self.fan_in

    @property
    def detail(self) -> str:
        text = window_text(self.kernel, self.stride, self.padding)
        if self.pool is not None:
            same = self.pool.stride == self.pool.size
            text += f" pool{self.pool.size}" + ("" if same else f"/{self.pool.stride}")
        return text


@dataclass(frozen=True, eq=False)
class SignConv2d(Conv2d):
    """A convolution that ends in a sign: ``bit = (dot >= threshold) ^ flip``.

    Attributes:
        threshold: (out_channels,) int32.
        flip: (out_channels,) bool.
    """

    threshold: NDArray[np.int32] = field(metadata=array(np.int32, per_filter))
    flip: NDArray[np.bool_] = field(metadata=array(np.bool_, per_filter))


@dataclass(frozen=True, eq=False)
class OfPixels(Conv2d):
    """What convolutions of 8-bit pixels with ±1 weights share; integer adds only.

    A pixel p counts as the integer ``levels[p]``; a padding pixel counts as 0.

    Attributes:
        levels: (256,) int16, all of them in 0..255 or all in -128..127; the identity for nets trained here.
    """

    takes = "pixels"
    operands = "bytes"
    levels: NDArray[np.int16] = field(
        kw_only=True,
        default_factory=lambda: np.arange(256, dtype=np.int16),
        metadata=array(np.int16, lambda sizes: (256,), is_parameter=False),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = int(self.levels.min()), int(self.levels.max())
        if not (0 <= low and high <= 255) and not (-128 <= low and high <= 127):
            raise ModelError(f"{self.name}.levels lie in {low}..{high}; they must fit uint8 or int8")

    @property
    def max_dot(self) -> int:
        return self.fan_in * int(np.abs(self.levels).max())


@dataclass(frozen=True, eq=False)
class OfBits(Conv2d):
    """What convolutions of bits with bits share.

    Attributes:
        padding_value: what lies outside the input: -1 (how nets are trained here), 0 or 1 (nets from elsewhere).
    """

    padding_value: int = field(kw_only=True, default=-1, metadata=choice(-1, 0, 1))

    def border_correction(self, shape: Shape) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
        """What to add to a dot product that was padded with -1 so that it is padded with ``padding_value``.

        A tap outside the input gave -w and should give ``padding_value * w``, so that multiple of w is added, the sum
        over the outside taps. Which taps lie outside depends on the row and on the column alone, and few rows and
        columns differ.

        Args:
            shape: of the layer's input.

        Returns:
            row: (conv height,) index into the table; column: (conv width,) likewise; table: (rows, columns,
            out_channels) int32. Where padding_value is -1 the table is one zero entry.
        """
        height, width, _ = self.conv_shape(shape)
        if self.padding_value == -1 or not any(self.padding):
            return (
                np.zeros(height, dtype=np.intp),
                np.zeros(width, dtype=np.intp),
                np.zeros((1, 1, self.out_channels), dtype=np.int32),
            )
        (patterns_y, row), (patterns_x, column) = (
            inside_patterns(shape, self.kernel, self.stride, self.padding, axis) for axis in (0, 1)
        )
        tap_sum = bits.signs(self.weights, self.in_channels).sum(axis=-1)  # (out, kernel y, kernel x)
        window = np.einsum(
            "oyx,ry,cx->rco", tap_sum, patterns_y.astype(np.int32), patterns_x.astype(np.int32)
        )
        table = (self.padding_value + 1) * (tap_sum.sum(axis=(1, 2)) - window)
        return row, column, table.astype(np.int32)


@dataclass(frozen=True, eq=False)
class InputConv2d(OfPixels, SignConv2d):
    """Convolution of 8-bit pixels with ±1 weights, to bits."""

    kind = "input_conv2d"
    precision = "8 x 1 -> 1"


@dataclass(frozen=True, eq=False)
class BinaryConv2d(OfBits, SignConv2d):
    """Convolution of bits with bits, to bits."""

    kind = "binary_conv2d"


@dataclass(frozen=True, eq=False)
class FullyConnected(Layer):
    """What all fully connected layers share.

    The input is flattened as it lies in memory, (height, width, words), each pixel's spare bits included.

    Attributes:
        in_shape: (height, width, channels) of the input.
        weights: (out_features, height * width * words_for(channels)) uint32.
    """

    in_shape: Shape = field(metadata=wholes(3, 1, MAX_CHANNELS))
    out_features: int = field(metadata=whole(1, MAX_CHANNELS))
    weights: NDArray[np.uint32] = field(
        metadata=array(
            np.uint32,
            lambda sizes: (
                sizes.out_features,
                sizes.in_shape[0] * sizes.in_shape[1] * bits.words_for(sizes.in_shape[2]),
            ),
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.weights.reshape(self.out_features, -1, self.pixel_words)
        check_spare(self.name, weights, self.in_shape[2])

    @property
    def pixel_words(self) -> int:
        """Words that one input pixel takes."""
        return bits.words_for(self.in_shape[2])

    @property
    def fan_in(self) -> int:
        return math.prod(self.in_shape)

    @property
    def outputs(self) -> int:
        return self.out_features

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        self._expect("in_shape", list(self.in_shape), list(shape))
        return 1, 1, self.out_features

    def macs(self, shape: Shape, *others: Shape) -> int:
        return self.fan_in * self.out_features


def _features(sizes: Any) -> tuple[int, ...]:
    return (sizes.out_features,)


@dataclass(frozen=True, eq=False)
class BinaryDense(FullyConnected):
    """Fully connected layer from bits to bits: ``bit = (weights . x >= threshold) ^ flip``.

    Attributes:
        threshold: (out_features,) int32.
        flip: (out_features,) bool.
    """

    kind = "binary_dense"
    threshold: NDArray[np.int32] = field(metadata=array(np.int32, _features))
    flip: NDArray[np.bool_] = field(metadata=array(np.bool_, _features))


@dataclass(frozen=True, eq=False)
class OutputDense(FullyConnected):
    """The last layer, from bits to logits: ``logit = scale * (weights . x) + bias``.

    The product and the sum are rounded to float32 one after the other, so that every backend gives the same bits.

    Attributes:
        scale, bias: (out_features,) float32.
    """

    kind = "output_dense"
    gives = "logits"
    precision = "1 x 1 -> float"
    scale: NDArray[np.float32] = field(metadata=array(np.float32, _features))
    bias: NDArray[np.float32] = field(metadata=array(np.float32, _features))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "scale", "bias")


@dataclass(frozen=True, eq=False)
class OutputBits(BinaryDense):
    """A last layer whose outputs are bits, as nets from elsewhere have: ``logit = scale * bit + bias``, bit 0 or 1.

    The logit is ``bias`` for a 0 and the float32 sum ``scale + bias`` for a 1.

    Attributes:
        scale, bias: (out_features,) float32.
    """

    kind = "output_bits"
    gives = "logits"
    scale: NDArray[np.float32] = field(metadata=array(np.float32, _features))
    bias: NDArray[np.float32] = field(metadata=array(np.float32, _features))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "scale", "bias")


def check_spare(name: str, weights: NDArray[np.uint32], channels: int) -> None:
    if np.any(weights & ~bits.spare_mask(channels)):
        raise ModelError(f"{name}.weights: a spare bit is set; bits past channel {channels} must be 0")
