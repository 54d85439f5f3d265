"""What a sign compares with, and the levels of quantized pixels; what float32 would have made of either."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Exact, Products, Signal

#: The largest float32.
MAX_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Threshold:
    """What a sign compares with, and gives.

    Attributes:
        signal: what is compared.
        at: (C,) rational numbers; the sign is +1 where ``value >= at``, otherwise -1.
        scale, offset: (C,) rational numbers; the operator gives ``scale * sign + offset``.
        strict: whether +1 takes ``value > at`` instead.
        dtype: type of the numbers that it gives.
    """

    signal: Signal
    at: Exact
    scale: Exact
    offset: Exact
    strict: bool = False
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class Quantization:
    """Rounding of pixels to several bits: whole numbers from ``low`` to ``high`` times ``step``."""

    signal: Signal
    step: Fraction
    low: int
    high: int

    def of(self, signal: Signal) -> Signal:
        """The pixels ``signal``, which is :attr:`signal` in the range that the graph takes, rounded."""
        if any(offset != signal.offset[0] for offset in signal.offset):
            raise RefusalError("quantizes channels of different offsets")
        scale, offset = signal.one_scale() / self.step, Fraction(signal.offset[0]) / self.step
        assert signal.levels is not None
        levels = []
        for level in signal.levels.tolist():
            value = scale * level + offset
            # The graph computes in float32; closer to a half than this it may round either way.
            border = abs(abs(value - math.floor(value)) - Fraction(1, 2))
            if self.low < value < self.high and border < Fraction(1, 10**4):
                raise RefusalError(f"a pixel of level {level} lies on the border of two quantization steps")
            levels.append(min(max(math.floor(value + Fraction(1, 2)), self.low), self.high))
        ones = np.full(len(signal.scale), self.step, dtype=object)
        return replace(signal, levels=np.asarray(levels, dtype=np.int16), scale=ones, offset=0 * ones)


def at_pixels(
    signal: Signal, threshold: NDArray[np.int32], strict: bool, unit: Fraction
) -> NDArray[np.int32]:
    """Thresholds of pixels as the graph's float32 has them, where one is that of a pixel but for rounding.

    Args:
        signal: pixels less what they are compared with.
        threshold: (C,) of the rational numbers.
        unit: what a pixel of level 1 is where the graph takes it.

    Raises:
        RefusalError: where the pixel was computed by more than one rounding, so that it may lie on either side.
    """
    assert signal.levels is not None
    result = threshold.copy()
    for channel, (scale, offset) in enumerate(zip(signal.scale, signal.offset)):
        if scale == 0:
            continue
        level, at = round(-offset / scale), -offset
        value = scale * level
        if abs(value - at) > max(abs(value), abs(at)) / 2**20 or level not in signal.levels:
            continue
        rounded = Fraction(float(np.float32(float(value))))
        factor = scale / unit
        # One rounding: that of the pixel itself, of its division by 255, or none.
        single = rounded == value or _is_power_of_2(factor) or (unit == 1 and _is_power_of_2(255 * factor))
        if not single or Fraction(float(np.float32(float(at)))) != at:
            raise RefusalError(
                f"a pixel of level {level} lies on its threshold, on either side of which it may round"
            )
        result[channel] = level if rounded > at or (rounded == at and not strict) else level + 1
    return result


def _is_power_of_2(value: Fraction) -> bool:
    one, other = abs(value.numerator), value.denominator
    return one & (one - 1) == 0 and other & (other - 1) == 0


def is_rectified(signal: Signal) -> bool:
    """Whether a ReLU has left 0 of what lay below."""
    return signal.limits is not None and all(signal.limits[0] == 0)


def can_be_zero(signal: Signal) -> bool:
    """Whether sums can be exactly 0 in some channel.

    Real values practically never are, nor could the source's float32 tell.
    """
    if signal.limits is not None and any(0 in limit for limit in signal.limits):
        return True
    if not isinstance(signal.products, Products):
        return False
    for factor, shift in zip(signal.scale, signal.offset):
        if factor == 0:
            if shift == 0:
                return True
            continue
        zero = -shift / factor
        if zero.denominator == 1 and signal.products.reaches(int(zero)):
            return True
    return False


def real_threshold(
    scale: Exact, offset: Exact, strict: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Threshold and flip of ``scale * x + offset >= 0``, or ``> 0`` where strict, of a float32 x; exact for every x."""
    thresholds, flips = [], []
    for factor, shift in zip(scale, offset):
        if factor == 0:
            holds = shift > 0 or (shift == 0 and not strict)
            thresholds.append(np.float32(-np.inf if holds else np.inf))
            flips.append(False)
            continue
        # x >= t, x > t; of a negative factor x <= t, which is not x > t, and x < t, which is not x >= t.
        at, falls = -shift / factor, factor < 0
        above = strict != falls
        if at > MAX_FLOAT or (
            above and at == MAX_FLOAT
        ):  # no float32 reaches it; nextafter would warn of infinity
            thresholds.append(np.float32(np.inf))
            flips.append(falls)
            continue
        threshold = np.float32(float(max(at, -MAX_FLOAT)))
        if Fraction(float(threshold)) < at or (above and Fraction(float(threshold)) == at):
            threshold = np.nextafter(threshold, np.float32(np.inf))
        while threshold > -MAX_FLOAT:  # float() may have rounded up, past a smaller float32 that does as well
            lower = np.nextafter(threshold, np.float32(-np.inf))
            if Fraction(float(lower)) < at or (above and Fraction(float(lower)) == at):
                break
            threshold = lower
        thresholds.append(threshold)
        flips.append(falls)
    return np.array(thresholds, np.float32), np.array(flips)
