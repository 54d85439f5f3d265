"""What a float twin's file may hold, checked without the package onnx and before any runtime opens it.

A runtime computes whatever a graph asks for: loops that never end, numbers that stand in another file. So a twin is
held to the operators that a net of convolutions needs, in one file, without graphs inside of graphs.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnn_perception.errors import Error
from bnn_perception.importers.onnx.operators import OPERATORS, STANDARD
from bnn_perception.net.checks import MAX_LAYERS

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

#: The most nodes.
MAX_NODES = 8 * MAX_LAYERS

# Fields of the messages of ONNX's protobuf: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_TENSORS = (5, 10)
#: A graph, graphs, a sparse tensor, sparse tensors.
_ATTRIBUTE_OTHERS = (6, 11, 22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class TwinFileError(Error):
    """A float twin's file that holds what no float twin needs; the message is a reason, without the file."""


def check(content: bytes) -> None:
    """Check a float twin's file.

    Raises:
        TwinFileError: naming the reason.
    """
    nodes = 0
    for field, graph in _fields(memoryview(content)):
        if field == _MODEL_FUNCTIONS:
            raise TwinFileError("defines functions of its own, which no float twin needs")
        if field != _MODEL_GRAPH:
            continue
        for kind, part in _fields(graph):
            if kind == _GRAPH_SPARSE:
                raise TwinFileError("holds sparse weights, which no float twin needs")
            if kind == _GRAPH_INITIALIZER:
                _check_tensor(part)
            if kind == _GRAPH_NODE:
                nodes += 1
                if nodes > MAX_NODES:
                    raise TwinFileError(f"over {MAX_NODES} nodes")
                _check_node(part)


def _check_node(node: memoryview) -> None:
    texts = {_NODE_NAME: "", _NODE_OPERATOR: "", _NODE_DOMAIN: ""}
    attributes = []
    for field, part in _fields(node):
        if field in texts:
            texts[field] = bytes(part[:200]).decode("utf-8", "replace")
        elif field == _NODE_ATTRIBUTE:
            attributes.append(part)
    operator = texts[_NODE_OPERATOR]
    where = f"node '{texts[_NODE_NAME]}' ({operator})"
    known = operator in OPERATORS and OPERATORS[operator].stage is not None
    if texts[_NODE_DOMAIN] not in STANDARD or not (known or operator in OTHERS):
        raise TwinFileError(f"{where}: a float twin needs no such operator")
    for attribute in attributes:
        for field, part in _fields(attribute):
            if field in _ATTRIBUTE_TENSORS:
                _check_tensor(part)
            if field in _ATTRIBUTE_OTHERS:
                raise TwinFileError(f"{where}: holds a graph or sparse numbers, which no float twin needs")


def _check_tensor(tensor: memoryview) -> None:
    for field, part in _fields(tensor):
        if field == _TENSOR_EXTERNAL or (field == _TENSOR_LOCATION and _varint(part, 0)[0] != 0):
            raise TwinFileError("keeps weights in another file; a float twin is one file")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message: number, and content; that of a number is its bytes as they are written."""
    at, end = 0, len(message)
    while at < end:
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
        yield (key & 0xFFFFFFFF) >> 3, message[start:at]


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
