"""What a float twin's file may hold, checked without the package onnx and before any runtime opens it.

A runtime computes whatever a graph asks for: loops that never end, numbers that stand in another file. So a twin is
held to the operators that a net of convolutions needs, in one file, without graphs inside of graphs.

What an operator costs is bounded by the memory that the runtime may take, but for those that make each number of many
others: convolutions and pools of as many as their window holds, a sum of as many as it has inputs. These are bounded
here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import mul

from bnn_perception.errors import Error
from bnn_perception.importers.onnx.operators import OPERATORS, STANDARD
from bnn_perception.net.checks import MAX_INPUTS, MAX_LAYERS

#: Beside the operators that the GPU's float twin knows: what exporters write around them.
OTHERS = (
    *(
        "Cast",
        "Constant",
        "Div",
        "Elu",
        "Gather",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
    ),
    *(
        "LeakyRelu",
        "LogSoftmax",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "PRelu",
        "Pad",
        "ReduceMean",
        "Shape",
        "Sigmoid",
    ),
    *("Slice", "Softmax", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze"),
)

#: The most nodes, and fields of the file, of which a net of a hundred layers has some thousands.
MAX_NODES = 8 * MAX_LAYERS
MAX_FIELDS = 1 << 22

#: The most numbers that a convolution or a pool may make one of: a window of 16x16 on 256 channels.
MAX_FAN_IN = 1 << 16

# Fields of the messages of ONNX's protobuf: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS = 1, 5, 8
_ATTRIBUTE_TENSORS = (_ATTRIBUTE_TENSOR, 10)
#: A graph, graphs, a sparse tensor, sparse tensors.
_ATTRIBUTE_OTHERS = (6, 11, 22, 23)
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class TwinFileError(Error):
    """A float twin's file that holds what no float twin needs; the message is a reason, without the file."""


def check(content: bytes) -> None:
    """Check a float twin's file.

    Raises:
        TwinFileError: naming the reason.
    """
    _Check().model(memoryview(content))


class _Check:
    """One check of a file, read as protobuf's own readers do.

    What comes twice is joined, but of texts the last stands. A field of another type than it should have is passed
    over.
    """

    def __init__(self) -> None:
        #: Of each tensor that stands in the file, by its name.
        self._shapes: dict[bytes, list[int]] = {}
        self._fields_left = MAX_FIELDS

    def model(self, model: memoryview) -> None:
        nodes: list[memoryview] = []
        for field, graph in self._parts(model):
            if field == _MODEL_FUNCTIONS:
                raise TwinFileError("defines functions of its own, which no float twin needs")
            if field != _MODEL_GRAPH:
                continue
            for kind, part in self._parts(graph):
                if kind == _GRAPH_SPARSE:
                    raise TwinFileError("holds sparse weights, which no float twin needs")
                if kind == _GRAPH_INITIALIZER:
                    self._tensor(part)
                    self._keep(self._text(part, _TENSOR_NAME), self._numbers(part, _TENSOR_DIMS))
                if kind == _GRAPH_NODE:
                    if len(nodes) == MAX_NODES:
                        raise TwinFileError(f"over {MAX_NODES} nodes")
                    nodes.append(part)
        for node in nodes:
            self._node(node)

    def _node(self, node: memoryview) -> None:
        parts: dict[int, list[memoryview]] = {}
        for field, part in self._parts(node):
            parts.setdefault(field, []).append(part)
        name, operator, domain = (
            bytes(parts.get(field, [b""])[-1][:200]).decode("utf-8", "replace")
            for field in (_NODE_NAME, _NODE_OPERATOR, _NODE_DOMAIN)
        )
        inputs, outputs = (list(map(bytes, parts.get(field, []))) for field in (_NODE_INPUT, _NODE_OUTPUT))
        where = f"node '{name}' ({operator})"
        known = operator in OPERATORS and OPERATORS[operator].stage is not None
        if domain not in STANDARD or not (known or operator in OTHERS):
            raise TwinFileError(f"{where}: a float twin needs no such operator")
        if len(inputs) > MAX_INPUTS:
            raise TwinFileError(f"{where}: has {len(inputs)} inputs; at most {MAX_INPUTS} are taken")
        windows: list[list[int]] = []
        for attribute in parts.get(_NODE_ATTRIBUTE, []):
            shape = self._attribute(attribute, where)
            if operator == "Constant":
                for output in outputs:
                    self._keep(output, shape)
            if self._text(attribute, _ATTRIBUTE_NAME) == b"kernel_shape":
                windows.append(self._numbers(attribute, _ATTRIBUTE_INTS))
        if operator == "Identity" and inputs and inputs[0] in self._shapes:
            for output in outputs:
                self._keep(output, self._shapes[inputs[0]])
        if operator == "Conv":
            weights = self._shapes.get(inputs[1]) if len(inputs) > 1 else None
            if weights is None:
                raise TwinFileError(f"{where}: its weights do not stand in the file, as a float twin's do")
            windows.append(weights[1:])
        if any(_is_large(window) for window in windows):
            raise TwinFileError(f"{where}: makes each number of more than {MAX_FAN_IN} others")

    def _attribute(self, attribute: memoryview, where: str) -> list[int]:
        """Check an attribute; the shape of the tensor that it holds."""
        shape: list[int] = []
        for field, part in self._parts(attribute):
            if field in _ATTRIBUTE_TENSORS:
                self._tensor(part)
                shape += self._numbers(part, _TENSOR_DIMS)
            if field in _ATTRIBUTE_OTHERS:
                raise TwinFileError(f"{where}: holds a graph or sparse numbers, which no float twin needs")
        return shape

    def _tensor(self, tensor: memoryview) -> None:
        if any(self._numbers(tensor, _TENSOR_LOCATION)) or any(
            field == _TENSOR_EXTERNAL for field, _ in self._parts(tensor)
        ):
            raise TwinFileError("keeps weights in another file; a float twin is one file")

    def _keep(self, name: bytes, shape: list[int]) -> None:
        if name in self._shapes:
            raise TwinFileError("has two tensors of one name")
        self._shapes[name] = shape

    def _text(self, message: memoryview, wanted: int) -> bytes:
        return bytes([b"", *(part for field, part in self._parts(message) if field == wanted)][-1])

    def _numbers(self, message: memoryview, wanted: int) -> list[int]:
        """The whole numbers of a field, which stand one at a time or together."""
        found = []
        for field, kind, part in self._fields(message):
            at = 0
            while field == wanted and kind in (_VARINT, _BYTES) and at < len(part):
                value, at = _varint(part, at)
                found.append(value)
        return found

    def _parts(self, message: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The texts and messages in a message, by the number of their field."""
        return ((field, part) for field, kind, part in self._fields(message) if kind == _BYTES)

    def _fields(self, message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """The fields of a protobuf message: number, type, and content; that of a number is its bytes as written."""
        at, end = 0, len(message)
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise TwinFileError("has more parts than any float twin")
            key, at = _varint(message, at)
            kind, start = key & 7, at
            if kind == _VARINT:
                _, at = _varint(message, at)
            elif kind == _BYTES:
                length, start = _varint(message, at)
                at = start + length
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                at += 8 if kind == _EIGHT_BYTES else 4
            else:
                raise TwinFileError("is not an ONNX file")
            if at > end:
                raise TwinFileError("is not an ONNX file, or is cut short")
            # As the readers in C++ have it, which keep 32 bits of a key.
            yield (key & 0xFFFFFFFF) >> 3, kind, message[start:at]


def _is_large(window: list[int]) -> bool:
    """Whether a window holds more than :data:`MAX_FAN_IN` numbers; of a hostile one not all sizes are looked at."""
    return any(size > MAX_FAN_IN for size in itertools.accumulate(window, mul))


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number of 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise TwinFileError("is not an ONNX file, or is cut short")
