"""Nodes that only change the affine map of a signal: scales, offsets, batch norm, activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Exact, Signal, constant, exact
from bnn_perception.importers.onnx.graph import Node

#: Stands for the limit that a Clip does not have: beyond every float64.
UNLIMITED = Fraction(2) ** 1024


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
    if signal.flat:  # the axes that it had before
        sizes = [signal.sizes[axis] for axis in signal.axes]
        shape = (1, *(sizes if shape[-1] > 1 else [1 for _ in sizes]))
    by_axis = values.reshape(shape)
    for number, axis in enumerate("N" + signal.axes):
        if axis in "HW" and shape[number] > 1:  # may be written out for each pixel
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


def _operands(node: Node) -> tuple[Signal, Exact]:
    """The signal and the constant that a node combines."""
    return per_channel(node.signal, node.constant(1 - node.place))


def add(node: Node) -> Signal:
    if len(node.inputs) != 2:
        raise RefusalError(f"adds {len(node.inputs)} tensors; only two can be")
    if len(node.taken) == 2:
        first, second = node.taken
        return first.plus(second)
    signal, other = _operands(node)
    return signal.shifted(other)


def sub(node: Node) -> Signal:
    signal, other = _operands(node)
    if node.place == 0:
        return signal.shifted(-other)
    return signal.scaled(0 * other - 1).shifted(other)


def mul(node: Node) -> Signal:
    signal, other = _operands(node)
    return signal.scaled(other)


def div(node: Node) -> Signal:
    if node.place != 0:
        raise RefusalError("divides by the activation")
    signal, other = _operands(node)
    if np.any(other == 0):
        raise RefusalError("divides by zero")
    return signal.scaled(1 / other)


def negate(node: Node) -> Signal:
    return node.signal.scaled(constant(-1, len(node.signal.scale)))


def batch_norm(node: Node) -> Signal:
    signal = node.signal
    if node.attribute("training_mode", 0):
        raise RefusalError("is in training mode; export the net in evaluation mode")
    if not signal.flat and signal.axes[0] != "C":
        raise RefusalError("normalizes along another axis than the channels")
    gamma, beta, mean, variance = (node.constant(index).reshape(-1) for index in (1, 2, 3, 4))
    if not len(gamma) == len(beta) == len(mean) == len(variance) == len(signal.scale):
        raise RefusalError(f"has {len(gamma)} channels, its input {len(signal.scale)}")
    if len(node.outputs) > 1 and node.opset < 14:
        raise RefusalError("gives the statistics of a batch; export the net in evaluation mode")
    epsilon = node.attribute("epsilon", 1e-5)
    if np.any(variance.astype(np.float64) + epsilon <= 0):
        raise RefusalError("a variance is not positive")
    factor = exact(gamma) / exact(np.sqrt(variance.astype(np.float64) + epsilon))
    return signal.shifted(-exact(mean)).scaled(factor).shifted(exact(beta))


def limits(node: Node) -> tuple[Exact, Exact]:
    """Lowest and highest value that a Clip leaves."""
    found = []
    for index, name, unlimited in ((1, "min", -UNLIMITED), (2, "max", UNLIMITED)):
        default = np.asarray(np.nan)
        value = node.option(index, default) if node.opset >= 11 else node.attribute(name, default)
        limit = unlimited if value is default else exact(np.asarray(value)).item()
        found.append(constant(limit, len(node.signal.scale)))
    return found[0], found[1]


def negation(node: Node) -> Signal:
    """Of truth values, 0 and 1."""
    one = constant(1, len(node.signal.scale))
    return node.signal.scaled(-one).shifted(one)


def where(node: Node) -> Signal:
    """One of two constants, chosen by truth values."""
    if node.place != 0:
        raise RefusalError(
            "chooses among activations; only constants can be chosen, one for true and one for false"
        )
    signal, true = per_channel(node.signal, node.constant(1))
    signal, false = per_channel(signal, node.constant(2))
    return replace(signal.scaled(true - false).shifted(false), dtype=node.constant(1).dtype)


def relu(node: Node) -> Signal:
    """Of sums whose kink the format has, values that can be added; of others, values whose signs can be taken."""
    signal = node.signal
    zero = constant(0, len(signal.scale))
    if signal.kind == "sums" and signal.limits is None and not any(signal.offset):
        return signal.bent(zero)
    return signal.clipped(zero, constant(UNLIMITED, len(zero)))


def leaky_relu(node: Node) -> Signal:
    slope = Fraction(node.attribute("alpha", 0.01))
    return node.signal.bent(constant(slope, len(node.signal.scale)))


def prelu(node: Node) -> Signal:
    if node.place != 0:
        raise RefusalError("takes the activation as its slope")
    signal, slope = _operands(node)
    return signal.bent(slope)


OPERATIONS: dict[str, Callable[[Node], Signal]] = {
    "Add": add,
    "Sum": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Neg": negate,
    "Not": negation,
    "Where": where,
    "BatchNormalization": batch_norm,
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
}
