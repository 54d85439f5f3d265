"""Multiplication of a signal by binary weights: convolutions and matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Exact, Products, Signal, exact


def convolve(
    signal: Signal,
    values: NDArray[Any],
    bias: NDArray[Any],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> Signal:
    """The sums of a convolution.

    Args:
        values: (out, in, y, x) weights, all of one magnitude in each output channel.
        bias: (out,)
        stride: (y, x)
        pads: (top, left, bottom, right), with zeros; a padding that the signal brings along counts too.

    Raises:
        RefusalError: where the model format has no such convolution.
    """
    weights, magnitude = _binary(values)
    if signal.kind in ("sums", "residual"):
        raise RefusalError("its input is not binary; a quantizer must stand before it")
    if weights.shape[1] != signal.sizes["C"]:
        raise RefusalError(f"takes {weights.shape[1]} channels, its input has {signal.sizes['C']}")
    kernel = weights.shape[2:]
    padding, value = _padding(signal, pads)
    outside, levels, offset = _outside(signal, padding, value)
    height, width = (
        (signal.sizes[axis] + 2 * pad - size) // step + 1
        for axis, pad, size, step in zip("HW", padding, kernel, stride)
    )
    if height < 1 or width < 1:
        raise RefusalError("its kernel is larger than its input")
    if bias.shape != (len(weights),):
        raise RefusalError(f"has a bias of shape {list(bias.shape)} for {len(weights)} outputs")
    is_matrix = padding == (0, 0) and levels is None and kernel == (signal.sizes["H"], signal.sizes["W"])
    ordered = weights.transpose(0, 2, 3, 1)
    products = Products(ordered, is_matrix, signal.place, stride, padding, outside, None, levels)
    result = _sums(replace(signal, offset=offset), products, magnitude)
    return replace(result, sizes={**result.sizes, "H": height, "W": width}).shifted(exact(bias))


def multiply(signal: Signal, matrix: NDArray[Any], bias: NDArray[Any]) -> Signal:
    """The sums of a fully connected layer.

    Args:
        matrix: (out, in), all of one magnitude in each row; the inputs in the order of the flattened signal.
        bias: (out,), or one number for all.

    Raises:
        RefusalError: where the model format has no such layer.
    """
    if signal.kind != "signs":
        raise RefusalError("its input is not binary; a quantizer must stand before it")
    if matrix.ndim != 2 or not signal.flat or matrix.shape[1] != signal.shape[1]:
        raise RefusalError(f"a matrix of {list(matrix.T.shape)} on an activation of {list(signal.shape)}")
    if bias.size not in (1, len(matrix)) or bias.shape[-1:] not in ((), (bias.size,)):
        raise RefusalError(f"has a bias of shape {list(bias.shape)} for {len(matrix)} outputs")
    weights, magnitude = _binary(matrix)
    ordered = weights.reshape(len(weights), *(signal.sizes[axis] for axis in signal.axes))
    ordered = ordered.transpose(0, *(1 + signal.axes.index(axis) for axis in "HWC"))
    result = replace(_sums(signal, Products(ordered, True, signal.place), magnitude), flat=True)
    return result.shifted(exact(np.broadcast_to(bias.reshape(-1), len(weights))))


def _binary(values: NDArray[Any]) -> tuple[NDArray[np.int8], Exact]:
    """(out, ...) floats of one magnitude an output -> ±1 and the magnitudes."""
    magnitude = np.abs(values).reshape(len(values), -1)
    if np.any(magnitude != magnitude[:, :1]) or np.any(magnitude == 0) or not np.all(np.isfinite(magnitude)):
        raise RefusalError(
            "its weights are not +c and -c with one c an output; only binary weights can be expressed"
        )
    return np.where(values > 0, 1, -1).astype(np.int8), exact(magnitude[:, 0])


def _sums(signal: Signal, products: Products, magnitude: Exact) -> Signal:
    """The values ``magnitude * sum(weight * value)``."""
    # weights * (scale * integer + offset): the offsets add up to a constant, the same at the border, where
    # `outside` stands for the integer whose value is the padding.
    taps = products.weights.sum(axis=(1, 2), dtype=np.int64)
    return replace(
        signal,
        kind="sums",
        axes="CHW",
        sizes={"C": len(magnitude), "H": 1, "W": 1},
        scale=magnitude * signal.one_scale(),
        offset=magnitude * weighted_sums(taps, signal.offset),
        levels=None,
        products=products,
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


def _padding(signal: Signal, pads: Sequence[int]) -> tuple[tuple[int, int], Fraction]:
    """What a separate padding before the convolution, and the convolution itself, add: (y, x) and the value there."""
    if list(pads[:2]) != list(pads[2:]):
        raise RefusalError(f"pads {list(pads)} are not symmetric")
    if signal.pad is None:
        return (pads[0], pads[1]), Fraction(0)
    if any(pads):
        raise RefusalError("pads what a Pad has padded already")
    return signal.pad[:2], signal.pad[2]


def _outside(
    signal: Signal, padding: tuple[int, int], value: Fraction
) -> tuple[int, NDArray[np.int16] | None, Exact]:
    """The integer whose value is the padding; for pixels, the levels and offsets that make it 0."""
    if padding == (0, 0):
        return 0, signal.levels, signal.offset
    integers = {(value - offset) / signal.one_scale() for offset in signal.offset}
    outside = integers.pop()
    if signal.levels is None:
        if integers or outside not in (-1, 0):
            raise RefusalError(f"pads with {float(value):g}; only the values of -1 and of 0 can be expressed")
        return int(outside), None, signal.offset
    shifted = signal.levels.astype(np.int64) - int(outside)
    fits = (shifted.min() >= 0 and shifted.max() <= 255) or (shifted.min() >= -128 and shifted.max() <= 127)
    if integers or outside.denominator != 1 or not fits:
        raise RefusalError(
            f"pads pixels with {float(value):g}, which is no level that 8-bit integers can count as 0"
        )
    offset = signal.offset + signal.one_scale() * outside
    return 0, shifted.astype(np.int16), offset
