"""Layers of the signs and sums that a graph computes.

Where a sign follows integers its threshold is the smallest integer that reaches it: exact. Otherwise the scales and
offsets on the way, rational numbers until here, become float32, each rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Exact, Products, RealProducts
from bnn_perception.net import bits
from bnn_perception.net.layer import Layer, Pads, Pool
from bnn_perception.net.layers import BinaryConv2d, BinaryDense, InputConv2d, OutputDense, SignConv2d
from bnn_perception.net.signals import (
    MAX_PIXEL_WEIGHT,
    RealConv2d,
    RealInputConv2d,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
    Sign,
)


def plain_layer(
    name: str, products: Products, threshold: NDArray[np.int32], flip: NDArray[np.bool_]
) -> InputConv2d | BinaryConv2d | BinaryDense:
    """The layer that hands on nothing but signs."""
    if products.dense:
        in_shape, weights = _dense(products)
        return BinaryDense(name, in_shape, len(threshold), weights, threshold, flip)
    geometry = _geometry(products)
    if products.levels is not None:
        return InputConv2d(name, *geometry, threshold, flip, levels=products.levels)
    return BinaryConv2d(name, *geometry, threshold, flip, padding_value=_padding_value(products))


def scaled_layer(name: str, products: Products, scale: Exact, offset: Exact) -> Layer:
    """The layer that gives the values ``scale * sum + offset``."""
    geometry, factors = _geometry(products), (floats(scale), floats(offset))
    if products.levels is not None:
        return ScaledInputConv2d(name, *geometry, *factors, levels=products.levels)
    return ScaledBinaryConv2d(name, *geometry, *factors, padding_value=_padding_value(products))


def real_layer(name: str, products: RealProducts, scale: Exact, offset: Exact) -> Layer:
    """The layer that gives the values ``scale * sum + offset`` of real weights, which take the scale."""
    factor = scale.astype(np.float64)[:, None, None, None]
    weights = products.weights * factor
    outputs, height, width, channels = weights.shape
    geometry = (
        channels * products.groups,
        outputs,
        (height, width),
        products.stride,
        short(products.padding),
        products.groups,
    )
    if products.outside is None:
        return RealConv2d(name, *geometry, weights.astype(np.float32), floats(offset))
    # The largest weight of a filter is the largest whole number.
    largest = np.abs(weights).reshape(outputs, -1).max(axis=1)
    step = (largest / MAX_PIXEL_WEIGHT).astype(np.float32)
    # Rounded down, it would take the largest weight past that number.
    step = np.where(
        largest > step.astype(np.float64) * MAX_PIXEL_WEIGHT,
        np.nextafter(step, np.inf, dtype=np.float32),
        step,
    )
    whole = np.rint(weights / np.where(step > 0, step, 1).astype(np.float64)[:, None, None, None])
    return RealInputConv2d(
        name,
        *geometry,
        whole.astype(np.int32),
        step.astype(np.float32),
        floats(offset),
        products.outside.astype(np.float32),
    )


def output_layer(products: Products, scale: Exact, offset: Exact) -> OutputDense:
    """The last layer: logits ``scale * sum + offset``."""
    in_shape, weights = _dense(products)
    return OutputDense("output", in_shape, len(scale), weights, floats(scale), floats(offset))


def _geometry(
    products: Products,
) -> tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, ...], Pool | None, NDArray[np.uint32]]:
    """The first fields of every convolution, up to its weights."""
    outputs, height, width, channels = products.weights.shape
    weights = bits.pack(products.weights > 0)
    return (
        channels,
        outputs,
        (height, width),
        products.stride,
        short(products.padding),
        products.pool,
        weights,
    )


def short(pads: Pads) -> tuple[int, ...]:
    """Pads as the field ``padding`` has them: two numbers where both sides are alike."""
    return pads[:2] if pads[:2] == pads[2:] else pads


def _padding_value(products: Products) -> int:
    return products.outside if any(products.padding) else -1


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


def negated(layer: Layer, channels: NDArray[np.bool_]) -> Layer:
    """The layer whose bits are the opposite in some channels.

    Raises:
        RefusalError: where the format has no such layer.
    """
    # not(v >= 0) is -v > 0
    if not isinstance(layer, (SignConv2d, BinaryDense, Sign)):
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
