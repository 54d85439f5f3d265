"""What the image becomes on its way through a QONNX graph, in exact rational numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.onnx.quantizers import RefusalError
from bnn_perception.net.layers import Pool

Exact = NDArray[np.object_]
"""Rational numbers (:class:`fractions.Fraction`)."""


@dataclass(frozen=True, eq=False)
class Products:
    """The sums of products of a layer that is not closed yet.

    Attributes:
        weights: (out, height, width, in) int8, ±1.
        dense: whether each output takes all of the input, as that of a matrix does.
        place: which layer of the model it becomes, from 0.
        outside: the integer that a convolution's padding counts as.
        levels: (256,) int16, of a convolution of pixels; None for one of signs.
    """

    weights: NDArray[np.int8]
    dense: bool
    place: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    outside: int = 0
    pool: Pool | None = None
    levels: NDArray[np.int16] | None = None

    def reaches(self, value: int) -> bool:
        """Whether the sum can be ``value``: sums of signs have the parity of their number."""
        fan_in = math.prod(self.weights.shape[1:])
        parity_varies = self.levels is not None or (self.padding != (0, 0) and self.outside == 0)
        return parity_varies or (abs(value) <= fan_in and (value - fan_in) % 2 == 0)


@dataclass(frozen=True, eq=False)
class Stream:
    """Real values that a layer hands on beside its signs: ``m * sum + offset (+ shortcut)``.

    Attributes:
        products: of the sums.
        scale, negative, offset: (C,) rational numbers; m is ``scale`` where the sum is >= 0, otherwise ``negative``.
        shortcut: ``none``, ``identity`` or ``average_pool``, of the stream of the layer before.
    """

    products: Products
    scale: Exact
    negative: Exact
    offset: Exact
    shortcut: str = "none"


@dataclass(frozen=True, eq=False)
class Signal:
    """What the image has become; ``value = scale * integer + offset`` in each channel, of a stream times its values.

    Attributes:
        kind: ``pixels``, ``signs``, ``sums`` or ``stream``.
        axes: meaning of the axes after the batch: C, H and W, behind C also L, the levels of a thermometer.
        sizes: of each axis.
        scale, offset: (C * L,) rational numbers.
        place: how many layers lie behind it.
        flat: whether the axes were flattened, in their order, to one.
        dtype: of its numbers in the graph.
        levels: (256,) int16, the integers that pixels stand for.
        products: of sums.
        negative: the scale of sums below 0, where another one holds there (behind ReLU or PReLU).
        limits: lowest and highest value, (C * L,) each, that a Clip has left; only signs can be taken of such values.
        pad: (y, x, value outside) of a Pad that has not met its Conv.
        stream: of which these are the values, which a shortcut may have averaged and repeated.
    """

    kind: str
    axes: str
    sizes: dict[str, int]
    scale: Exact
    offset: Exact
    place: int = 0
    flat: bool = False
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    levels: NDArray[np.int16] | None = None
    products: Products | None = None
    negative: Exact | None = None
    limits: tuple[Exact, Exact] | None = None
    pad: tuple[int, int, Fraction] | None = None
    stream: Stream | None = None
    averaged: bool = False
    repeated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As the graph sees it, for one image."""
        sizes = [self.sizes[axis] for axis in self.axes]
        return (1, math.prod(sizes)) if self.flat else (1, *sizes)

    @property
    def is_map(self) -> bool:
        """Whether its axes are those of a feature map, (N, channels, height, width)."""
        return not self.flat and self.axes == "CHW"

    def extremes(self) -> tuple[int, int]:
        """Lowest and highest integer of pixels and signs."""
        return (-1, 1) if self.levels is None else (int(self.levels.min()), int(self.levels.max()))

    def scaled(self, factor: Exact) -> Signal:
        """Every value times that of its channel."""
        negative = None if self.negative is None else self.negative * factor
        signal = replace(self, scale=self.scale * factor, negative=negative, offset=self.offset * factor)
        if self.limits is None:
            return signal
        one, other = (limit * factor for limit in self.limits)
        return replace(signal, limits=(np.minimum(one, other), np.maximum(one, other)))

    def shifted(self, by: Exact) -> Signal:
        """Every value plus that of its channel."""
        signal = replace(self, offset=self.offset + by)
        if self.limits is None:
            return signal
        low, high = self.limits
        return replace(signal, limits=(low + by, high + by))

    def clipped(self, low: Exact, high: Exact) -> Signal:
        """Values from ``low`` to ``high``: those of sums and streams as limits, others only where nothing changes.

        Raises:
            RefusalError: where it changes pixels or signs.
        """
        if self.kind in ("sums", "stream"):
            limits = self.limits if self.limits is not None else (low, high)
            return replace(self, limits=(limits[0].clip(low, high), limits[1].clip(low, high)))
        for level in self.extremes():
            values = self.scale * level + self.offset
            if any(values < low) or any(values > high):
                raise RefusalError(f"changes {self.kind}")
        return self

    def decided(self, strict: bool) -> Signal:
        """Sums and streams without limits, which have the same signs; constant where a limit decides them.

        Args:
            strict: whether a sign is +1 only where its value is > 0, instead of >= 0.

        Raises:
            RefusalError: where no channel is left that depends on the image.
        """
        if self.limits is None:
            return self
        low, high = self.limits
        above, below = (low > 0, high <= 0) if strict else (low >= 0, high < 0)
        if all(above | below):
            raise RefusalError(
                "takes signs of values that a Clip or ReLU has left on one side of the threshold in every channel"
            )
        signs = constant(1, len(above)) * np.where(above, 1, -1)
        scale, offset = (
            np.where(above | below, constants, values)
            for constants, values in ((0 * signs, self.scale), (signs, self.offset))
        )
        negative = None if self.negative is None else np.where(above | below, 0 * signs, self.negative)
        return replace(self, limits=None, scale=scale, offset=offset, negative=negative)

    def bent(self, slope: Exact) -> Signal:
        """Sums behind PReLU: values below 0 times the slope of their channel.

        Raises:
            RefusalError: where the kink lies at another sum than 0, which the format cannot express.
        """
        if self.kind != "sums":
            raise RefusalError(
                f"bends {self.kind}; only the sums of a convolution can be, before their batch norm and shortcut"
            )
        if any(self.offset != 0):
            channel = int(np.argmax(self.offset != 0))
            raise RefusalError(
                f"bends channel {channel} where its sum is {float(-self.offset[channel] / self.scale[channel]):g}, "
                "not 0; only scales may stand between a convolution and its activation"
                if self.scale[channel] != 0
                else f"bends channel {channel}, which is constant"
            )
        negative = self.scale if self.negative is None else self.negative
        return replace(
            self,
            scale=np.where(self.scale >= 0, self.scale, self.scale * slope),
            negative=np.where(negative <= 0, negative, negative * slope),
        )

    def pooled(self, pool: Pool, sizes: dict[str, int]) -> Signal:
        """Sums behind a max pool of their values, written as scales of a max pool of the sums.

        Where the scales are negative the largest value is that of the smallest sum: weights and scales are negated.
        """
        assert self.products is not None
        negative = self.scale if self.negative is None else self.negative
        if any((self.scale > 0) & (negative < 0)) or any((self.scale < 0) & (negative > 0)):
            raise RefusalError(
                "pools values that both rise and fall with the sum (a negative slope of PReLU)"
            )
        falls = (self.scale < 0) | (negative < 0)
        sign = np.where(falls, -1, 1)
        weights = (self.products.weights * sign[:, None, None, None]).astype(np.int8)
        return replace(
            self,
            sizes=sizes,
            products=replace(self.products, weights=weights, pool=pool),
            scale=np.where(falls, -negative, self.scale),
            negative=None if self.negative is None else np.where(falls, -self.scale, negative),
        )

    def branched(self) -> Signal:
        """Sums that two nodes take, as the values of a stream."""
        assert self.products is not None
        negative = self.scale if self.negative is None else self.negative
        return self.of(Stream(self.products, self.scale, negative, self.offset))

    def plus(self, shortcut: Signal) -> Signal:
        """Sums plus a stream: the values of the next stream.

        Raises:
            RefusalError: where the format has no such shortcut.
        """
        kinds = {self.kind, shortcut.kind}
        if kinds != {"sums", "stream"}:
            raise RefusalError(
                "adds two real-valued streams"
                if kinds == {"stream"}
                else f"adds {' and '.join(sorted(kinds))}; what can be added are the sums of a convolution and the "
                "real-valued stream that its signs come from"
            )
        if self.kind == "stream":
            return shortcut.plus(self)
        if not (self.is_map and shortcut.is_map) or self.shape != shortcut.shape:
            raise RefusalError(f"adds {list(shortcut.shape)} to {list(self.shape)}")
        assert self.products is not None
        assert shortcut.stream is not None
        if shortcut.stream.products.place + 1 != self.products.place:
            raise RefusalError(
                "its shortcut skips more than one convolution, or another one; a convolution can add the stream that "
                "its own signs come from"
            )
        if any(shortcut.scale != 1):
            raise RefusalError("its shortcut is scaled; the format adds a stream as it is")
        if self.products.levels is not None:
            raise RefusalError("adds a stream to a convolution of pixels")
        negative = self.scale if self.negative is None else self.negative
        kind = "average_pool" if shortcut.averaged else "identity"
        return self.of(Stream(self.products, self.scale, negative, self.offset + shortcut.offset, kind))

    def of(self, stream: Stream) -> Signal:
        """This signal as the plain values of a stream."""
        one, zero = constant(1, len(self.scale)), constant(0, len(self.scale))
        return replace(
            self, kind="stream", scale=one, offset=zero, stream=stream, products=None, negative=None
        )

    def one_scale(self) -> Fraction:
        """The scale, where all channels share one and it is positive."""
        if any(scale != self.scale[0] for scale in self.scale):
            raise RefusalError("its input channels are scaled differently")
        if self.scale[0] <= 0:
            raise RefusalError("its input is scaled by zero or a negative number")
        return Fraction(self.scale[0])


def exact(values: Any) -> Exact:
    """Floats as the rational numbers that they are; a value that is not finite is refused."""
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise RefusalError("a constant is not finite")
    result = np.empty(array.shape, dtype=object)
    for index, value in np.ndenumerate(array):
        result[index] = Fraction(float(value))
    return result


def constant(value: Fraction | int, count: int) -> Exact:
    """(count,) of one number."""
    return np.full(count, Fraction(value), dtype=object)
