"""Reads an ONNX graph: its image, its logits, its constants, and the nodes between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.fold.signal import Signal
from bnn_perception.importers.onnx.quantizers import QUANT_DOMAINS, evaluate_node

if TYPE_CHECKING:
    import onnx

#: Types of a tensor's numbers (``onnx.TensorProto``): none stated; float32, float16, float64 and bfloat16.
UNDEFINED, FLOATS = 0, (1, 10, 11, 16)
#: What may follow the logits and chooses the same class as they do.
TAIL = ("Softmax", "LogSoftmax", "ArgMax", "TopK", "Identity")
#: Before it, operators broadcast by attributes, and a batch norm could be in training mode by default.
OLDEST_OPSET = 7
#: Nodes that give other numbers each time.
RANDOM = (
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
)
#: What a graph with damaged attributes or constants can raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Graph:
    """A graph with one image and one tensor of logits.

    Attributes:
        opset: version of the standard's operators.
        constants: by their names: initializers, and what nodes make of them (:meth:`evaluate`).
        image: name of the input.
        image_shape: of it; 0 where the graph leaves a size open.
        image_dtype: of its numbers.
        takes_integers: whether these are whole numbers, by their type or by the annotation that QONNX tools write.
        batch: how many images it takes at once; 1 where it leaves that open.
        logits: name of the tensor that is compared to choose a class.
        needs_matrix: whether what follows the logits takes their last axis for that of the classes.
        nodes: that the logits depend on, in their order.
        uses: how many of them take the numbers of a tensor, by its name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import defs, helper, numpy_helper

        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 13
        )
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
        inputs = [value for value in model.graph.input if value.name not in self.constants]
        tails = [_before_tail(model.graph, output.name, self.opset) for output in model.graph.output]
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
        self.nodes = _needed(model.graph, self.logits)
        self.uses = Counter(
            name for node in self.nodes if node.op_type != "Shape" for name in dict.fromkeys(node.input)
        )

    def node(self, proto: onnx.NodeProto, signals: dict[str, Signal]) -> Node:
        """A node with what is known of its inputs.

        Raises:
            RefusalError: where something of them is not known.
        """
        if proto.domain not in ("", "ai.onnx", *QUANT_DOMAINS):
            raise RefusalError(f"its domain '{proto.domain}' is unknown")
        _check_operator(proto, self.opset)
        for name in filter(None, proto.output):
            if name in self.constants or name in signals:
                raise RefusalError(f"gives '{name}', which is there already")
        for name in filter(None, proto.input):
            if name not in self.constants and name not in signals:
                raise RefusalError(f"takes '{name}', which no node before it gives")
        return Node(
            proto,
            [self.constants.get(name) for name in proto.input],
            [signals.get(name) for name in proto.input],
            self.opset,
            self.batch,
        )

    def evaluate(self, node: Node) -> None:
        """Add what a node gives that takes nothing but constants.

        Raises:
            RefusalError: where that is not the same each time, or would have to be interpreted.
        """
        if node.op in RANDOM:
            raise RefusalError("gives random numbers")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.proto.attribute):
            raise RefusalError("has a graph of its own, which is not evaluated")
        self.constants.update(zip(node.outputs, evaluate_node(node.proto, node.constants, self.opset)))


@dataclass(frozen=True, eq=False)
class Node:
    """A node and what is known of its inputs.

    Attributes:
        constants: of each input; None where it is none.
        signals: of each input; None where it is none.
        opset: version of the standard's operators.
        batch: how many images the graph takes at once.
    """

    proto: onnx.NodeProto
    constants: Sequence[NDArray[Any] | None]
    signals: Sequence[Signal | None]
    opset: int
    batch: int

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def inputs(self) -> Sequence[str]:
        return self.proto.input

    @property
    def outputs(self) -> Sequence[str]:
        return self.proto.output

    @property
    def taken(self) -> list[Signal]:
        """The signals among the inputs."""
        return [signal for signal in self.signals if signal is not None]

    @property
    def signal(self) -> Signal:
        """The first of them."""
        return self.taken[0]

    @property
    def place(self) -> int:
        """Which input it is."""
        return next(index for index, signal in enumerate(self.signals) if signal is not None)

    def of(self, signal: Signal) -> Node:
        """The same node of another signal."""
        return replace(self, signals=[None if before is None else signal for before in self.signals])

    def attribute(self, name: str, default: Any) -> Any:
        return _attribute(self.proto, name, default)

    def constant(self, index: int) -> NDArray[Any]:
        """The constant that an input must be.

        Raises:
            RefusalError: where it is none.
        """
        value = self.constants[index] if index < len(self.constants) else None
        if value is None:
            raise RefusalError(f"input {index + 1} is missing or not a constant")
        return value

    def option(self, index: int, default: NDArray[Any]) -> NDArray[Any]:
        """The constant that an input must be where it is given."""
        return self.constant(index) if index < len(self.inputs) and self.inputs[index] else default


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


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
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            raise RefusalError(f"has an attribute '{attribute.name}', which it cannot have in opset {opset}")


def _before_tail(graph: onnx.GraphProto, name: str, opset: int) -> tuple[str, bool]:
    """The tensor of which ``name`` is the scores, or the class that has the highest.

    Returns:
        Its name; whether its last axis is taken for that of the classes.
    """
    producers = {output: node for node in graph.node for output in node.output}
    last = False
    while name in producers and _keeps_class(producers[name], opset):
        node = producers.pop(name)
        name, last = node.input[0], last or (node.op_type != "Identity" and _class_axis(node, opset) == -1)
    return name, last


def _keeps_class(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node, of logits (N, classes), gives their scores, their order or the class of the highest."""
    return (
        node.op_type in TAIL
        and len(node.input) > 0
        and _class_axis(node, opset) in (1, -1)
        and _attribute(node, "largest", 1) == 1
        and _attribute(node, "select_last_index", 0) == 0
    )


def _class_axis(node: onnx.NodeProto, opset: int) -> int:
    default = 0 if node.op_type == "ArgMax" else -1 if opset >= 13 or node.op_type == "TopK" else 1
    return int(_attribute(node, "axis", default))


def _needed(graph: onnx.GraphProto, logits: str) -> list[onnx.NodeProto]:
    """The nodes that the logits depend on, in their order."""
    needed, names = [], {logits}
    for node in reversed(graph.node):
        if names.intersection(node.output):
            needed.append(node)
            names.update(filter(None, node.input))
    return needed[::-1]
