"""Imports ``.tflite`` files of Larq Compute Engine, and of TensorFlow Lite where their weights are real.

The file becomes an ONNX graph, operator by operator (:mod:`bnn_perception.importers.tflite.operators`), which is then
read as any other (:mod:`bnn_perception.importers.onnx.read`). What each operator gives must have the shape that the
file states.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_perception.errors import one_line
from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.importers.onnx.read import read_graph
from bnn_perception.importers.tflite.file import DAMAGED, QUANTIZED, Net, Operator, Tensor, load
from bnn_perception.importers.tflite.graph import GraphBuilder
from bnn_perception.importers.tflite.operators import EIGHT_BITS, OPERATORS
from bnn_perception.net.model import Model

if TYPE_CHECKING:
    import onnx


def read(source: str | os.PathLike[str], pixels: PixelRange | None = None) -> Model:
    """Read a ``.tflite`` file.

    Args:
        source: the file.
        pixels: what the net takes for pixels; None: as :func:`bnn_perception.importers.onnx.read.read`.

    Raises:
        ImporterError: naming the operator, the tensor that it gives, and the reason.
    """
    source = Path(source)
    graph, shapes = load_graph(source)
    return read_graph(graph, source, "TFLite", pixels, shapes)


def load_graph(source: Path) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """The ONNX graph of a file, and the shapes of its tensors that the file states.

    Raises:
        ImporterError: naming the operator and the reason.
    """
    net = load(source)
    try:
        return translate(net, source.stem)
    except ImporterError as error:
        raise ImporterError(f"{source}: {error}") from None
    except DAMAGED as error:
        raise ImporterError(f"{source}: is malformed: {one_line(error)}") from None


def translate(net: Net, source: str) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """The ONNX graph of a net, and the shapes of its tensors that the file states.

    Args:
        source: what the graph is called.

    Raises:
        ImporterError: naming the operator and the reason.
    """
    if len(net.inputs) != 1 or len(net.outputs) != 1:
        raise ImporterError(
            f"the graph has {len(net.inputs)} inputs and {len(net.outputs)} outputs; it must have one each"
        )
    graph = GraphBuilder()
    graph.input(net.inputs[0])
    for operator in _needed(net):
        graph.begin(operator)
        where = f"node '{operator.outputs[0].name}' ({operator.op})"
        try:
            if any(tensor.is_quantized and tensor.dtype in QUANTIZED for tensor in _tensors(operator)):
                raise RefusalError(EIGHT_BITS)
            if operator.op not in OPERATORS:
                raise RefusalError("the model format has no such operation")
            OPERATORS[operator.op](operator, graph)
        except RefusalError as error:
            raise ImporterError(f"{where}: {error}") from None
        except DAMAGED as error:
            raise ImporterError(f"{where}: its options or constants are malformed: {error}") from None
    return graph.model(net.inputs[0], net.outputs[0], source), graph.shapes


def _tensors(operator: Operator) -> list[Tensor]:
    return [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor is not None]


def _needed(net: Net) -> Sequence[Operator]:
    """The operators that the logits depend on; the shape of a Reshape is known without those that compute it."""
    wanted, needed = {net.outputs[0].name}, []
    for operator in reversed(net.operators):
        if any(tensor.name in wanted for tensor in operator.outputs):
            needed.append(operator)
            inputs = operator.inputs[:1] if operator.op == "RESHAPE" else operator.inputs
            wanted.update(tensor.name for tensor in inputs if tensor is not None)
    return needed[::-1]
