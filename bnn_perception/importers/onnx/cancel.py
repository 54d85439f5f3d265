"""Leaves out what a graph takes off and adds again: the gradient of a sign, which nets write into its values.

``sign(x) - clip(x) + clip(x)``, where training sees the gradient of the clip alone, is ``sign(x)`` but for the
roundings of float32. What cancels is not computed, so it may be of any operators: Bi-Real Net's polynomial, a tanh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bnn_perception.importers.onnx.node import attribute

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

#: Sums that are opened to see what cancels: the forms that nets are written in have one or two.
STEPS = 8
#: Operators on the way to what cancels, one behind the other.
DEPTH = 32
#: Operators that work number by number: what they give has the shape to which their inputs are spread.
ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max",
    "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor",
))  # fmt: skip


def shorten(nodes: Sequence[onnx.NodeProto], image: str) -> tuple[list[onnx.NodeProto], dict[str, list[str]]]:
    """The nodes, where an Identity stands for each sum of which but one term cancels.

    Args:
        nodes: in their order.
        image: the tensor on which such a sum must depend; constants are computed as they stand.

    Returns:
        The nodes; for each output of a sum that was replaced, what cancels in it. That must have the shape of what is
        left, or the sum would spread it.
    """
    from onnx import helper

    result: list[onnx.NodeProto] = []
    cancelled: dict[str, list[str]] = {}
    sums: dict[str, list[tuple[str, int]]] = {}  # names and signs of the terms
    places: dict[str, int] = {}
    dependent = {image}
    for place, node in enumerate(nodes):
        result.append(node)
        if not dependent.intersection(node.input) or not node.output:
            continue
        dependent.update(filter(None, node.output))
        name = node.output[0]
        if node.domain not in ("", "ai.onnx") or name in places:
            continue
        if node.op_type in ("Add", "Sub") and len(node.input) == 2:
            sums[name] = [(node.input[0], 1), (node.input[1], 1 if node.op_type == "Add" else -1)]
        elif node.op_type == "Identity":
            sums[name] = [(node.input[0], 1)]
        else:
            continue
        places[name] = place
        left, gone = _left(name, sums, places, cancelled)
        if not gone:
            continue
        cancelled[name] = gone
        sums[name] = [] if left is None else [(left, 1)]
        if left is not None:
            result[-1] = helper.make_node("Identity", [left], [name], name=node.name or name)
    replaced = {node.output[0] for node, before in zip(result, nodes) if node is not before}
    return result, {name: gone for name, gone in cancelled.items() if name in replaced}


def _left(
    name: str,
    sums: Mapping[str, list[tuple[str, int]]],
    places: Mapping[str, int],
    cancelled: Mapping[str, list[str]],
) -> tuple[str | None, list[str]]:
    """The one term that is left of a sum, None where all cancel; and those that cancel, none where others are left."""
    terms, gone = {name: 1}, []
    for _ in range(STEPS):
        # Those that are nothing first; then the last, so that none is opened before all sums that take it.
        opened = max(
            (term for term in terms if term in sums),
            key=lambda term: (not sums[term], places[term]),
            default=None,
        )
        if opened is None:
            break
        factor = terms.pop(opened)
        gone += cancelled.get(opened, [])
        for term, sign in sums[opened]:
            terms[term] = terms.get(term, 0) + factor * sign
            if terms[term] == 0:
                del terms[term]
                gone.append(term)
        if gone and list(terms.values()) in ([], [1]):
            return next(iter(terms), None), gone
    return None, []


def shape_of(
    name: str, known: Callable[[str], Shape | None], producers: Mapping[str, onnx.NodeProto]
) -> Shape | None:
    """The shape of a tensor that is made of known ones number by number; None where it is made otherwise.

    Args:
        known: gives the shape of a tensor that is there, None for another.
        producers: the nodes that give the others.
    """
    found: dict[str, Shape | None] = {}

    def ask(name: str, depth: int) -> Shape | None:
        if name not in found:
            shape = known(name)
            found[name] = shape if shape is not None or depth == 0 else of_node(name, depth)
        return found[name]

    def of_node(name: str, depth: int) -> Shape | None:
        node = producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return _constant(node)
        if node.op_type in ("ConstantOfShape", "Expand"):  # torch.ones_like
            source = producers.get(node.input[-1])
            return (
                ask(source.input[0], depth - 1) if source is not None and source.op_type == "Shape" else None
            )
        if node.op_type not in ELEMENTWISE:
            return None
        shapes = [ask(name, depth - 1) for name in filter(None, node.input)]
        try:
            return (
                np.broadcast_shapes(*(shape for shape in shapes if shape is not None))
                if all(shape is not None for shape in shapes)
                else None
            )
        except ValueError:
            return None

    return ask(name, DEPTH)


def _constant(node: onnx.NodeProto) -> Shape | None:
    tensor = attribute(node, "value", None)
    if tensor is not None:
        return tuple(tensor.dims)
    return () if attribute(node, "value_float", None) is not None else None
