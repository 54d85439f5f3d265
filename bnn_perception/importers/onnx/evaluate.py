"""Evaluates nodes and whole graphs in NumPy, with ``onnx.reference`` and the operators that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.onnx.operators import OPERATORS, QUANT_DOMAINS

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
    if missing or any(_is_valid(each) for node in model.graph.node for each in node.attribute):
        whole = ModelProto()
        whole.CopyFrom(model)
        whole.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(missing))
        # The evaluator of onnx before 1.23 does not know it; no padding is what it says.
        for attribute in filter(_is_valid, (each for node in whole.graph.node for each in node.attribute)):
            attribute.s = b"NOTSET"
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


def _is_valid(attribute: onnx.AttributeProto) -> bool:
    return attribute.name == "auto_pad" and attribute.s == b"VALID"


def evaluate_node(
    node: onnx.NodeProto, values: Sequence[NDArray[Any] | None], opset: int
) -> list[NDArray[Any]]:
    """What one node gives for constants.

    Raises:
        RefusalError: where it cannot be evaluated.
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
    try:
        return list(evaluator(helper.make_model(graph, opset_imports=opsets)).run(None, present))
    except RefusalError:
        raise
    # The evaluator of an untrusted graph raises exceptions of any type.
    except Exception as error:
        raise RefusalError(f"cannot be evaluated: {error}") from None
