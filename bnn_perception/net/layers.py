"""The kinds of layers: each one's fields, arrays, shapes, operations and validation, in one record a kind.

Whoever needs to know something about a layer asks its record: a backend lowers it by a table of its own from
:data:`LAYER_KINDS` to functions, and nothing else distinguishes between kinds. ``test/unit/test_layer_kinds.py`` names
what a new kind still lacks.

A layer is a frozen dataclass. Its scalars stand in ``model.yaml``, its arrays in ``binary.npz`` as
``<layer>.<array>``. Activations between layers are (height, width, words) ``uint32`` as :mod:`bnn_perception.net.bits`
defines them; a layer with a *residual* (:class:`WithResidual`) also hands on an integer of each channel, for the
shortcut of the layer that follows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net import bits
from bnn_perception.net.checks import MAX_CHANNELS, MAX_KERNEL, MAX_RESIDUAL, ModelError, check_whole
from bnn_perception.net.fields import (
    array,
    arrays,
    check_arrays,
    check_finite,
    check_scalars,
    choice,
    optional,
    whole,
    wholes,
)

Shape = tuple[int, int, int]
"""(height, width, channels) of an activation."""

#: What a residual convolution adds of the residual before it (see :class:`ResidualConv2d`), with the side of the square
#: window that it averages; 0 adds nothing. The kernels take the side as their macro SHORTCUT.
SHORTCUTS = {"none": 0, "identity": 1, "average_pool": 2}


@dataclass(frozen=True)
class Pool:
    """Max pooling of the integers before the threshold, without padding; windows are square."""

    size: int = field(metadata=whole(1, MAX_KERNEL))
    stride: int = field(metadata=whole(1, MAX_KERNEL))

    def length(self, before: int) -> int:
        """How many windows fit into ``before`` pixels."""
        return (before - self.size) // self.stride + 1


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """What every layer is asked for.

    Attributes:
        kind: its name in ``model.yaml``.
        takes: ``pixels`` (the first layer, and no other) or ``bits``.
        gives: ``bits`` or ``logits`` (the last layer, and no other).
        operands: what it multiplies: ``bits`` by bits, ``bytes`` by signs, or ``nothing``.
        precision: bits of activation x weight -> output, as ``inspect`` prints them.
        has_residual: whether it gives, beside its bits, an int32 of each channel.
        name: of the layer, unique in its model.
    """

    kind: ClassVar[str]
    takes: ClassVar[Literal["pixels", "bits"]] = "bits"
    gives: ClassVar[Literal["bits", "logits"]] = "bits"
    operands: ClassVar[Literal["bits", "bytes", "nothing"]] = "bits"
    precision: ClassVar[str] = "1 x 1 -> 1"
    has_residual: ClassVar[bool] = False
    name: str

    def __post_init__(self) -> None:
        check_scalars(self.name, self)
        check_arrays(self.name, self)

    @property
    @abstractmethod
    def fan_in(self) -> int:
        """Number of products in one dot product."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Channels of its output: filters, features or classes."""

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Shape of its output for an input of ``shape``.

        Raises:
            ModelError: where it cannot take such an input.
        """

    @abstractmethod
    def macs(self, shape: Shape) -> int:
        """Multiply-accumulates for an input of ``shape``."""

    @property
    def detail(self) -> str:
        """Its geometry in a few characters, for a table."""
        return ""

    @property
    def has_weights(self) -> bool:
        """Whether it multiplies: a float net has a layer for it."""
        return self.operands != "nothing"

    @property
    def border(self) -> tuple[int, int]:
        """Rows above and below, and columns left and right, that it reads around its input."""
        return (0, 0)

    @property
    def added_shortcut(self) -> str:
        """What it adds of the residual of the layer before, one of :data:`SHORTCUTS`."""
        return "none"

    @property
    def reads_residual(self) -> bool:
        """Whether it adds the residual of the layer before, which no other layer can."""
        return self.added_shortcut != "none"

    def max_residual(self, before: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """The largest magnitude that each channel of its residual, and any sum of some of its terms, can have.

        Args:
            before: that of the residual of the layer before, (in_channels,) float64; None where that has none.

        Returns:
            (out_channels,) float64, exact as far as int32 reaches; None for a layer without a residual.

        Raises:
            ModelError: where a shortcut gets no residual, or the sums can leave int32.
        """
        return None

    def array_values(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name, in the order in which they are stored."""
        return {name: getattr(self, name) for name in arrays(type(self))}

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the arrays that training chose."""
        return sum(getattr(self, name).nbytes for name, a in arrays(type(self)).items() if a.is_parameter)

    def _expect(self, what: str, stated: object, actual: object) -> None:
        if stated != actual:
            raise ModelError(f"{self.name}: {what} is {stated}, but its input has {actual}")


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

    def output_shape(self, shape: Shape) -> Shape:
        self._expect("channels", self.channels, shape[2])
        return shape[0], shape[1], self.outputs

    def macs(self, shape: Shape) -> int:
        return 0

    @property
    def detail(self) -> str:
        return f"{self.levels} a channel"


def _filters(sizes: Any) -> tuple[int, ...]:
    return (sizes.out_channels,)


@dataclass(frozen=True, eq=False)
class Conv2d(Layer):
    """What all convolutions share: ``bit = (maxpool(conv(x)) >= threshold) ^ flip``.

    Attributes:
        kernel, stride, padding: (y, x) each; padding is symmetric.
        pool: max pooling of the integers, or None.
        weights: (out_channels, kernel y, kernel x, words_for(in_channels)) uint32.
        threshold: (out_channels,) int32.
        flip: (out_channels,) bool.
    """

    in_channels: int = field(metadata=whole(1, MAX_CHANNELS))
    out_channels: int = field(metadata=whole(1, MAX_CHANNELS))
    kernel: tuple[int, int] = field(metadata=wholes(2, 1, MAX_KERNEL))
    stride: tuple[int, int] = field(metadata=wholes(2, 1, MAX_KERNEL))
    padding: tuple[int, int] = field(metadata=wholes(2))
    pool: Pool | None = field(metadata=optional(Pool))
    weights: NDArray[np.uint32] = field(
        metadata=array(
            np.uint32,
            lambda sizes: (sizes.out_channels, *sizes.kernel, bits.words_for(sizes.in_channels)),
        )
    )
    threshold: NDArray[np.int32] = field(metadata=array(np.int32, _filters))
    flip: NDArray[np.bool_] = field(metadata=array(np.bool_, _filters))

    def __post_init__(self) -> None:
        super().__post_init__()
        for kernel, padding in zip(self.kernel, self.padding):
            check_whole(f"{self.name}.padding", padding, 0, kernel - 1)
        _check_spare(self.name, self.weights, self.in_channels)

    @property
    def fan_in(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.in_channels

    @property
    def outputs(self) -> int:
        return self.out_channels

    @property
    def border(self) -> tuple[int, int]:
        return self.padding

    @property
    def window(self) -> Pool:
        """Its pool, or the pool of single pixels that changes nothing."""
        return self.pool or Pool(1, 1)

    def conv_shape(self, shape: Shape) -> Shape:
        """Shape of the integers before the pool."""
        self._expect("in_channels", self.in_channels, shape[2])
        height, width = (
            (shape[axis] + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1
            for axis in (0, 1)
        )
        if height < 1 or width < 1:
            raise ModelError(
                f"{self.name}: kernel {list(self.kernel)} is larger than its padded input {list(shape[:2])}"
            )
        return height, width, self.out_channels

    def output_shape(self, shape: Shape) -> Shape:
        height, width, channels = self.conv_shape(shape)
        height, width = self.window.length(height), self.window.length(width)
        if height < 1 or width < 1:
            raise ModelError(f"{self.name}: pool.size {self.window.size} is larger than its input")
        return height, width, channels

    def macs(self, shape: Shape) -> int:
        return math.prod(self.conv_shape(shape)) * self.fan_in

    @property
    def detail(self) -> str:
        kernel, stride, padding = (
            f"{y}x{x}" if y != x else str(y) for y, x in (self.kernel, self.stride, self.padding)
        )
        text = f"k{kernel}"
        if stride != "1":
            text += f" s{stride}"
        if padding != "0":
            text += f" p{padding}"
        if self.pool is not None:
            same = self.pool.stride == self.pool.size
            text += f" pool{self.pool.size}" + ("" if same else f"/{self.pool.stride}")
        if self.reads_residual:
            text += f" + {self.added_shortcut}"
        return text


@dataclass(frozen=True, eq=False)
class InputConv2d(Conv2d):
    """Convolution of 8-bit pixels with +-1 weights; integer adds only.

    A pixel p counts as the integer ``levels[p]``; a padding pixel counts as 0.

    Attributes:
        levels: (256,) int16, all of them in 0..255 or all in -128..127; the identity for nets trained here.
    """

    kind = "input_conv2d"
    takes = "pixels"
    operands = "bytes"
    precision = "8 x 1 -> 1"
    levels: NDArray[np.int16] = field(
        default_factory=lambda: np.arange(256, dtype=np.int16),
        metadata=array(np.int16, lambda sizes: (256,), is_parameter=False),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = int(self.levels.min()), int(self.levels.max())
        if not (0 <= low and high <= 255) and not (-128 <= low and high <= 127):
            raise ModelError(f"{self.name}.levels lie in {low}..{high}; they must fit uint8 or int8")


@dataclass(frozen=True, eq=False)
class BinaryConv2d(Conv2d):
    """Convolution of bits with bits.

    Attributes:
        padding_value: what lies outside the input: -1 (how nets are trained here) or 0 (nets from elsewhere).
    """

    kind = "binary_conv2d"
    padding_value: int = field(default=-1, metadata=choice(-1, 0))

    def border_correction(self, shape: Shape) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
        """What to add to a dot product that was padded with -1 so that it is padded with ``padding_value``.

        A tap outside the input gave -w and should give 0, so w is added, the sum over the outside taps. Which taps
        lie outside depends on the row and on the column alone, and few rows and columns differ.

        Args:
            shape: of the layer's input.

        Returns:
            row: (conv height,) index into the table; column: (conv width,) likewise; table: (rows, columns,
            out_channels) int32. Where padding_value is -1 the table is one zero entry.
        """
        height, width, _ = self.conv_shape(shape)
        if self.padding_value == -1 or self.padding == (0, 0):
            return (
                np.zeros(height, dtype=np.intp),
                np.zeros(width, dtype=np.intp),
                np.zeros((1, 1, self.out_channels), dtype=np.int32),
            )
        inside = []
        for axis, length in ((0, height), (1, width)):
            tap = (
                np.arange(length)[:, None] * self.stride[axis]
                - self.padding[axis]
                + np.arange(self.kernel[axis])
            )
            inside.append((tap >= 0) & (tap < shape[axis]))
        patterns_y, row = np.unique(inside[0], axis=0, return_inverse=True)
        patterns_x, column = np.unique(inside[1], axis=0, return_inverse=True)
        tap_sum = bits.signs(self.weights, self.in_channels).sum(axis=-1)  # (out, kernel y, kernel x)
        window = np.einsum(
            "oyx,ry,cx->rco", tap_sum, patterns_y.astype(np.int32), patterns_x.astype(np.int32)
        )
        table = tap_sum.sum(axis=(1, 2)) - window
        return row.reshape(-1), column.reshape(-1), table.astype(np.int32)


@dataclass(frozen=True, eq=False, kw_only=True)
class WithResidual(Conv2d):
    """A convolution whose output is an integer of each channel, the residual, and the bits of it::

        dot    = maxpool(conv(x))
        y      = m * dot + offset (+ shortcut),  m = multiplier where dot >= 0, otherwise negative_multiplier
        bit    = (y >= threshold) ^ flip

    A multiplier and an offset are batch norm in fixed point; where the point lies is for the threshold and the other
    layers to agree on, the format knows integers alone. ``negative_multiplier == multiplier`` is the plain batch norm,
    0 is ReLU before it (QuickNet), any other value PReLU with a slope of its own for each channel. A threshold of
    each channel is RSign of ReActNet (arXiv 2003.03488).

    Attributes:
        multiplier, negative_multiplier, offset: (out_channels,) int32.
        threshold: in units of the residual.
    """

    has_residual = True
    multiplier: NDArray[np.int32] = field(metadata=array(np.int32, _filters))
    negative_multiplier: NDArray[np.int32] = field(metadata=array(np.int32, _filters))
    offset: NDArray[np.int32] = field(metadata=array(np.int32, _filters))

    @property
    def max_dot(self) -> int:
        """The largest magnitude of a dot product: of bits unless a subclass says otherwise."""
        return self.fan_in

    def max_residual(self, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
        multiplier, negative = (
            np.abs(values.astype(np.float64)) for values in (self.multiplier, self.negative_multiplier)
        )
        result = self.max_dot * np.maximum(multiplier, negative) + np.abs(self.offset.astype(np.float64))
        result = result + self._max_shortcut(before)
        _check_int32(self.name, result, "of its residual")
        return result

    def _max_shortcut(self, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """The largest magnitude of what is added to each channel."""
        return np.zeros(self.out_channels)


@dataclass(frozen=True, eq=False)
class InputResidualConv2d(InputConv2d, WithResidual):
    """An :class:`InputConv2d` that gives the first residual of a net."""

    kind = "input_stream_conv2d"
    precision = "8 x 1 -> 1, 32"

    @property
    def max_dot(self) -> int:
        return self.fan_in * int(np.abs(self.levels).max())


@dataclass(frozen=True, eq=False)
class ResidualConv2d(BinaryConv2d, WithResidual):
    """A :class:`BinaryConv2d` with a residual, to which it adds a shortcut from the residual of the layer before it.

    Attributes:
        shortcut: ``none`` adds nothing; ``identity`` the residual as it is; ``average_pool`` the means of its windows
            of 2x2, as ``sum >> 2`` (rounded down, of a negative sum too), an odd last row or column left out. Where
            the layer has n times as many channels as the residual, channel c gets channel ``c % in_channels``.
    """

    kind = "residual_conv2d"
    precision = "1 x 1 -> 1, 32"
    shortcut: str = field(kw_only=True, metadata=choice(*SHORTCUTS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads_residual and self.out_channels % self.in_channels:
            raise ModelError(
                f"{self.name}: out_channels {self.out_channels} is not a multiple of in_channels {self.in_channels}, "
                "as a shortcut needs"
            )

    @property
    def added_shortcut(self) -> str:
        return self.shortcut

    def output_shape(self, shape: Shape) -> Shape:
        result = super().output_shape(shape)
        if self.reads_residual:
            side = SHORTCUTS[self.shortcut]
            added = (shape[0] // side, shape[1] // side)
            if added != result[:2]:
                raise ModelError(
                    f"{self.name}: shortcut {self.shortcut} is {list(added)}, "
                    f"but the convolution gives {list(result[:2])}"
                )
        return result

    def _max_shortcut(self, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
        if not self.reads_residual:
            return super()._max_shortcut(before)
        if before is None:
            kinds = " and no ".join(kind for kind, cls in LAYER_KINDS.items() if cls.has_residual)
            raise ModelError(
                f"{self.name}: shortcut {self.shortcut} needs a residual, but the layer before is no {kinds}"
            )
        if self.shortcut == "average_pool":
            _check_int32(
                self.name, 4 * before, "of the residual that its shortcut averages, summed over 2x2 pixels,"
            )
        return np.tile(before, self.out_channels // self.in_channels)


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
        _check_spare(self.name, weights, self.in_shape[2])

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

    def output_shape(self, shape: Shape) -> Shape:
        self._expect("in_shape", list(self.in_shape), list(shape))
        return 1, 1, self.out_features

    def macs(self, shape: Shape) -> int:
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


#: Every kind of layer, by its name in ``model.yaml``.
LAYER_KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        Thermometer,
        InputConv2d,
        InputResidualConv2d,
        BinaryConv2d,
        ResidualConv2d,
        BinaryDense,
        OutputDense,
        OutputBits,
    )
}


def _check_int32(name: str, magnitudes: NDArray[np.float64], what: str) -> None:
    if magnitudes.max() > MAX_RESIDUAL:
        channel = int(magnitudes.argmax())
        raise ModelError(
            f"{name}: channel {channel} {what} can reach {magnitudes[channel]:.0f}, but int32 holds "
            f"{MAX_RESIDUAL} safely; use smaller multipliers and offsets"
        )


def _check_spare(name: str, weights: NDArray[np.uint32], channels: int) -> None:
    if np.any(weights & ~bits.spare_mask(channels)):
        raise ModelError(f"{name}.weights: a spare bit is set; bits past channel {channels} must be 0")
