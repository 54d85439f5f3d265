"""Layers of the signs, sums and streams that a QONNX graph computes: thresholds, and the fixed point of streams.

The values of a stream are rational numbers; the format has integers. All streams of a net get one unit,
``2**-fraction_bits``: as fine as :data:`FINEST` says, coarser only where a stream could leave int32
(:class:`bnn_perception.model.Model` proves that it cannot), and never coarser than :data:`COARSEST`. Multipliers and
offsets are rounded to the nearest integer, once. The threshold is then exact: the smallest integer of the stream that
reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception import bits
from bnn_perception.importers import ImporterError
from bnn_perception.importers.qonnx_signal import Exact, Products, Stream
from bnn_perception.model import (
    MAX_STREAM,
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    InputStreamConv2d,
    Layer,
    ModelError,
    OutputDense,
    Pool,
    ResidualConv2d,
    StreamConv2d,
)

#: Most and least binary digits behind the point of a stream.
FINEST, COARSEST = 16, 8


@dataclass(frozen=True, eq=False)
class StreamLayer:
    """A layer with a stream whose unit is not chosen yet; its sign is +1 where ``scale * value + offset >= 0``.

    Attributes:
        name: of the layer.
        stream: what its values are.
        scale, offset: (C,) rational numbers.
        strict: whether the sign is +1 only where ``scale * value + offset > 0``.
    """

    name: str
    stream: Stream
    scale: Exact
    offset: Exact
    strict: bool

    def fixed(self, fraction_bits: int) -> InputStreamConv2d | ResidualConv2d:
        """The layer in units of ``2**-fraction_bits``.

        Raises:
            ModelError: where a number leaves int32.
        """
        unit = 2**fraction_bits
        products = self.stream.products
        threshold, flip = fold(self.scale, self.offset * unit, self.strict)
        arrays: dict[str, Any] = {
            name: _nearest(f"{self.name}.{name}", values * unit)
            for name, values in (
                ("multiplier", self.stream.scale),
                ("negative_multiplier", self.stream.negative),
                ("offset", self.stream.offset),
            )
        }
        geometry = _geometry(products)
        if products.levels is not None:
            return InputStreamConv2d(self.name, *geometry, threshold, flip, products.levels, **arrays)
        outside = _padding_value(products)
        return ResidualConv2d(
            self.name, *geometry, threshold, flip, outside, shortcut=self.stream.shortcut, **arrays
        )


def fix_point(layers: Sequence[Layer | StreamLayer]) -> tuple[list[Layer], int | None]:
    """All layers with their streams in the finest unit that holds.

    Returns:
        The layers, and how many binary digits lie behind the point; None where there is no stream.

    Raises:
        ImporterError: where a stream has values so large that int32 leaves less than :data:`COARSEST` of them.
    """
    if not any(isinstance(layer, StreamLayer) for layer in layers):
        return [layer for layer in layers if not isinstance(layer, StreamLayer)], None
    reason = ""
    for fraction_bits in range(FINEST, COARSEST - 1, -1):
        try:
            fixed: list[Layer] = [
                layer.fixed(fraction_bits) if isinstance(layer, StreamLayer) else layer for layer in layers
            ]
            _check_range(fixed)
            return fixed, fraction_bits
        except ModelError as error:
            reason = str(error)
    raise ImporterError(
        f"its streams take values too large for fixed point of {COARSEST} fractional bits in int32: {reason}"
    )


def _check_range(layers: Sequence[Layer]) -> None:
    """As :class:`~bnn_perception.model.Model` does: that no integer of a stream can leave int32."""
    before: NDArray[np.float64] | None = None
    for layer in layers:
        before = layer.max_magnitudes(before) if isinstance(layer, StreamConv2d) else None
        if before is not None and before.max() > MAX_STREAM:
            raise ModelError(f"{layer.name}: its stream can reach {before.max():.0f}")


def _nearest(name: str, values: Exact) -> NDArray[np.int32]:
    integers = [round(value) for value in values]
    largest = max(abs(value) for value in integers)
    if largest > MAX_STREAM:
        raise ModelError(f"{name}: {largest} does not fit int32")
    return np.asarray(integers, dtype=np.int32)


def plain_layer(
    name: str, products: Products, threshold: NDArray[np.int32], flip: NDArray[np.bool_]
) -> InputConv2d | BinaryConv2d | BinaryDense:
    """The layer that hands on nothing but signs."""
    if products.dense:
        in_shape, weights = _dense(products)
        return BinaryDense(name, in_shape, len(threshold), weights, threshold, flip)
    geometry = _geometry(products)
    if products.levels is not None:
        return InputConv2d(name, *geometry, threshold, flip, products.levels)
    return BinaryConv2d(name, *geometry, threshold, flip, _padding_value(products))


def output_layer(products: Products, scale: Exact, offset: Exact) -> OutputDense:
    """The last layer: logits ``scale * sum + offset``."""
    in_shape, weights = _dense(products)
    return OutputDense("output", in_shape, len(scale), weights, floats(scale), floats(offset))


def _geometry(
    products: Products,
) -> tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int], Pool | None, NDArray[np.uint32]]:
    """The first fields of every convolution, up to its weights."""
    outputs, height, width, channels = products.weights.shape
    weights = bits.pack(products.weights > 0)
    return channels, outputs, (height, width), products.stride, products.padding, products.pool, weights


def _padding_value(products: Products) -> int:
    return products.outside if products.padding != (0, 0) else -1


def _dense(products: Products) -> tuple[tuple[int, int, int], NDArray[np.uint32]]:
    """Input shape and packed rows of a matrix."""
    _, height, width, channels = products.weights.shape
    return (height, width, channels), bits.pack(products.weights > 0).reshape(len(products.weights), -1)


def floats(values: Exact) -> NDArray[np.float32]:
    return values.astype(np.float64).astype(np.float32)


def fold(scale: Exact, offset: Exact, strict: bool) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Threshold and flip of ``scale * x + offset >= 0``, or ``> 0`` where strict, of an integer x."""
    if strict:  # v > 0 is not(-v >= 0)
        threshold, flip = fold(-scale, -offset, strict=False)
        return threshold, ~flip
    # Only the sign of the scale matters once it is known where zero is crossed. Beyond 2**40 no sum can reach.
    sign = np.array([(value > 0) - (value < 0) for value in scale], dtype=np.float64)
    crossing = [-o / s if s != 0 else Fraction(0) for s, o in zip(scale, offset)]
    mean = np.array([float(min(max(value, Fraction(-(2**40))), Fraction(2**40))) for value in crossing])
    beta = np.array([float((o > 0) - (o < 0)) if s == 0 else 0.0 for s, o in zip(scale, offset)])
    return bits.fold_batch_norm(sign, beta, mean, np.ones(len(mean)))


def pool_after_sign(layer: InputConv2d | BinaryConv2d, pool: Pool) -> InputConv2d | BinaryConv2d:
    """The layer whose bits are the OR over windows of ``layer``'s bits.

    Where flip is 0 the OR is the threshold of the largest sum, as the format has it. Where it is 1 the bit is
    ``sum < t``, the same as ``-sum >= 1 - t``: negated weights bring it to flip 0.
    """
    constant = (layer.threshold == bits.ALWAYS) | (layer.threshold == bits.NEVER)
    turned = layer.flip & ~constant
    words = np.where(
        turned[:, None, None, None], ~layer.weights & bits.spare_mask(layer.in_channels), layer.weights
    )
    threshold = np.where(turned, 1 - layer.threshold.astype(np.int64), layer.threshold)
    return replace(
        layer,
        pool=pool,
        weights=words,
        threshold=np.clip(threshold, bits.ALWAYS, bits.NEVER).astype(np.int32),
        flip=layer.flip & constant,
    )
