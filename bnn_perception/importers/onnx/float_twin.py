"""Reads a float twin (``float.onnx``) into the few stages that a backend of this package's own evaluates.

The graph must be a chain: the operators that may stand in it are those of
:data:`~bnn_perception.importers.onnx.operators.OPERATORS` that have a ``stage``, and
:mod:`~bnn_perception.importers.onnx.stages` says what each of them does. Anything else is refused with the node's name
and operator.
"""

from __future__ import annotations

from pathlib import Path

from bnn_perception.errors import one_line
from bnn_perception.importers.errors import MALFORMED, FloatTwinError, ImporterError, RefusalError
from bnn_perception.importers.onnx.file import load
from bnn_perception.importers.onnx.graph import Graph
from bnn_perception.importers.onnx.operators import OPERATORS, find
from bnn_perception.importers.onnx.stages import Chain
from bnn_perception.importers.stage import Stage
from bnn_perception.net.layer import Shape
from bnn_perception.net.model import InputSpec


def read_float_twin(
    path: Path, spec: InputSpec, classes: int, content: bytes | None = None
) -> tuple[Stage, ...]:
    """The stages of ``path``, a float twin of a model with this input and number of classes.

    Args:
        path: of the file.
        spec, classes: of the model.
        content: of the file, where it was read already; nothing is opened then.

    Raises:
        FloatTwinError: naming the file, the node, its operator and what cannot be evaluated.
    """
    try:
        proto = load(path, one_file=True, content=content)
    except ImporterError as error:
        raise FloatTwinError(str(error)) from None
    try:
        stages = _stages(Graph(proto, strip_tail=False), spec.shape)
    except ImporterError as error:
        raise FloatTwinError(f"{path}: {error}") from None
    except MALFORMED as error:
        raise FloatTwinError(f"{path}: is malformed: {one_line(error)}") from None
    expected: Shape = (1, 1, classes)
    if stages[-1].output_shape != expected:
        raise FloatTwinError(f"{path}: its output is {list(stages[-1].output_shape)}, not {list(expected)}")
    return stages


def _stages(graph: Graph, shape: Shape) -> tuple[Stage, ...]:
    chain = Chain(graph.image, shape)
    for proto in graph.nodes:
        with graph.at(proto):
            node = graph.node(proto, chain.tensors)
            if not node.taken:
                graph.evaluate(node)
                continue
            operator = find(node.proto)
            if operator is None or operator.stage is None:
                known = ", ".join(name for name, known in OPERATORS.items() if known.stage is not None)
                raise RefusalError(f"the operator is not supported; known are {known}")
            operator.stage(node, chain)
    if chain.current != graph.logits:
        raise ImporterError(f"output '{graph.logits}' does not come from the last node")
    if chain.stage is None:
        raise ImporterError("it holds no Conv, Gemm or MatMul")
    return (*chain.done, chain.stage)
