"""Layers of the signs, sums and residuals that a graph computes: thresholds, and the fixed point of residuals.

The values of a residual are rational numbers; the format has integers. A channel of a residual, together with those
that shortcuts make of it, is counted in a unit of its own: the finest with which nothing can leave int32, which
:class:`.Model` checks. The unit is then coarsened a little so that the first multiplier of the chain, that of the
convolution of pixels, is a whole number of units. Its sums are the largest and its multiplier is therefore the
smallest; rounding it was what changed most signs. The other multipliers and the offsets are rounded to the nearest
integer, once. The threshold is exact: the smallest integer of the residual that reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.fold.signal import Exact, Products, Residual, exact
from bnn_perception.net import bits
from bnn_perception.net.checks import MAX_RESIDUAL
from bnn_perception.net.layer import Layer, Pool
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    InputResidualConv2d,
    OutputDense,
    ResidualConv2d,
)

#: Most and least binary digits behind the point of a residual.
FINEST, COARSEST = 24, 8


@dataclass(frozen=True, eq=False)
class PendingResidual:
    """A layer with a residual whose unit is not chosen yet; its sign is +1 where ``scale * value + offset >= 0``.

    Attributes:
        name: the layer's name.
        residual: its values.
        scale, offset: (C,) rational numbers.
        strict: (C,) whether the sign is +1 only where ``scale * value + offset > 0``.
    """

    name: str
    residual: Residual
    scale: Exact
    offset: Exact
    strict: NDArray[np.bool_]

    @property
    def max_dot(self) -> int:
        """The largest magnitude of a sum."""
        levels = self.residual.products.levels
        return math.prod(self.residual.products.weights.shape[1:]) * (
            1 if levels is None else int(np.abs(levels).max())
        )

    def fixed(self, units: Exact) -> InputResidualConv2d | ResidualConv2d:
        """The layer in integers.

        Args:
            units: (C,) rational numbers, how many integers a value of 1 has.
        """
        products = self.residual.products
        threshold, flip = fold(self.scale, self.offset * units, self.strict)
        arrays: dict[str, Any] = {
            name: np.asarray([round(value) for value in values * units], dtype=np.int32)
            for name, values in (
                ("multiplier", self.residual.scale),
                ("negative_multiplier", self.residual.negative),
                ("offset", self.residual.offset),
            )
        }
        geometry = _geometry(products)
        if products.levels is not None:
            return InputResidualConv2d(self.name, *geometry, threshold, flip, products.levels, **arrays)
        outside = _padding_value(products)
        return ResidualConv2d(
            self.name, *geometry, threshold, flip, outside, shortcut=self.residual.shortcut, **arrays
        )


def residual_units(layers: Sequence[Layer | PendingResidual]) -> dict[str, Exact]:
    """The units of each layer with a residual, by its name: how many integers a value of 1 has in each channel.

    Raises:
        ImporterError: where a residual has values so large that int32 leaves less than :data:`COARSEST` binary digits.
    """
    chains: list[list[PendingResidual]] = []
    for layer in layers:
        if isinstance(layer, PendingResidual):
            if layer.residual.shortcut == "none":
                chains.append([])
            chains[-1].append(layer)
    return {
        layer.name: np.tile(units, len(layer.scale) // len(units))
        for chain in chains
        for units in [_chain_units(chain)]
        for layer in chain
    }


def _chain_units(chain: Sequence[PendingResidual]) -> Exact:
    """The units of a layer without a shortcut and of those that add its channels: one for each of its channels."""
    channels = len(chain[0].scale)
    # The largest value of the residual, or sum of four of them that are averaged.
    largest = np.zeros(channels)
    # By how many integers these can be larger than the values times the unit.
    rounding = 0.0
    before = largest
    for layer, after in zip(chain, [*chain[1:], None]):
        residual = layer.residual
        scale, negative, offset = (
            np.abs(values.astype(np.float64))
            for values in (residual.scale, residual.negative, residual.offset)
        )
        before = np.tile(before, len(scale) // len(before))
        before = before + layer.max_dot * np.maximum(scale, negative) + offset
        rounding += (layer.max_dot + 1) / 2
        times = 4 if after is not None and after.residual.shortcut == "average_pool" else 1
        largest = np.maximum(largest, times * before.reshape(-1, channels).max(axis=0))
    # The shrinkage is far above what float64 loses here, and far below what matters.
    room = (MAX_RESIDUAL - 4 * rounding) * (1 - 1e-9)
    limit = np.minimum(room / np.maximum(largest, np.finfo(np.float64).tiny), 2.0**FINEST)
    if limit.min() < 2.0**COARSEST:
        raise ImporterError(
            f"the residual from '{chain[0].name}' to '{chain[-1].name}' can reach {largest.max():.3g}, with which "
            f"int32 leaves less than {COARSEST} binary digits behind the point"
        )
    units = exact(limit)
    for channel, (scale, negative) in enumerate(zip(chain[0].residual.scale, chain[0].residual.negative)):
        multiplier = abs(scale) or abs(negative)
        whole = math.floor(units[channel] * multiplier)
        if whole:
            units[channel] = whole / Fraction(multiplier)
    return units


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


def fold(
    scale: Exact, offset: Exact, strict: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Threshold and flip of ``scale * x + offset >= 0``, or ``> 0`` where strict, of an integer x."""
    # v > 0 is not(-v >= 0)
    scale, offset = np.where(strict, -scale, scale), np.where(strict, -offset, offset)
    # Only the sign of the scale matters once it is known where zero is crossed. Beyond 2**40 no sum can reach.
    sign = np.array([(value > 0) - (value < 0) for value in scale], dtype=np.float64)
    crossing = [-o / s if s != 0 else Fraction(0) for s, o in zip(scale, offset)]
    mean = np.array([float(min(max(value, Fraction(-(2**40))), Fraction(2**40))) for value in crossing])
    beta = np.array([float((o > 0) - (o < 0)) if s == 0 else 0.0 for s, o in zip(scale, offset)])
    threshold, flip = bits.fold_batch_norm(sign, beta, mean, np.ones(len(mean)))
    return threshold, flip ^ strict


def negated(layer: Layer | PendingResidual, channels: NDArray[np.bool_]) -> Layer | PendingResidual:
    """The layer whose bits are the opposite in some channels.

    Raises:
        RefusalError: where the format has no such layer.
    """
    # not(v >= 0) is -v > 0
    if isinstance(layer, PendingResidual):
        sign = np.where(channels, -1, 1)
        scale, offset = layer.scale * sign, layer.offset * sign
        return replace(layer, scale=scale, offset=offset, strict=layer.strict ^ channels)
    if not isinstance(layer, (Conv2d, BinaryDense)):
        raise RefusalError("takes signs that are -1 where a pixel reaches its threshold")
    return replace(layer, flip=layer.flip ^ channels)


def pool_after_sign(layer: InputConv2d | BinaryConv2d, pool: Pool) -> InputConv2d | BinaryConv2d:
    """The layer whose bits are the OR over windows of ``layer``'s bits.

    Where flip is 0 the OR is the threshold of the largest sum, as the format has it. Where it is 1 the bit is
    ``sum < t``, the same as ``-sum >= 1 - t``: negated weights bring it to flip 0.
    """
    constant = (layer.threshold == bits.ALWAYS) | (layer.threshold == bits.NEVER)
    falls = layer.flip & ~constant
    words = np.where(
        falls[:, None, None, None], ~layer.weights & bits.spare_mask(layer.in_channels), layer.weights
    )
    threshold = np.where(falls, 1 - layer.threshold.astype(np.int64), layer.threshold)
    return replace(
        layer,
        pool=pool,
        weights=words,
        threshold=np.clip(threshold, bits.ALWAYS, bits.NEVER).astype(np.int32),
        flip=layer.flip & constant,
    )
