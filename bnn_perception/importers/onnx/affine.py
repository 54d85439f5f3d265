"""Nodes that only change the affine map of a signal: scales, offsets, batch norm, activations."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LayerBuilder
from bnn_perception.importers.fold.signal import Exact, Signal, constant, exact, per_channel
from bnn_perception.importers.onnx.node import Node

#: Stands for the limit that a Clip does not have: beyond every float64.
UNLIMITED = Fraction(2) ** 1024


def _operands(node: Node[Signal]) -> tuple[Signal, Exact]:
    """The signal and the constant that a node combines."""
    return per_channel(node.signal, node.constant(1 - node.place))


def add(node: Node[Signal], layers: LayerBuilder) -> Signal:
    if len(node.inputs) != 2:
        raise RefusalError(f"adds {len(node.inputs)} tensors; only two can be")
    if len(node.taken) == 2:
        return layers.add(*node.taken)
    signal, number = _operands(node)
    return signal.shifted(number)


def sub(node: Node[Signal], layers: LayerBuilder) -> Signal:
    if len(node.taken) == 2:
        first, second = node.taken
        minus = constant(-1, len(second.scale))
        return layers.add(first, second.scaled(minus))
    signal, other = _operands(node)
    if node.place == 0:
        return signal.shifted(-other)
    return signal.scaled(0 * other - 1).shifted(other)


def mul(node: Node[Signal]) -> Signal:
    signal, other = _operands(node)
    return signal.scaled(other)


def div(node: Node[Signal]) -> Signal:
    if node.place != 0:
        raise RefusalError("divides by the activation")
    signal, other = _operands(node)
    if np.any(other == 0):
        raise RefusalError("divides by zero")
    return signal.scaled(1 / other)


def negate(node: Node[Signal]) -> Signal:
    return node.signal.scaled(constant(-1, len(node.signal.scale)))


def batch_norm(node: Node[Signal]) -> Signal:
    signal = node.signal
    norm = node.normalization(len(signal.scale))
    if len(signal.shape) != 2 and (signal.pixel or signal.axes)[0] != "C":
        raise RefusalError("normalizes along another axis than the channels")
    factor = exact(norm.gamma) / exact(np.sqrt(norm.variance.astype(np.float64) + norm.epsilon))
    return signal.shifted(-exact(norm.mean)).scaled(factor).shifted(exact(norm.beta))


def clip(node: Node[Signal], layers: LayerBuilder) -> Signal:
    lowest, highest = (
        constant(UNLIMITED if limit > 0 else -UNLIMITED, len(node.signal.scale))
        if math.isinf(limit)
        else constant(exact(limit).item(), len(node.signal.scale))
        for limit in node.limits()
    )
    return layers.clip(layers.fix_pixel_range(node.signal, highest), lowest, highest)


def bounded(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """Max and Min with a constant: the half of a Clip, a limit a channel."""
    if len(node.inputs) != 2:
        raise RefusalError(f"compares {len(node.inputs)} tensors; only two can be")
    signal, limit = _operands(node)
    free = constant(UNLIMITED, len(limit))
    low, high = (limit, free) if node.op == "Max" else (-free, limit)
    return layers.clip(layers.fix_pixel_range(signal, limit), low, high)


def negation(node: Node[Signal]) -> Signal:
    """Logical NOT of a 0/1 signal: ``1 - x``."""
    one = constant(1, len(node.signal.scale))
    return node.signal.scaled(-one).shifted(one)


def where(node: Node[Signal]) -> Signal:
    """One of two constants, chosen by a 0/1 signal."""
    if node.place != 0:
        raise RefusalError(
            "chooses among activations; only constants can be chosen, one for true and one for false"
        )
    signal, true = per_channel(node.signal, node.constant(1))
    signal, false = per_channel(signal, node.constant(2))
    return replace(signal.scaled(true - false).shifted(false), dtype=node.constant(1).dtype)


def relu(node: Node[Signal], layers: LayerBuilder) -> Signal:
    zero = constant(0, len(node.signal.scale))
    return layers.clip(node.signal, zero, constant(UNLIMITED, len(zero)))


def absolute(node: Node[Signal], layers: LayerBuilder) -> Signal:
    return layers.bent(node.signal, constant(-1, len(node.signal.scale)))


def leaky_relu(node: Node[Signal], layers: LayerBuilder) -> Signal:
    slope = Fraction(node.attribute("alpha", 0.01))
    return layers.bent(node.signal, constant(slope, len(node.signal.scale)))


def prelu(node: Node[Signal], layers: LayerBuilder) -> Signal:
    if node.place != 0:
        raise RefusalError("takes the activation as its slope")
    signal, slope = _operands(node)
    return layers.bent(signal, slope)
