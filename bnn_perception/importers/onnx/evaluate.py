"""Evaluates nodes and whole graphs in NumPy, with ``onnx.reference`` and the operators that it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.onnx.operators import OPERATORS, QUANT_DOMAINS

#: Numbers of an input that can state a shape, or pads on both sides of each axis.
MAX_RANK = 64

if TYPE_CHECKING:
    import onnx
    from onnx.reference import ReferenceEvaluator


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Evaluates a model; the operators whose records say how are evaluated as these say."""
    from onnx import ModelProto, helper
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    # Some exporters use the quantizers' domains without an entry for them.
    missing = {node.domain for node in model.graph.node if node.domain in QUANT_DOMAINS}
    missing -= {entry.domain for entry in model.opset_import}
    if missing:
        whole = ModelProto()
        whole.CopyFrom(model)
        whole.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(missing))
        model = whole
    own = [
        type(operator.name, (OpRun,), {"op_domain": domain, "_run": operator.run})
        for operator in OPERATORS.values()
        if operator.run is not None
        # onnx.reference calls the domain of the standard by one of its two names.
        for domain in operator.domains
        if domain != "ai.onnx"
    ]
    return ReferenceEvaluator(model, new_ops=own)


def evaluate_node(
    node: onnx.NodeProto, values: Sequence[NDArray[Any] | None], opset: int, most: int
) -> list[NDArray[Any]]:
    """What one node gives for constants.

    Args:
        most: numbers that it may give.

    Raises:
        RefusalError: where it cannot be evaluated, or would give more.
    """
    from onnx import helper

    present = {name: value for name, value in zip(node.input, values) if name and value is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in present.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in QUANT_DOMAINS)]
    model = helper.make_model(graph, opset_imports=opsets)
    try:
        made = _result_size(model, present)
        if made > most:
            raise RefusalError(f"gives {made} numbers; so large a constant is not evaluated")
        return list(evaluator(model).run(None, present))
    except RefusalError:
        raise
    # The evaluator of an untrusted graph raises exceptions of any type.
    except Exception as error:
        raise RefusalError(f"cannot be evaluated: {error}") from None


def _result_size(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> int:
    """How many numbers the one node of a graph gives: some bytes can ask for any number (Expand, Pad, Range)."""
    from onnx import ModelProto, numpy_helper, shape_inference

    known = ModelProto()
    known.CopyFrom(model)
    known.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in values.items()
        if value.size <= MAX_RANK and value.dtype.kind in "iuf"
    )
    size = 0
    for output in shape_inference.infer_shapes(known).graph.output:
        kind = output.type.tensor_type
        sizes = [dimension.dim_value for dimension in kind.shape.dim if dimension.HasField("dim_value")]
        if kind.HasField("shape") and len(sizes) == len(kind.shape.dim):
            size += math.prod(sizes)
        else:  # a quantizer, or chosen by the numbers (NonZero): about as large as what it takes, spread to one shape
            sides = zip_longest(*(reversed(value.shape) for value in values.values()), fillvalue=1)
            size += math.prod(max(side) for side in sides)
    return size
