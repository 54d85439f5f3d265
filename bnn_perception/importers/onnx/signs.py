"""Nodes that compare a signal with thresholds, or round pixels to levels."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Signal, constant, exact, per_channel
from bnn_perception.importers.fold.thresholds import Quantization, Threshold, can_be_zero, is_rectified
from bnn_perception.importers.onnx.node import Node


def bipolar(node: Node[Signal]) -> Threshold:
    signal, magnitude = per_channel(node.signal, node.constant(1))
    if any(value <= 0 for value in magnitude):
        raise RefusalError("its scale is not positive")
    return Threshold(signal, 0 * magnitude, magnitude, 0 * magnitude)


def sign(node: Node[Signal]) -> Threshold:
    signal = node.signal
    one = constant(1, len(signal.scale))
    # Behind a ReLU a sign is 0 or +1.
    if is_rectified(signal):
        return Threshold(signal, 0 * one, one / 2, one / 2, strict=True)
    if can_be_zero(signal):
        raise RefusalError("its input can be 0, where Sign gives 0; use a quantizer that gives +1 or -1")
    return Threshold(signal, 0 * one, one, 0 * one)


def comparison(node: Node[Signal]) -> Threshold:
    """0 or 1; a comparison that holds for small values is the opposite of one that holds for large values."""
    signal, at = per_channel(node.signal, node.constant(1 - node.place))
    holds_above = node.op.startswith("Greater") == (node.place == 0)
    holds_at = node.op.endswith("OrEqual")
    half = constant(Fraction(1, 2), len(at))
    strict = holds_above != holds_at
    return Threshold(signal, at, half if holds_above else -half, half, strict, np.dtype(np.bool_))


def multi_threshold(node: Node[Signal]) -> Threshold:
    signal, thresholds = node.signal, node.constant(1)
    if thresholds.ndim != 2 or thresholds.shape[1] != 1:
        raise RefusalError(
            f"has thresholds of shape {list(thresholds.shape)}; one a channel can be expressed"
        )
    layout = "HWC" if node.attribute("data_layout", b"") == b"NHWC" else "CHW"
    if len(signal.shape) != 2 and (signal.pixel or signal.axes) != layout:
        raise RefusalError("its data layout is another one than its input's")
    if len(thresholds) not in (1, len(signal.scale)):
        raise RefusalError(f"has {len(thresholds)} thresholds for {len(signal.scale)} channels")
    at = exact(np.broadcast_to(thresholds[:, 0], len(signal.scale)))
    step = Fraction(node.attribute("out_scale", 1.0))
    if step <= 0:
        raise RefusalError("its out_scale is not positive")
    low = np.full(len(at), Fraction(node.attribute("out_bias", 0.0)), dtype=object)
    return Threshold(signal, at, low * 0 + step / 2, low + step / 2)


def quant(node: Node[Signal]) -> Threshold | Quantization:
    scale, zero_point, bit_width = (node.constant(index) for index in (1, 2, 3))
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    mode = node.attribute("rounding_mode", b"ROUND")
    if scale.size != 1 or float(scale.item()) <= 0 or np.any(zero_point != 0) or mode.upper() != b"ROUND":
        raise RefusalError("takes one positive scale, zero point 0 and rounding mode ROUND to be expressed")
    step = Fraction(float(scale.item()))
    width = float(bit_width.item()) if bit_width.size == 1 else math.nan
    if node.signal.kind == "pixels" and width in range(2, 9):
        half = 2 ** (int(width) - 1)
        low, high = (-half + narrow, half - 1) if signed else (0, 2 * half - 1 - narrow)
        return Quantization(node.signal, step, low, high)
    if width != 1:
        raise RefusalError(f"quantizes to {width:g} bits; activations must have 1 bit (the image up to 8)")
    half_step = constant(step / 2, len(node.signal.scale))
    # A sign, see quantize().
    if signed:
        return Threshold(node.signal, 0 * half_step, 2 * half_step, 0 * half_step)
    if narrow:
        raise RefusalError("is narrow, unsigned and of 1 bit, which leaves no number but 0")
    # 0 and 1, times the scale. ROUND rounds a half to even, here to 0.
    return Threshold(node.signal, half_step, half_step, half_step, strict=True)
