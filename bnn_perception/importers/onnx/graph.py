"""Reads an ONNX graph: its image, its logits, its constants, and the nodes between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bnn_perception.importers.errors import MALFORMED, ImporterError, RefusalError
from bnn_perception.importers.onnx.cancel import shape_of, shorten
from bnn_perception.importers.onnx.costs import Budget
from bnn_perception.importers.onnx.evaluate import evaluate_node
from bnn_perception.importers.onnx.node import FLOATS, UNDEFINED, Node, Value, attribute, where
from bnn_perception.importers.onnx.operators import QUANT_DOMAINS, STANDARD, Numbers, find
from bnn_perception.net.checks import MAX_SIDE, ModelError

if TYPE_CHECKING:
    import onnx

#: Before it, operators broadcast by attributes, and a batch norm could be in training mode by default.
OLDEST_OPSET = 7
#: Images that a graph may take at once.
MAX_BATCH = 256
#: Nodes that give other numbers each time.
RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


class Graph:
    """A graph with one image and one tensor of logits.

    Attributes:
        opset: version of the standard's operators.
        constants: by their names: initializers, and what nodes make of them (:meth:`evaluate`).
        image: name of the input.
        image_shape: the input's shape; 0 where the graph leaves a size open.
        image_dtype: type of its numbers.
        takes_integers: whether these are whole numbers, by their type or by the annotation that QONNX tools write.
        batch: how many images it takes at once; 1 where it leaves that open.
        logits: name of the tensor that is compared to choose a class.
        needs_matrix: whether what follows the logits takes their last axis for that of the classes.
        stated: the nodes that the logits depend on, in their order.
        nodes: the same without what cancels (:mod:`~bnn_perception.importers.onnx.cancel`).
        uses: how many of them take the numbers of a tensor, by its name.
    """

    def __init__(self, model: onnx.ModelProto, strip_tail: bool = True) -> None:
        """Read the graph of ``model``.

        Args:
            strip_tail: whether operators behind the logits that keep their arg max are left out.

        Raises:
            ImporterError: naming the reason.
        """
        from onnx import defs, helper, numpy_helper

        self.opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 13)
        if not OLDEST_OPSET <= self.opset <= defs.onnx_opset_version():
            raise ImporterError(
                f"its opset is {self.opset}; {OLDEST_OPSET} to {defs.onnx_opset_version()} can be read"
            )
        self.constants: dict[str, NDArray[Any]] = {}
        for tensor in model.graph.initializer:
            if tensor.name in self.constants:
                raise ImporterError(f"the constant '{tensor.name}' is there twice")
            try:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
            except MALFORMED as error:
                raise ImporterError(f"the constant '{tensor.name}' cannot be read: {error}") from None
        self._budget = Budget(sum(value.size for value in self.constants.values()))
        inputs = [value for value in model.graph.input if value.name not in self.constants]
        tails = [
            _before_tail(model.graph, output.name, self.opset) if strip_tail else (output.name, False)
            for output in model.graph.output
        ]
        outputs = sorted({name for name, _ in tails})
        self.needs_matrix = any(last for _, last in tails)
        if len(inputs) != 1 or len(outputs) != 1:
            raise ImporterError(
                f"the graph has {len(inputs)} inputs and {len(outputs)} outputs; it must have one each"
            )
        self.image, self.logits = inputs[0].name, outputs[0]
        kind = inputs[0].type.tensor_type
        self.image_shape = [dimension.dim_value for dimension in kind.shape.dim]
        self.image_dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type or FLOATS[0])
        annotated = any(
            entry.key == "finn_datatype" and entry.value == "UINT8"
            for annotation in model.graph.quantization_annotation
            if annotation.tensor_name == self.image
            for entry in annotation.quant_parameter_tensor_names
        )
        self.takes_integers = annotated or kind.elem_type not in (UNDEFINED, *FLOATS)
        self.batch = max(*self.image_shape[:1], 1)
        if self.batch > MAX_BATCH or any(size > MAX_SIDE for size in self.image_shape[1:]):
            raise ImporterError(
                f"input '{self.image}' has shape {self.image_shape}; at most {MAX_BATCH} images of {MAX_SIDE} by "
                f"{MAX_SIDE} are taken"
            )
        self.stated = _needed(model.graph.node, self.logits)
        shortened, self.cancelled = shorten(self.stated, self.image)
        self.nodes = _needed(shortened, self.logits)
        self._producers = {name: node for node in self.stated for name in node.output}
        self.uses = Counter(
            name for node in self.nodes if _takes_numbers(node) for name in dict.fromkeys(node.input)
        )

    @contextmanager
    def at(self, proto: onnx.NodeProto) -> Iterator[None]:
        """Name the node in the message of what is refused within."""
        try:
            yield
        except ImporterError:
            raise
        except (RefusalError, ModelError) as error:
            raise ImporterError(f"{where(proto)}: {error}") from None
        except MALFORMED as error:
            raise ImporterError(
                f"{where(proto)}: its attributes or constants are malformed: {error}"
            ) from None

    def node(self, proto: onnx.NodeProto, values: Mapping[str, Value]) -> Node[Value]:
        """A node with what is known of its inputs.

        Args:
            values: what is known of the tensors that depend on the image, by their names.

        Raises:
            RefusalError: where something of them is not known.
        """
        if proto.domain not in (*STANDARD, *QUANT_DOMAINS):
            raise RefusalError(f"its domain '{proto.domain}' is unknown")
        _check_operator(proto, self.opset)
        for name in filter(None, proto.output):
            if name in self.constants or name in values:
                raise RefusalError(f"gives '{name}', which is there already")
        for name in filter(None, proto.input):
            if name not in self.constants and name not in values:
                raise RefusalError(f"takes '{name}', which no node before it gives")
        return Node(
            proto,
            [self.constants.get(name) for name in proto.input],
            [values.get(name) for name in proto.input],
            self.opset,
            self.batch,
            any(self.uses[name] > 1 for name in proto.input if name in values),
        )

    def check_cancelled(self, node: Node[Value], shape: Callable[[str], tuple[int, ...] | None]) -> None:
        """Check that what cancels in the sum for which a node stands would not spread what is left.

        Args:
            shape: gives the shape of a tensor that is known, None for another.

        Raises:
            RefusalError: naming what cancels.
        """
        for name in self.cancelled.get(node.outputs[0], []):
            if shape_of(name, shape, self._producers) != shape(node.outputs[0]):
                raise RefusalError(
                    f"takes off '{name}' and adds it again, which is not known to have the shape of what is left"
                )

    def evaluate(self, node: Node[Any]) -> None:
        """Evaluate a node that takes nothing but constants, and add what it gives to the constants.

        Raises:
            RefusalError: where that is not the same each time, would have to be interpreted, or costs too much.
        """
        if node.op in RANDOM:
            raise RefusalError("gives random numbers")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.proto.attribute):
            raise RefusalError("has a graph of its own, which is not evaluated")
        self._budget.take(node.proto, node.constants)
        self.constants.update(zip(node.outputs, evaluate_node(node.proto, node.constants, self.opset)))


def _check_operator(node: onnx.NodeProto, opset: int) -> None:
    """That a node of the standard's operators has inputs and attributes that its opset gives it."""
    from onnx import defs

    if node.domain in QUANT_DOMAINS or not defs.has(node.op_type):
        return
    try:
        schema = defs.get_schema(node.op_type, opset)
    except defs.SchemaError:
        raise RefusalError(f"is no operator of opset {opset}") from None
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise RefusalError(f"has {len(node.input)} inputs, which it cannot have in opset {opset}")
    for index, name in enumerate(node.input[: schema.min_input]):
        if not name:
            raise RefusalError(f"input {index + 1} is missing or not a constant")
    for stated in node.attribute:
        if stated.name not in schema.attributes:
            raise RefusalError(f"has an attribute '{stated.name}', which it cannot have in opset {opset}")


def _before_tail(graph: onnx.GraphProto, name: str, opset: int) -> tuple[str, bool]:
    """The logits behind an output that gives their scores, their order or the class of the highest.

    Returns:
        Their name; whether their last axis is taken for that of the classes.
    """
    producers = {output: node for node in graph.node for output in node.output}
    last = False
    while name in producers and _keeps_class(producers[name], opset):
        node = producers.pop(name)
        name, last = node.input[0], last or _class_axis(node, opset) == -1
    return name, last


def _keeps_class(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node, of logits (N, classes), gives their scores, their order or the class of the highest."""
    operator = find(node)
    return (
        operator is not None
        and operator.tail is not None
        and len(node.input) > 0
        and _class_axis(node, opset) in (None, 1, -1)
        and attribute(node, "largest", 1) == 1
        and attribute(node, "select_last_index", 0) == 0
    )


def _class_axis(node: onnx.NodeProto, opset: int) -> int | None:
    """The axis that an operator behind the logits takes for that of the classes; None where it takes none."""
    operator = find(node)
    if operator is None or operator.tail is None or operator.tail.axis is None:
        return None
    return int(attribute(node, "axis", operator.tail.axis if opset >= 13 else operator.tail.axis_before_13))


def _takes_numbers(node: onnx.NodeProto) -> bool:
    """Whether a node takes more of a tensor than its shape."""
    operator = find(node)
    return operator is None or operator.numbers != Numbers.NONE


def _needed(nodes: Sequence[onnx.NodeProto], logits: str) -> list[onnx.NodeProto]:
    """The nodes that the logits depend on, in their order."""
    needed, names = [], {logits}
    for node in reversed(nodes):
        if names.intersection(node.output):
            needed.append(node)
            names.update(filter(None, node.input))
    return needed[::-1]
