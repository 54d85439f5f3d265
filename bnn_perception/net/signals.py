"""The kinds of layers that give or take a *signal*: the real values that lie between two signs of a net.

A signal is float32, and each operation on it is rounded once, to the nearest: no fused multiply-add, no reordered sum.
A layer's docstring states its operations in their order; ``mul``, ``add``, ``div`` and ``float`` are those of float32
(IEEE 754). Sums whose operands are whole numbers are exact. So every backend gives the same values, and a deep net is
as near to its float64 original as float32 can be. Zeros of either sign are the same value.

:class:`~bnn_perception.net.model.Model` proves from the layers' :meth:`~bnn_perception.net.layer.Layer.bound` that no
value can leave float32: there are no infinities and no NaN. The table of all kinds stands at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.checks import MAX_CHANNELS, MAX_INPUTS, MAX_KERNEL, MAX_SIDE, ModelError
from bnn_perception.net.fields import array, check_finite, flag, pair_or_pads, whole, wholes
from bnn_perception.net.layer import Layer, Pads, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    OfBits,
    OfPixels,
    OutputBits,
    OutputDense,
    Thermometer,
    per_filter,
)
from bnn_perception.net.windows import check_pads, inside_patterns, pads, window_text, windows_shape

Bounds = Sequence[NDArray[np.float64]]

#: Weights of a :class:`RealInputConv2d` have at most this magnitude: three signed bytes hold them, digit by digit.
MAX_PIXEL_WEIGHT = 127 * (1 + (1 << 8) + (1 << 16))


# -- convolutions


@dataclass(frozen=True, eq=False)
class Scaled(Conv2d):
    """What convolutions with ±1 weights that give a signal share: ``y = add(mul(scale, float(dot)), bias)``.

    Attributes:
        scale, bias: (out_channels,) float32; batch norm, for example.
    """

    gives = "signal"
    scale: NDArray[np.float32] = field(metadata=array(np.float32, per_filter))
    bias: NDArray[np.float32] = field(metadata=array(np.float32, per_filter))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "scale", "bias")

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return _magnitude(self.scale) * self.max_dot + _magnitude(self.bias)


@dataclass(frozen=True, eq=False)
class ScaledInputConv2d(OfPixels, Scaled):
    """Convolution of 8-bit pixels with ±1 weights, to a signal."""

    kind = "scaled_input_conv2d"
    precision = "8 x 1 -> 32"


@dataclass(frozen=True, eq=False)
class ScaledBinaryConv2d(OfBits, Scaled):
    """Convolution of bits with bits, to a signal."""

    kind = "scaled_binary_conv2d"
    precision = "1 x 1 -> 32"


@dataclass(frozen=True, eq=False)
class GroupedConv2d(Layer):
    """What convolutions with other weights than ±1 share.

    Group g of the filters takes group g of the input's channels.

    Attributes:
        kernel, stride, padding: as those of :class:`~bnn_perception.net.layers.Conv2d`.
        groups: divides in_channels and out_channels; in_channels of them make it depthwise.
    """

    gives = "signal"
    in_channels: int = field(metadata=whole(1, MAX_CHANNELS))
    out_channels: int = field(metadata=whole(1, MAX_CHANNELS))
    kernel: tuple[int, int] = field(metadata=wholes(2, 1, MAX_KERNEL))
    stride: tuple[int, int] = field(metadata=wholes(2, 1, MAX_KERNEL))
    padding: tuple[int, ...] = field(metadata=pair_or_pads())
    groups: int = field(metadata=whole(1, MAX_CHANNELS))

    def __post_init__(self) -> None:
        for what, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ModelError(
                    f"{self.name}.groups is {self.groups}, which does not divide {what} {channels}"
                )
        super().__post_init__()
        check_pads(self.name, self.kernel, self.padding)

    @property
    def group_channels(self) -> int:
        """Channels of the input that one filter takes."""
        return self.in_channels // self.groups

    @property
    def fan_in(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.group_channels

    @property
    def outputs(self) -> int:
        return self.out_channels

    @property
    def border(self) -> Pads:
        return pads(self.padding)

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        self._expect("in_channels", self.in_channels, shape[2])
        height, width = windows_shape(self.name, shape, self.kernel, self.stride, self.padding)
        return height, width, self.out_channels

    def macs(self, shape: Shape, *others: Shape) -> int:
        return math.prod(self.output_shape(shape)) * self.fan_in

    @property
    def detail(self) -> str:
        text = window_text(self.kernel, self.stride, self.padding)
        return text if self.groups == 1 else f"{text} g{self.groups}"


def _grouped_weights(sizes: Any) -> tuple[int, ...]:
    return (sizes.out_channels, *sizes.kernel, sizes.in_channels // max(sizes.groups, 1))


@dataclass(frozen=True, eq=False)
class RealConv2d(GroupedConv2d):
    """Convolution of a signal with real weights, a matrix among them: a kernel as large as its input.

    The sum begins with 0, takes ``mul(x, weight)`` of each tap in the order (kernel y, kernel x, channel), each rounded
    and then added, and at last ``bias``. What lies outside the input counts as 0.

    Attributes:
        weights: (out_channels, kernel y, kernel x, in_channels / groups) float32.
        bias: (out_channels,) float32.
    """

    kind = "real_conv2d"
    takes = "signal"
    operands = "reals"
    precision = "32 x 32 -> 32"
    weights: NDArray[np.float32] = field(metadata=array(np.float32, _grouped_weights))
    bias: NDArray[np.float32] = field(metadata=array(np.float32, per_filter))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "weights", "bias")

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        by_group = before[0].reshape(self.groups, self.group_channels)
        of_filter = np.repeat(by_group, self.out_channels // self.groups, axis=0)  # (out, in / groups)
        return np.einsum("oyxc,oc->o", _magnitude(self.weights), of_filter) + _magnitude(self.bias)


@dataclass(frozen=True, eq=False)
class RealInputConv2d(GroupedConv2d):
    """Convolution of 8-bit pixels with real weights, which are whole numbers times a scale of their filter.

    ::

        sum = sum over the taps inside of pixel * weights        exact, in 64 bits
        y   = add(mul(scale, float(sum)), offset)

    A tap outside counts as the level ``outside`` of its channel: the mean that normalization takes off, so that
    normalized pixels are padded with 0. It need not be whole; :meth:`offsets` is where it goes.

    With s the scale, a weight is off by at most s / 2, which is about 2^-24 of the largest of its filter: what float32
    itself would keep of them. Against float64, y is off by at most ``s / 2 * sum(pixel)`` from the weights and three
    roundings to float32.

    Attributes:
        weights: (out_channels, kernel y, kernel x, in_channels / groups) int32, at most :data:`MAX_PIXEL_WEIGHT`.
        scale: (out_channels,) float32.
        bias: (out_channels,) float32, added to the sum over all taps.
        outside: (in_channels,) float32.
    """

    kind = "real_input_conv2d"
    takes = "pixels"
    operands = "bytes"
    precision = "8 x 24 -> 32"
    weights: NDArray[np.int32] = field(metadata=array(np.int32, _grouped_weights))
    scale: NDArray[np.float32] = field(metadata=array(np.float32, per_filter))
    bias: NDArray[np.float32] = field(metadata=array(np.float32, per_filter))
    outside: NDArray[np.float32] = field(metadata=array(np.float32, lambda sizes: (sizes.in_channels,)))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "scale", "bias", "outside")
        low, high = int(self.weights.min()), int(self.weights.max())
        if max(-low, high) > MAX_PIXEL_WEIGHT:
            raise ModelError(f"{self.name}.weights lie in {low}..{high}; at most {MAX_PIXEL_WEIGHT} is kept")

    def offsets(self, shape: Shape) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        """What is added to the scaled sum over the taps inside: the bias, and the taps outside at their level.

        ``bias + scale * sum over the taps outside of outside * weight``, in float64, tap by tap in the order
        (kernel y, kernel x, channel), rounded to float32 once.

        Args:
            shape: of the layer's input.

        Returns:
            row: (out height,) index into the table; column: (out width,) likewise; table: (rows, columns,
            out_channels) float32.
        """
        (patterns_y, row), (patterns_x, column) = (
            inside_patterns(shape, self.kernel, self.stride, self.padding, axis) for axis in (0, 1)
        )
        level = self.outside.astype(np.float64).reshape(self.groups, self.group_channels)
        of_filter = np.repeat(level, self.out_channels // self.groups, axis=0)  # (out, in / groups)
        table = np.zeros((len(patterns_y), len(patterns_x), self.out_channels))
        for y in range(self.kernel[0]):
            for x in range(self.kernel[1]):
                is_outside = ~(patterns_y[:, None, y] & patterns_x[None, :, x])
                for channel in range(self.group_channels):
                    term = of_filter[:, channel] * self.weights[:, y, x, channel]
                    table += is_outside[..., None] * term
        table = self.bias + self.scale.astype(np.float64) * table
        return row, column, table.astype(np.float32)

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        # Taps inside are at most 255, taps outside at their level.
        level = np.maximum(before[0], _magnitude(self.outside)).reshape(self.groups, self.group_channels)
        of_filter = np.repeat(level, self.out_channels // self.groups, axis=0)
        sums = np.einsum("oyxc,oc->o", _magnitude(self.weights), of_filter)
        return np.maximum(sums, 1) * np.maximum(_magnitude(self.scale), 1) + _magnitude(self.bias)


# -- value by value


def per_channel(sizes: Any) -> tuple[int, ...]:
    """The shape of an array with a value for each channel."""
    return (sizes.channels,)


@dataclass(frozen=True, eq=False)
class Elementwise(Layer):
    """What layers that change each value by itself share."""

    takes = "signal"
    gives: ClassVar[Any] = "signal"
    operands = "nothing"
    precision = "32 -> 32"
    channels: int = field(metadata=whole(1, MAX_CHANNELS))

    @property
    def fan_in(self) -> int:
        return 0

    @property
    def outputs(self) -> int:
        return self.channels

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        self._expect("channels", self.channels, shape[2])
        return shape

    def macs(self, shape: Shape, *others: Shape) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Affine(Elementwise):
    """``y = add(mul(scale, x), bias)``: batch norm, or the shifts of RSign and RPReLU (arXiv 2003.03488).

    Attributes:
        scale, bias: (channels,) float32.
    """

    kind = "affine"
    scale: NDArray[np.float32] = field(metadata=array(np.float32, per_channel))
    bias: NDArray[np.float32] = field(metadata=array(np.float32, per_channel))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "scale", "bias")

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return _magnitude(self.scale) * before[0] + _magnitude(self.bias)


@dataclass(frozen=True, eq=False)
class PRelu(Elementwise):
    """``y = x`` where ``x >= 0``, otherwise ``mul(slope, x)``; slopes of 0 are ReLU.

    Attributes:
        slope: (channels,) float32.
    """

    kind = "prelu"
    slope: NDArray[np.float32] = field(metadata=array(np.float32, per_channel))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "slope")

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return np.maximum(_magnitude(self.slope), 1) * before[0]


@dataclass(frozen=True, eq=False)
class Clip(Elementwise):
    """``y = min(max(x, low), high)``: Hardtanh, ReLU6.

    Attributes:
        low, high: (channels,) float32, ``low <= high``.
    """

    kind = "clip"
    low: NDArray[np.float32] = field(metadata=array(np.float32, per_channel))
    high: NDArray[np.float32] = field(metadata=array(np.float32, per_channel))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.name, self, "low", "high")
        if np.any(self.low > self.high):
            channel = int(np.argmax(self.low > self.high))
            raise ModelError(
                f"{self.name}: low {self.low[channel]:g} is above high {self.high[channel]:g} in channel {channel}"
            )

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        # It rises: between the values of the ends.
        ends = (np.clip(end, self.low, self.high) for end in (-before[0], before[0]))
        return np.maximum(*map(_magnitude, ends))


@dataclass(frozen=True, eq=False)
class Sign(Elementwise):
    """``bit = (x >= threshold) ^ flip``, from a signal to bits.

    Attributes:
        threshold: (channels,) float32, infinities among them: no value reaches +inf, every value -inf.
        flip: (channels,) bool.
    """

    kind = "sign"
    gives = "bits"
    precision = "32 -> 1"
    threshold: NDArray[np.float32] = field(metadata=array(np.float32, per_channel))
    flip: NDArray[np.bool_] = field(metadata=array(np.bool_, per_channel))

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.any(np.isnan(self.threshold)):
            raise ModelError(f"{self.name}.threshold holds a value that is not a number")


# -- several signals, and channels


@dataclass(frozen=True, eq=False)
class Rearrangement(Layer):
    """What layers without parameters share."""

    takes = "signal"
    gives = "signal"
    operands = "nothing"
    precision = "32 -> 32"
    channels: int = field(metadata=whole(1, MAX_CHANNELS))

    @property
    def fan_in(self) -> int:
        return 0

    @property
    def outputs(self) -> int:
        return self.channels

    def macs(self, shape: Shape, *others: Shape) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Add(Rearrangement):
    """``y = add(x0, x1)``: a shortcut.

    Attributes:
        channels: of either input.
    """

    kind = "add"
    fewest = most = 2

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        for other in others:
            if other != shape:
                raise ModelError(f"{self.name}: adds {list(other)} to {list(shape)}")
        self._expect("channels", self.channels, shape[2])
        return shape

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return before[0] + before[1]


@dataclass(frozen=True, eq=False)
class Concat(Rearrangement):
    """The channels of its inputs, one input after the other; the same input may stand more than once.

    Attributes:
        channels: of all inputs together.
    """

    kind = "concat"
    fewest, most = 2, MAX_INPUTS

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        for other in others:
            if other[:2] != shape[:2]:
                raise ModelError(f"{self.name}: puts {list(other)} beside {list(shape)}")
        self._expect("channels", self.channels, shape[2] + sum(other[2] for other in others))
        return (*shape[:2], self.channels)

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return np.concatenate(before)


@dataclass(frozen=True, eq=False)
class ChannelPad(Rearrangement):
    """Channels of zeros before and after those of its input (shortcut A of ResNet, arXiv 1512.03385).

    Attributes:
        channels: of its output.
        before, after: channels of zeros.
    """

    kind = "channel_pad"
    before: int = field(metadata=whole(0, MAX_CHANNELS))
    after: int = field(metadata=whole(0, MAX_CHANNELS))

    @property
    def detail(self) -> str:
        return f"+{self.before} +{self.after}"

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        self._expect("channels", self.channels, shape[2] + self.before + self.after)
        return (*shape[:2], self.channels)

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return np.pad(before[0], (self.before, self.after))


# -- pooling


@dataclass(frozen=True, eq=False)
class Pool2d(Layer):
    """What pooling layers share.

    Attributes:
        channels: of input and output.
        kernel, stride: (y, x) each; a kernel of one pixel takes every ``stride``-th pixel.
        padding: (y, x) on both sides, or (top, left, bottom, right).
    """

    takes: ClassVar[Any] = "signal"
    gives: ClassVar[Any] = "signal"
    operands = "nothing"
    precision = "32 -> 32"
    channels: int = field(metadata=whole(1, MAX_CHANNELS))
    kernel: tuple[int, int] = field(metadata=wholes(2, 1, MAX_SIDE))
    stride: tuple[int, int] = field(metadata=wholes(2, 1, MAX_SIDE))
    padding: tuple[int, ...] = field(metadata=pair_or_pads())

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pads(self.name, self.kernel, self.padding)

    @property
    def fan_in(self) -> int:
        return 0

    @property
    def outputs(self) -> int:
        return self.channels

    @property
    def border(self) -> Pads:
        return pads(self.padding)

    @property
    def detail(self) -> str:
        return window_text(self.kernel, self.stride, self.padding)

    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        self._expect("channels", self.channels, shape[2])
        height, width = windows_shape(self.name, shape, self.kernel, self.stride, self.padding)
        return height, width, self.channels

    def macs(self, shape: Shape, *others: Shape) -> int:
        return 0

    def operations(self, shape: Shape, *others: Shape) -> int:
        return math.prod(self.output_shape(shape)) * math.prod(self.kernel)


@dataclass(frozen=True, eq=False)
class MaxPool(Pool2d):
    """The largest value of each window; what lies outside the input does not count."""

    kind = "max_pool"

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return before[0]


@dataclass(frozen=True, eq=False)
class BinaryMaxPool(Pool2d):
    """The largest sign of each window: OR of its bits; what lies outside the input does not count."""

    kind = "binary_max_pool"
    takes = "bits"
    gives = "bits"
    precision = "1 -> 1"


@dataclass(frozen=True, eq=False)
class AveragePool(Pool2d):
    """``y = div(sum, float(count))`` of each window.

    The sum begins with 0 and takes the window's values inside the input, rounded each time, row by row and from left to
    right.

    Attributes:
        counts_padding: whether ``count`` is that of all pixels of the window, or of those inside the input.
    """

    kind = "average_pool"
    counts_padding: bool = field(metadata=flag())

    def counts(self, shape: Shape) -> NDArray[np.int32]:
        """(out height, out width) int32: by what the sum of each window is divided."""
        inside = [
            patterns.sum(axis=1)[index]
            for axis in (0, 1)
            for patterns, index in [inside_patterns(shape, self.kernel, self.stride, self.padding, axis)]
        ]
        counts = np.multiply.outer(*inside)
        if self.counts_padding:
            counts = np.full_like(counts, math.prod(self.kernel))
        return counts.astype(np.int32)

    def bound(self, before: Bounds) -> NDArray[np.float64]:
        return before[0] * math.prod(self.kernel)


def _magnitude(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.abs(values.astype(np.float64))


#: Every kind of layer, by its name in ``model.yaml``.
LAYER_KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        Thermometer,
        InputConv2d,
        ScaledInputConv2d,
        RealInputConv2d,
        BinaryConv2d,
        ScaledBinaryConv2d,
        RealConv2d,
        Affine,
        PRelu,
        Clip,
        Sign,
        Add,
        Concat,
        ChannelPad,
        MaxPool,
        BinaryMaxPool,
        AveragePool,
        BinaryDense,
        OutputDense,
        OutputBits,
    )
}
