"""Multiplication of a signal by weights, binary or real: convolutions and matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import (
    Exact,
    Products,
    RealProducts,
    Signal,
    constant,
    exact,
)
from bnn_perception.net.layer import Pads

#: How far the magnitudes of one output's weights may lie apart, of the largest, to count as one: computed in float32,
#: they differ in their last bits.
ONE_MAGNITUDE = 2.0**-20


def convolve(
    signal: Signal,
    values: NDArray[Any],
    bias: NDArray[Any],
    stride: tuple[int, int] = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    groups: int = 1,
) -> Signal:
    """The sums of a convolution.

    Args:
        signal: pixels, signs, or values as a layer gives them.
        values: (out, in / groups, y, x) weights: of pixels and signs binary where all of an output have one magnitude.
        bias: (out,)
        stride: (y, x)
        pads: (top, left, bottom, right), with zeros; a padding that the signal brings along counts too.
        groups: of channels.

    Raises:
        RefusalError: where the model format has no such convolution.
    """
    if values.shape[1] * groups != signal.sizes["C"] or len(values) % groups:
        raise RefusalError(
            f"takes {values.shape[1] * groups} channels in {groups} groups, its input has {signal.sizes['C']}"
        )
    if bias.shape != (len(values),):
        raise RefusalError(f"has a bias of shape {list(bias.shape)} for {len(values)} outputs")
    if not np.all(np.isfinite(values)):
        raise RefusalError("a weight is not finite")
    kernel = values.shape[2:]
    padding, value = _padding(signal, pads)
    height, width = (
        (signal.sizes[axis] + padding[side] + padding[side + 2] - kernel[side]) // stride[side] + 1
        for side, axis in enumerate("HW")
    )
    if height < 1 or width < 1:
        raise RefusalError("its kernel is larger than its input")
    weights = values.transpose(0, 2, 3, 1)
    if any(pad >= kernel[side % 2] for side, pad in enumerate(padding)):
        raise RefusalError(f"pads {list(padding)} are as large as its kernel {list(kernel)}")
    result = None
    if signal.kind in ("pixels", "signs"):
        result = _binary_sums(signal, weights, groups, stride, padding, value)
    if result is None:
        result = real_sums(signal, weights, groups, stride, padding, value)
    return replace(result, sizes={**result.sizes, "H": height, "W": width}).shifted(exact(bias))


def multiply(signal: Signal, matrix: NDArray[Any], bias: NDArray[Any]) -> Signal:
    """The sums of a fully connected layer: a convolution as large as its input.

    Args:
        matrix: (out, in), the inputs in the order of the flattened signal.
        bias: (out,), or one number for all.

    Raises:
        RefusalError: where the model format has no such layer.
    """
    if matrix.ndim != 2 or len(signal.shape) != 2 or matrix.shape[1] != signal.shape[1]:
        raise RefusalError(f"a matrix of {list(matrix.T.shape)} on an activation of {list(signal.shape)}")
    if bias.size not in (1, len(matrix)) or bias.shape[-1:] not in ((), (bias.size,)):
        raise RefusalError(f"has a bias of shape {list(bias.shape)} for {len(matrix)} outputs")
    if "L" in signal.axes:
        raise RefusalError("takes a thermometer whose levels are no channels yet")
    ordered = matrix.reshape(len(matrix), *(signal.sizes[axis] for axis in signal.axes))
    ordered = ordered.transpose(0, *(1 + signal.axes.index(axis) for axis in "CHW"))
    upright = replace(signal, flat=False, axes="CHW")
    result = convolve(upright, ordered, np.broadcast_to(bias.reshape(-1), len(matrix)).copy())
    return replace(result, flat=True)


def _binary(values: NDArray[Any]) -> tuple[NDArray[np.int8], Exact] | None:
    """(out, ...) floats of one magnitude an output -> ±1 and the magnitudes; None where they are others.

    Raises:
        RefusalError: where weights of exactly 0 are what keeps them from it.
    """
    magnitude = np.abs(values).reshape(len(values), -1).astype(np.float64)
    largest = magnitude.max(axis=1, keepdims=True)
    if np.any(largest == 0):
        return None
    apart = np.abs(magnitude - largest) > ONE_MAGNITUDE * largest
    if np.any(apart):
        zeros = (magnitude == 0).sum()
        if zeros and not np.any(apart & (magnitude != 0)) and magnitude.size > len(magnitude):
            raise RefusalError(
                f"{zeros} of its weights are exactly 0, the others +c and -c with one c an output: the sign of 0 is 0; "
                "give these weights a sign before the export (torch.where(w >= 0, 1, -1))"
            )
        return None
    # Where all are equal, so is their middle.
    middle = (magnitude.min(axis=1) + magnitude.max(axis=1)) / 2
    return np.where(values > 0, 1, -1).astype(np.int8), exact(middle)


def _binary_sums(
    signal: Signal,
    weights: NDArray[Any],
    groups: int,
    stride: tuple[int, int],
    padding: Pads,
    value: Fraction,
) -> Signal | None:
    """The values ``magnitude * sum(weight * value)`` of binary weights; None where only real weights express it."""
    binary = _binary(weights)
    if binary is None or groups != 1:
        if signal.kind == "signs":
            why = f"group {groups}" if groups != 1 else "its weights are not +c and -c with one c an output"
            raise RefusalError(
                f"{why}; only binary weights of group 1 can be expressed for binary activations"
            )
        return None
    signs, magnitude = binary
    scales = set(signal.scale)
    if len(scales) != 1 or signal.scale[0] <= 0:
        if signal.kind == "signs":
            raise RefusalError(
                "its input channels are scaled differently"
                if len(scales) != 1
                else "its input is scaled by zero or a negative number"
            )
        return None
    try:
        outside, levels, offset = _outside(signal, padding, value)
    except RefusalError:
        if signal.kind == "signs":
            raise
        return None
    # weights * (scale * integer + offset): the offsets add up to a constant, the same at the border, where
    # `outside` stands for the integer whose value is the padding.
    taps = signs.sum(axis=(1, 2), dtype=np.int64)
    is_matrix = not any(padding) and levels is None
    is_matrix = is_matrix and signs.shape[1:3] == (signal.sizes["H"], signal.sizes["W"])
    return replace(
        signal,
        kind="sums",
        axes="CHW",
        sizes={"C": len(magnitude), "H": 1, "W": 1},
        scale=magnitude * signal.one_scale(),
        offset=magnitude * weighted_sums(taps, offset),
        levels=None,
        layer="",
        products=Products(signs, is_matrix, signal.layer, stride, padding, outside, None, levels),
        pad=None,
    )


def real_sums(
    signal: Signal,
    weights: NDArray[Any],
    groups: int,
    stride: tuple[int, int],
    padding: Pads,
    value: Fraction,
) -> Signal:
    """The values ``sum(weight * value)`` of real weights, on pixels or on the signal of a layer."""
    real = weights.astype(np.float64)
    outside = None
    offset = constant(0, len(real))
    if signal.kind == "pixels":
        assert signal.levels is not None
        if np.any(signal.levels != np.arange(256)):
            raise RefusalError("takes real weights, but the image is quantized")
        if any(signal.scale == 0):
            raise RefusalError("a channel of the image is multiplied by 0")
        # Weights take the scales of the channels; their offsets add up to a constant.
        by_group = np.repeat(np.arange(groups), len(real) // groups)
        channel = by_group[:, None] * real.shape[3] + np.arange(real.shape[3])
        shift = signal.offset.astype(np.float64)[channel]  # (out, in / groups)
        offset = exact(np.einsum("oyxc,oc->o", real, shift))
        real = real * signal.scale.astype(np.float64)[channel][:, None, None, :]
        outside = np.array([float((value - o) / s) for o, s in zip(signal.offset, signal.scale)])
    elif signal.kind != "values" or any(signal.scale != 1) or any(signal.offset != 0):
        raise RefusalError(f"takes {signal.kind} with real weights")
    elif any(padding) and value != 0:
        raise RefusalError(f"pads a signal with {float(value):g}; only 0 can be expressed")
    return replace(
        signal,
        kind="real sums",
        axes="CHW",
        sizes={"C": len(real), "H": 1, "W": 1},
        scale=constant(1, len(real)),
        offset=offset,
        levels=None,
        layer="",
        products=RealProducts(real, signal.layer, stride, padding, groups, outside),
        pad=None,
    )


def weighted_sums(taps: NDArray[np.int64], values: Exact) -> Exact:
    """The sums of whole multiples of rational numbers, ``(taps * values).sum(axis=1)``, exactly.

    Args:
        taps: (out, in)
        values: (in,) rational numbers.

    Returns:
        (out,) rational numbers.
    """
    # Over their common denominator the values are integers, whose sums are fast: a sum of fractions would look for a
    # common divisor at every term.
    denominator = math.lcm(*(value.denominator for value in values))
    numerators = [value.numerator * (denominator // value.denominator) for value in values]
    # No sum, nor any part of it, is larger than this. Beyond int64, Python's integers add up.
    largest = int(np.abs(taps).max()) * sum(abs(numerator) for numerator in numerators)
    dtype = np.dtype(np.int64 if largest <= np.iinfo(np.int64).max else object)
    sums = taps.astype(dtype) @ np.array(numerators, dtype=dtype)
    result = np.empty(len(taps), dtype=object)
    result[:] = [Fraction(int(value), denominator) for value in sums]
    return result


def _padding(signal: Signal, pads: Sequence[int]) -> tuple[Pads, Fraction]:
    """What a separate padding before the convolution, and the convolution itself, add: the pads and the value there."""
    top, left, bottom, right = pads
    if signal.pad is None:
        return (top, left, bottom, right), Fraction(0)
    before, value = signal.pad
    if any(pads) and value != 0:
        raise RefusalError("pads what a Pad has padded already")
    return (
        before[0] + top,
        before[1] + left,
        before[2] + bottom,
        before[3] + right,
    ), value


def _outside(signal: Signal, padding: Pads, value: Fraction) -> tuple[int, NDArray[np.int16] | None, Exact]:
    """The integer whose value is the padding; for pixels, the levels and offsets that make it 0."""
    if not any(padding):
        return 0, signal.levels, signal.offset
    scale = signal.one_scale()
    integers = {(value - offset) / scale for offset in signal.offset}
    outside = integers.pop()
    if signal.levels is None:
        if integers or outside not in (-1, 0, 1):
            raise RefusalError(
                f"pads with {float(value):g}; only the values of -1, of 0 and of +1 can be expressed"
            )
        return int(outside), None, signal.offset
    shifted = signal.levels.astype(np.int64) - int(outside)
    fits = (shifted.min() >= 0 and shifted.max() <= 255) or (shifted.min() >= -128 and shifted.max() <= 127)
    if integers or outside.denominator != 1 or not fits:
        raise RefusalError(
            f"pads pixels with {float(value):g}, which is no level that 8-bit integers can count as 0"
        )
    offset = signal.offset + scale * outside
    return 0, shifted.astype(np.int16), offset
