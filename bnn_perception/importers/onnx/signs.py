"""Nodes that compare a signal with thresholds, or round pixels to levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Exact, Signal, constant, exact
from bnn_perception.importers.onnx.affine import per_channel
from bnn_perception.importers.onnx.graph import Node


@dataclass(frozen=True, eq=False)
class Threshold:
    """What a sign compares with, and gives.

    Attributes:
        signal: what is compared.
        at: (C,) rational numbers; the sign is +1 where ``value >= at``, otherwise -1.
        scale, offset: (C,) rational numbers; the node gives ``scale * sign + offset``.
        strict: whether +1 takes ``value > at`` instead.
        dtype: of what it gives.
    """

    signal: Signal
    at: Exact
    scale: Exact
    offset: Exact
    strict: bool = False
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class Steps:
    """What a quantizer of several bits gives: whole numbers from ``low`` to ``high`` times ``step``."""

    step: Fraction
    low: int
    high: int

    def of(self, signal: Signal) -> Signal:
        """Pixels in these steps."""
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


def bipolar(node: Node) -> Threshold:
    signal, magnitude = per_channel(node.signal, node.constant(1))
    if any(value <= 0 for value in magnitude):
        raise RefusalError("its scale is not positive")
    return Threshold(signal, 0 * magnitude, magnitude, 0 * magnitude)


def sign(node: Node) -> Threshold:
    signal = node.signal
    one = constant(1, len(signal.scale))
    if _is_rectified(signal):  # 0 and +1
        return Threshold(signal, 0 * one, one / 2, one / 2, strict=True)
    if _can_be_zero(signal):
        raise RefusalError("its input can be 0, where Sign gives 0; use a quantizer that gives +1 or -1")
    return Threshold(signal, 0 * one, one, 0 * one)


def comparison(node: Node) -> Threshold:
    """0 and 1; of a comparison that holds for small values, the opposite of one that holds for large values."""
    signal, at = per_channel(node.signal, node.constant(1 - node.place))
    holds_above = node.op.startswith("Greater") == (node.place == 0)
    holds_at = node.op.endswith("OrEqual")
    half = constant(Fraction(1, 2), len(at))
    strict = holds_above != holds_at
    return Threshold(signal, at, half if holds_above else -half, half, strict, np.dtype(np.bool_))


def multi_threshold(node: Node) -> Threshold:
    signal, thresholds = node.signal, node.constant(1)
    if thresholds.ndim != 2 or thresholds.shape[1] != 1:
        raise RefusalError(
            f"has thresholds of shape {list(thresholds.shape)}; one a channel can be expressed"
        )
    layout = "HWC" if node.attribute("data_layout", b"") == b"NHWC" else "CHW"
    if not signal.flat and signal.axes != layout:
        raise RefusalError("its data layout is another one than its input's")
    if len(thresholds) not in (1, len(signal.scale)):
        raise RefusalError(f"has {len(thresholds)} thresholds for {len(signal.scale)} channels")
    at = exact(np.broadcast_to(thresholds[:, 0], len(signal.scale)))
    step = Fraction(node.attribute("out_scale", 1.0))
    if step <= 0:
        raise RefusalError("its out_scale is not positive")
    low = np.full(len(at), Fraction(node.attribute("out_bias", 0.0)), dtype=object)
    return Threshold(signal, at, low * 0 + step / 2, low + step / 2)


def quant(node: Node) -> Threshold | Steps:
    scale, zero_point, bit_width = (node.constant(index) for index in (1, 2, 3))
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    mode = node.attribute("rounding_mode", b"ROUND")
    if scale.size != 1 or float(scale.item()) <= 0 or np.any(zero_point != 0) or mode.upper() != b"ROUND":
        raise RefusalError("takes one positive scale, zero point 0 and rounding mode ROUND to be expressed")
    step = Fraction(float(scale.item()))
    width = float(bit_width.item()) if bit_width.size == 1 else math.nan
    if node.signal.kind == "pixels" and width in range(2, 9):
        half = 2 ** (int(width) - 1)
        return Steps(step, -half + narrow, half - 1) if signed else Steps(step, 0, 2 * half - 1 - narrow)
    if width != 1:
        raise RefusalError(f"quantizes to {width:g} bits; activations must have 1 bit (the image up to 8)")
    half_step = constant(step / 2, len(node.signal.scale))
    if signed:  # a sign, see quantize()
        return Threshold(node.signal, 0 * half_step, 2 * half_step, 0 * half_step)
    if narrow:
        raise RefusalError("is narrow, unsigned and of 1 bit, which leaves no number but 0")
    # 0 and 1, times the scale. ROUND rounds a half to even, here to 0.
    return Threshold(node.signal, half_step, half_step, half_step, strict=True)


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


def _is_rectified(signal: Signal) -> bool:
    """Whether a ReLU has left 0 of what lay below."""
    if signal.limits is not None:
        return all(signal.limits[0] == 0)
    return (
        signal.negative is not None
        and not any(signal.offset)
        and all((signal.scale >= 0) & (signal.negative <= 0))
    )


def _can_be_zero(signal: Signal) -> bool:
    """Whether sums or a stream can be exactly 0 in some channel.

    A stream with a shortcut adds up numbers of many layers. It hits 0 where all of them lie on a coarse grid, as
    without batch norm; otherwise it practically never does, nor could the source's float32 tell.
    """
    if signal.limits is not None and any(0 in limit for limit in signal.limits):
        return True
    stream = signal.stream
    products = signal.products if stream is None else stream.products
    if products is None:
        return False
    if stream is None:
        negative = signal.scale if signal.negative is None else signal.negative
        scale, offset = signal.scale, signal.offset
    else:
        scale, negative = signal.scale * stream.scale, signal.scale * stream.negative
        offset = signal.scale * stream.offset + signal.offset
    if stream is not None and stream.shortcut != "none":
        return any(max(value.denominator for value in row) <= 256 for row in zip(scale, negative, offset))
    for above, factors in ((True, scale), (False, negative)):
        for factor, shift in zip(factors, offset):
            if factor == 0:
                if shift == 0:
                    return True
                continue
            zero = -shift / factor
            if zero.denominator == 1 and (zero >= 0) == above and products.reaches(int(zero)):
                return True
    return False


OPERATIONS: dict[str, Callable[[Node], Threshold | Steps]] = {
    "Greater": comparison,
    "GreaterOrEqual": comparison,
    "Less": comparison,
    "LessOrEqual": comparison,
    "BipolarQuant": bipolar,
    "Sign": sign,
    "MultiThreshold": multi_threshold,
    "Quant": quant,
    "IntQuant": quant,
}
