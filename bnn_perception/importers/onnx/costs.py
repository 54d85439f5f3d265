"""What it costs to compute a node of constants, told from its inputs before it is computed.

A few bytes of a graph can ask for gigabytes or hours (ConstantOfShape, Expand, Tile, Range, chains of Concat, MatMul, a
regular expression). So only operators whose cost is known are computed, and only while the graph's budget lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.onnx.node import attribute

if TYPE_CHECKING:
    import onnx

Values = Sequence["NDArray[Any] | None"]

#: Elements and operations of all constants that are computed, beside those that the size of the graph's own allows.
FREE_ELEMENTS, FREE_OPERATIONS = 1 << 25, 1 << 30
#: A weight passes through so many nodes at most: quantizers are written as a dozen.
ELEMENTS_A_CONSTANT, OPERATIONS_A_CONSTANT = 32, 1024


class Cost(NamedTuple):
    """What a node takes.

    Attributes:
        elements: of its outputs.
        operations: multiplications, or what takes about as long.
    """

    elements: int
    operations: int


class Budget:
    """What the constants of a graph may still cost.

    Args:
        elements: of the constants that the graph brings.
    """

    def __init__(self, elements: int) -> None:
        self._elements = FREE_ELEMENTS + ELEMENTS_A_CONSTANT * elements
        self._operations = FREE_OPERATIONS + OPERATIONS_A_CONSTANT * elements

    def take(self, node: onnx.NodeProto, values: Values) -> None:
        """Take what a node costs.

        Raises:
            RefusalError: where it costs too much, or how much is not known.
        """
        cost = cost_of(node, values)
        if cost.elements > self._elements or cost.operations > self._operations:
            raise RefusalError(
                f"makes {cost.elements} numbers by {cost.operations} operations; the constants of this graph may take "
                f"{self._elements} and {self._operations} more"
            )
        self._elements -= cost.elements
        self._operations -= cost.operations


def cost_of(node: onnx.NodeProto, values: Values) -> Cost:
    """What a node costs for constants.

    Raises:
        RefusalError: where that is not known.
    """
    estimate = COSTS.get(node.op_type)
    if estimate is None:
        raise RefusalError("is not computed for constants; fold it before the import (onnxsim, for instance)")
    # Texts have no size: one of them can hold a megabyte, or a pattern that takes years.
    if any(value is not None and value.dtype.kind not in "biufc" for value in values):
        raise RefusalError("takes texts")
    if node.op_type in ("Cast", "CastLike", "Constant") and _gives_texts(node):
        raise RefusalError("gives texts")
    try:
        cost = estimate(node, values)
    except RefusalError:
        raise
    # Shapes that do not fit, inputs that are missing: the evaluator would say the same at more length.
    except Exception as error:
        raise RefusalError(f"cannot be evaluated: {error}") from None
    return cost if isinstance(cost, Cost) else Cost(cost, cost)


Estimate = Callable[["onnx.NodeProto", Values], "Cost | int"]


def _gives_texts(node: onnx.NodeProto) -> bool:
    from onnx import TensorProto

    return attribute(node, "to", 0) == TensorProto.STRING or any(
        entry.name in ("value_string", "value_strings", "sparse_value") for entry in node.attribute
    )


def _sizes(value: NDArray[Any] | None) -> list[int]:
    """Whole numbers as Python's, which do not overflow."""
    assert value is not None
    return [int(number) for number in value.reshape(-1)]


def _given(values: Values) -> list[NDArray[Any]]:
    return [value for value in values if value is not None]


def _constant(node: onnx.NodeProto, _: Values) -> int:
    # Its numbers stand in the file, or its dims say otherwise and it cannot be read.
    return sum(
        max(math.prod(entry.t.dims), len(entry.ints), len(entry.floats), 1) for entry in node.attribute
    )


def _broadcast(_: onnx.NodeProto, values: Values) -> int:
    return math.prod(np.broadcast_shapes(*(value.shape for value in _given(values))))


def _largest(_: onnx.NodeProto, values: Values) -> int:
    """Of what gives no more than its largest input has, looking at each number once or, sorting, a few times."""
    return max(value.size for value in _given(values))


def _concat(_: onnx.NodeProto, values: Values) -> int:
    return sum(value.size for value in _given(values))


def _gather(node: onnx.NodeProto, values: Values) -> int:
    data, indices = _given(values)[:2]
    axis = attribute(node, "axis", 0)
    return indices.size * (data.size // max(data.shape[axis], 1))


def _constant_of_shape(_: onnx.NodeProto, values: Values) -> int:
    return math.prod(max(size, 0) for size in _sizes(values[0]))


def _expand(_: onnx.NodeProto, values: Values) -> int:
    data, shape = _given(values)[:2]
    sizes = _sizes(shape)
    if len(sizes) > 32 or any(size < 0 or size >> 40 for size in sizes):
        raise RefusalError(f"expands to {sizes[:8]}")
    return math.prod(max(a, b) for a, b in zip(_padded(data.shape, sizes), _padded(sizes, data.shape)))


def _padded(sizes: Sequence[int], other: Sequence[int]) -> list[int]:
    return [1] * (len(other) - len(sizes)) + list(sizes)


def _tile(_: onnx.NodeProto, values: Values) -> int:
    data, repeats = _given(values)[:2]
    return data.size * math.prod(max(times, 0) for times in _sizes(repeats))


def _pad(node: onnx.NodeProto, values: Values) -> int:
    data = values[0]
    assert data is not None
    pads = _sizes(values[1]) if len(values) > 1 else list(attribute(node, "pads", []))
    return (
        math.prod(data.shape) if not pads else (max(data.shape, default=1) + sum(map(abs, pads))) ** data.ndim
    )


def _range(_: onnx.NodeProto, values: Values) -> int:
    start, limit, delta = (float(value.reshape(-1)[0]) for value in _given(values)[:3])
    count = (limit - start) / delta if delta else math.inf
    if not math.isfinite(count):
        raise RefusalError("counts without an end")
    return max(math.ceil(count), 0)


def _nonzero(_: onnx.NodeProto, values: Values) -> int:
    return sum(value.size * max(value.ndim, 1) for value in _given(values))


def _matmul(_: onnx.NodeProto, values: Values) -> Cost:
    a, b = _given(values)[:2]
    batch = math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    rows = a.shape[-2] if a.ndim > 1 else 1
    columns = b.shape[-1] if b.ndim > 1 else 1
    elements = batch * rows * columns
    return Cost(elements, elements * a.shape[-1])


def _gemm(node: onnx.NodeProto, values: Values) -> Cost:
    a, b = _given(values)[:2]
    a, b = (a.T if attribute(node, "transA", 0) else a), (b.T if attribute(node, "transB", 0) else b)
    return _matmul(node, [a, b])


def _multi_threshold(_: onnx.NodeProto, values: Values) -> Cost:
    x, thresholds = _given(values)[:2]
    return Cost(x.size, x.size * max(thresholds.size, 1))


#: How to tell the cost of each operator that is computed.
COSTS: dict[str, Estimate] = {
    **dict.fromkeys(
        (
            *(
                "Abs",
                "Add",
                "And",
                "BatchNormalization",
                "BipolarQuant",
                "Ceil",
                "Clip",
                "Cos",
                "Div",
                "Dropout",
                "Elu",
            ),
            *(
                "Equal",
                "Erf",
                "Exp",
                "Floor",
                "Greater",
                "GreaterOrEqual",
                "HardSigmoid",
                "HardSwish",
                "Identity",
            ),
            *(
                "IntQuant",
                "IsInf",
                "IsNaN",
                "LeakyRelu",
                "Less",
                "LessOrEqual",
                "Log",
                "Max",
                "Mean",
                "Min",
                "Mod",
            ),
            *(
                "Mul",
                "Neg",
                "Not",
                "Or",
                "PRelu",
                "Pow",
                "Quant",
                "Reciprocal",
                "Relu",
                "Round",
                "Selu",
                "Sigmoid",
            ),
            *("Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor"),
        ),
        _broadcast,
    ),
    **dict.fromkeys(
        (
            *("ArgMax", "ArgMin", "Cast", "CastLike", "CumSum", "DequantizeLinear", "Flatten", "LogSoftmax"),
            *("QuantizeLinear", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
            *(
                "ReduceSum",
                "ReduceSumSquare",
                "Reshape",
                "Shape",
                "Size",
                "Slice",
                "Softmax",
                "Split",
                "Squeeze",
            ),
            *("TopK", "Transpose", "Trilu", "Unsqueeze"),
        ),
        _largest,
    ),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "EyeLike": _largest,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MultiThreshold": _multi_threshold,
    "NonZero": _nonzero,
    "Pad": _pad,
    "Range": _range,
    "Tile": _tile,
}
