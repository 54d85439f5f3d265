"""What an image becomes on its way through a graph: integers and, in each channel, an exact affine map of them.

The map ``value = scale * integer + offset`` is kept in rational numbers, so that scales, biases and batch norms fold
without rounding. Operators that the model format cannot express are refused here, in words that name no file format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.net.layer import Pads, Pool

Exact = NDArray[np.object_]
"""Rational numbers (:class:`fractions.Fraction`)."""


@dataclass(frozen=True, eq=False)
class Products:
    """The sums of products of a layer with ±1 weights that is not made yet.

    Attributes:
        weights: (out, height, width, in) int8, ±1.
        dense: whether each output takes all of the input, as that of a matrix does.
        source: name of the layer whose signs it takes; empty for pixels.
        padding: top, left, bottom, right.
        outside: the integer that a convolution's padding counts as.
        levels: (256,) int16, the integers of the pixels that are convolved; None where signs are.
    """

    weights: NDArray[np.int8]
    dense: bool
    source: str
    stride: tuple[int, int] = (1, 1)
    padding: Pads = (0, 0, 0, 0)
    outside: int = 0
    pool: Pool | None = None
    levels: NDArray[np.int16] | None = None

    def reaches(self, value: int) -> bool:
        """Whether the sum can be ``value``: sums of signs have the parity of their number."""
        fan_in = math.prod(self.weights.shape[1:])
        parity_varies = self.levels is not None or (any(self.padding) and self.outside == 0)
        return parity_varies or (abs(value) <= fan_in and (value - fan_in) % 2 == 0)


@dataclass(frozen=True, eq=False)
class RealProducts:
    """The sums of products of a layer with real weights that is not made yet.

    Attributes:
        weights: (out, height, width, in / groups) float64.
        source: name of the layer whose signal it takes; empty for pixels.
        padding: top, left, bottom, right.
        outside: (in,) float64, of pixels: the level that padding counts as.
    """

    weights: NDArray[np.float64]
    source: str
    stride: tuple[int, int] = (1, 1)
    padding: Pads = (0, 0, 0, 0)
    groups: int = 1
    outside: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Signal:
    """What the image has become: ``value = scale * x + offset`` in each channel.

    Attributes:
        kind: what x is: ``pixels``; ``signs``; ``sums``, the integers of :attr:`products`; ``real sums``, the reals of
            :attr:`products`; or ``values``, the signal of a layer.
        axes: meaning of the axes after the batch: C, H and W, behind C also L, the levels of a thermometer.
        sizes: number of elements along each axis.
        scale, offset: (C * L,) rational numbers.
        layer: name of the layer that gives the signs or values; empty for others.
        flat: whether the axes were flattened, in their order, to one.
        pixel: of a flat signal, the axes of the map of one pixel as which it stands, CHW or HWC: its features are the
            channels; empty where it stands as a matrix.
        dtype: type of its numbers in the graph.
        levels: (256,) int16, the integers that pixels stand for.
        products: what makes the sums.
        limits: lowest and highest value, (C * L,) each, that a Clip has left of sums.
        pad: (pads, value outside): a padding that the next convolution takes.
        order: where its numbers lie among those of its layer or image, (C, H, W) in their order, in the shape of its
            tensor; None where its axes say so.
    """

    kind: str
    axes: str
    sizes: dict[str, int]
    scale: Exact
    offset: Exact
    layer: str = ""
    flat: bool = False
    pixel: str = ""
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    levels: NDArray[np.int16] | None = None
    products: Products | RealProducts | None = None
    limits: tuple[Exact, Exact] | None = None
    pad: tuple[Pads, Fraction] | None = None
    order: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its tensor in the graph, for one image."""
        if self.order is not None:
            return self.order.shape
        sizes = [self.sizes[axis] for axis in self.axes]
        if self.pixel:
            return (1, *(math.prod(sizes) if axis == "C" else 1 for axis in self.pixel))
        return (1, math.prod(sizes)) if self.flat else (1, *sizes)

    @property
    def is_map(self) -> bool:
        """Whether its axes are those of a feature map, (N, channels, height, width)."""
        return not self.flat and self.axes == "CHW"

    def in_range(self) -> Signal:
        """This signal.

        Raises:
            RefusalError: where its type cannot hold its numbers; integers would wrap around.
        """
        if is_float(self.dtype) or self.dtype.kind == "b":
            return self
        if self.dtype.kind not in "iu":
            raise RefusalError(f"numbers of type {self.dtype.name} cannot be expressed")
        info = np.iinfo(self.dtype)
        for level in self.extremes():
            values = self.scale * level + self.offset
            if any(values < int(info.min)) or any(values > int(info.max)):
                raise RefusalError(f"leaves the range of {self.dtype.name}")
        return self

    def extremes(self) -> tuple[int, int]:
        """Lowest and highest integer of pixels and signs."""
        return (-1, 1) if self.levels is None else (int(self.levels.min()), int(self.levels.max()))

    def scaled(self, factor: Exact) -> Signal:
        """The signal with every value multiplied by the factor of its channel."""
        signal = replace(self, scale=self.scale * factor, offset=self.offset * factor)
        if self.limits is None:
            return signal
        one, other = (limit * factor for limit in self.limits)
        return replace(signal, limits=(np.minimum(one, other), np.maximum(one, other)))

    def shifted(self, by: Exact) -> Signal:
        """The signal with the number of its channel added to every value."""
        signal = replace(self, offset=self.offset + by)
        if self.limits is None:
            return signal
        low, high = self.limits
        return replace(signal, limits=(low + by, high + by))

    def clipped(self, low: Exact, high: Exact) -> Signal:
        """Values from ``low`` to ``high``: of sums as limits, of pixels and signs only where nothing changes.

        Raises:
            RefusalError: where it changes pixels or signs.
        """
        if self.kind == "sums":
            limits = self.limits if self.limits is not None else (low, high)
            return replace(self, limits=(limits[0].clip(low, high), limits[1].clip(low, high)))
        for level in self.extremes():
            values = self.scale * level + self.offset
            if any(values < low) or any(values > high):
                raise RefusalError(f"changes {self.kind}")
        return self

    def resolve_limits(self, strict: bool) -> Signal:
        """A signal of the same signs without limits: a channel whose sign a limit determines becomes constant.

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
        return replace(self, limits=None, scale=scale, offset=offset)

    def pooled(self, pool: Pool, sizes: dict[str, int]) -> Signal:
        """Sums behind a max pool of their values, written as scales of a max pool of the sums.

        Where the scales are negative the largest value is that of the smallest sum: weights and scales are negated.
        """
        assert isinstance(self.products, Products)
        falls = self.scale < 0
        sign = np.where(falls, -1, 1)
        weights = (self.products.weights * sign[:, None, None, None]).astype(np.int8)
        return replace(
            self,
            sizes=sizes,
            products=replace(self.products, weights=weights, pool=pool),
            scale=np.where(falls, -self.scale, self.scale),
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
    with np.errstate(invalid="ignore"):  # a NaN that signals is one in float64 too, refused below
        array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise RefusalError("a constant is not finite")
    result = np.empty(array.shape, dtype=object)
    for index, value in np.ndenumerate(array):
        result[index] = Fraction(float(value))
    return result


def constant(value: Fraction | int, count: int) -> Exact:
    """One number, ``count`` times."""
    return np.full(count, Fraction(value), dtype=object)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are floats; bfloat16 is no kind of its own to NumPy."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_float_map(signal: Signal) -> bool:
    """Whether a signal is a map of channels, height and width in floats."""
    return is_float(signal.dtype) and not signal.flat and signal.order is None and "L" not in signal.axes


def per_channel(signal: Signal, values: NDArray[Any]) -> tuple[Signal, Exact]:
    """A constant that meets a signal, as one number a channel.

    Returns:
        The signal, spread over a new axis L where the constant has one; the numbers.

    Raises:
        RefusalError: where these numbers are not of channels.
    """
    mismatch = f"a constant of shape {list(values.shape)} on an activation of {list(signal.shape)}"
    shape = (1,) * (len(signal.shape) - values.ndim) + values.shape
    spreads = [not signal.flat and axis == "L" and signal.sizes["L"] == 1 for axis in "N" + signal.axes]
    if len(shape) > len(signal.shape) or any(
        size not in (1, own) and not spread for size, own, spread in zip(shape, signal.shape, spreads)
    ):
        raise RefusalError(mismatch)
    # Flat signals still know the axes that they had before.
    if signal.flat:
        sizes = [signal.sizes[axis] for axis in signal.axes]
        shape = (1, *(sizes if values.size > 1 else [1 for _ in sizes]))
    by_axis = values.reshape(shape)
    for number, axis in enumerate("N" + signal.axes):
        # A number a channel may be written out for each pixel.
        if axis in "HW" and shape[number] > 1:
            first = by_axis.take([0], axis=number)
            if np.any(by_axis != first):
                raise RefusalError(f"{mismatch} is not one number a channel")
            by_axis = first
    # Where there is an L, it stands behind C; otherwise C is the only axis that is left.
    channels = by_axis.reshape(shape[1 + signal.axes.index("C")], -1)
    levels = max(channels.shape[1], signal.sizes.get("L", 1))
    if levels > signal.sizes.get("L", 1):
        signal = replace(
            signal,
            sizes={**signal.sizes, "L": levels},
            scale=np.repeat(signal.scale, levels),
            offset=np.repeat(signal.offset, levels),
        )
    return signal, exact(np.broadcast_to(channels, (signal.sizes["C"], levels)).reshape(-1))
