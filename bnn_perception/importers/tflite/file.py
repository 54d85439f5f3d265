"""Reads a ``.tflite`` file, which nobody vouches for, into plain records: tensors, operators, their options.

The schema is that of the package ``tflite``. A flatbuffer holds offsets and lengths, each of which may lie: every
length is bounded by the bytes that are there before anything is made of it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line, printable
from bnn_perception.files import read_regular
from bnn_perception.importers.errors import MALFORMED, ImporterError

MAX_BYTES = 1 << 30
#: Tensors and operators of a file, and what all operators together take and give; the deepest nets of the field have
#: some thousands. The tables of a file may share their bytes, so that its size bounds none of them.
MAX_COUNT, MAX_NAMED = 1 << 14, 1 << 17
#: Axes of a tensor; inputs of an operator; bytes and entries of a custom operator's options.
MAX_AXES, MAX_INPUTS, MAX_OPTIONS, MAX_ENTRIES = 8, 1024, 4096, 32
#: What a damaged flatbuffer can raise.
DAMAGED = (*MALFORMED, struct.error)

#: Types of numbers by their code in the schema (``tflite.TensorType``).
DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    2: np.dtype(np.int32),
    3: np.dtype(np.uint8),
    4: np.dtype(np.int64),
    6: np.dtype(np.bool_),
    7: np.dtype(np.int16),
    9: np.dtype(np.int8),
}
#: Types that stand for quantized numbers where a scale is stated.
QUANTIZED: tuple[np.dtype[Any], ...] = (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16))


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor.

    Attributes:
        name: as the file has it; unique where the reader has made it so.
        shape: its sizes; an open one counts as 1.
        dtype: of its numbers.
        data: its numbers, where it is a constant; they lie in the file's bytes.
        is_quantized: whether its integers stand for scaled numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data: NDArray[Any] | None
    is_quantized: bool


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator.

    Attributes:
        op: its name: of the schema (``CONV_2D``) or, of a custom one, its own (``LceBconv2d``).
        inputs: the tensors that it takes; None where an optional one is missing.
        outputs: what it gives.
        options: its options by their names in the schema, as far as they are numbers.
    """

    op: str
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor]
    options: dict[str, int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Net:
    """What a file holds.

    Attributes:
        inputs, outputs: of the graph.
        operators: in the order in which they run.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    operators: Sequence[Operator]


def load(source: Path) -> Net:
    """Read a file.

    Raises:
        ImporterError: naming the file and the reason.
    """
    try:
        import tflite
    except ImportError:
        raise ImporterError(
            f"{source}: reading it needs the package tflite; pip install 'tflite>=2.10,<3'"
        ) from None
    try:
        content = read_regular(source, MAX_BYTES)
    except OSError as error:
        raise ImporterError(f"{source}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ImporterError(f"{source}: {one_line(error)}") from None
    if content[4:8] != b"TFL3":
        raise ImporterError(f"{source}: is not a TFLite file")
    try:
        return _Reader(content, tflite).net()
    except ImporterError as error:
        raise ImporterError(f"{source}: {error}") from None
    except DAMAGED as error:
        raise ImporterError(f"{source}: is malformed: {one_line(error)}") from None


class _Reader:
    """Turns the tables of the flatbuffer into records."""

    def __init__(self, content: bytes, tflite: Any) -> None:
        self._content, self._tflite = content, tflite
        self._model = tflite.Model.GetRootAs(content, 0)
        self._names: set[str] = set()
        self._named = 0

    def net(self) -> Net:
        model = self._model
        if model.SubgraphsLength() != 1:
            raise ImporterError(f"holds {model.SubgraphsLength()} graphs; one can be read")
        graph = model.Subgraphs(0)
        tensors = [self._tensor(graph.Tensors(i)) for i in range(_count(graph.TensorsLength(), "tensors"))]
        codes = [
            self._code(model.OperatorCodes(i))
            for i in range(_count(model.OperatorCodesLength(), "operator codes"))
        ]

        def named(length: Callable[[], int], get: Callable[[int], int]) -> list[Tensor | None]:
            count = _count(length(), "inputs or outputs of an operator", MAX_INPUTS)
            self._named = _count(self._named + count, "inputs and outputs of operators", MAX_NAMED)
            indices = [get(i) for i in range(count)]
            if any(not -1 <= index < len(tensors) for index in indices):
                raise ImporterError("names a tensor that is not there")
            return [tensors[index] if index >= 0 else None for index in indices]

        operators = []
        for i in range(_count(graph.OperatorsLength(), "operators")):
            table = graph.Operators(i)
            index = table.OpcodeIndex()
            if not 0 <= index < len(codes):
                raise ImporterError("names an operator code that is not there")
            outputs = named(table.OutputsLength, table.Outputs)
            if not outputs or None in outputs:
                raise ImporterError("an operator gives nothing")
            operators.append(
                Operator(
                    codes[index],
                    named(table.InputsLength, table.Inputs),
                    [tensor for tensor in outputs if tensor is not None],
                    self._options(table),
                )
            )
        ends = []
        for tensors_of in (
            named(graph.InputsLength, graph.Inputs),
            named(graph.OutputsLength, graph.Outputs),
        ):
            ends.append([tensor for tensor in tensors_of if tensor is not None])
        return Net(ends[0], ends[1], operators)

    def _code(self, table: Any) -> str:
        """The name of an operator."""
        builtin = max(table.BuiltinCode(), table.DeprecatedBuiltinCode())
        if builtin == self._tflite.BuiltinOperator.CUSTOM:
            return _text(table.CustomCode())
        return _schema_names(self._tflite.BuiltinOperator).get(builtin, f"operator {builtin}")

    def _tensor(self, table: Any) -> Tensor:
        rank = _count(table.ShapeLength(), "axes", MAX_AXES)
        shape = tuple(max(1, int(table.Shape(axis))) for axis in range(rank))
        code = table.Type()
        dtype = DTYPES.get(code)
        # Two tensors may have one name.
        stated = _text(table.Name()) or "tensor"
        name = stated if stated not in self._names else f"{stated}#{len(self._names)}"
        if name in self._names:
            raise ImporterError(f"holds two tensors named '{name}'")
        self._names.add(name)
        quantization = table.Quantization()
        is_quantized = quantization is not None and quantization.ScaleLength() > 0
        if dtype is None:
            return Tensor(name, shape, np.dtype(object), None, is_quantized)
        return Tensor(name, shape, dtype, self._data(table.Buffer(), name, shape, dtype), is_quantized)

    def _data(
        self, index: int, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> NDArray[Any] | None:
        """The numbers of a constant, as they lie in the file; None where the buffer is empty."""
        if not 0 <= index < self._model.BuffersLength():
            raise ImporterError(f"the tensor '{name}' has no buffer")
        buffer = self._model.Buffers(index)
        length = buffer.DataLength()
        if length == 0:
            return None
        size = math.prod(shape)
        if length > len(self._content) or size * dtype.itemsize != length:
            raise ImporterError(f"the tensor '{name}' of {list(shape)} {dtype.name} has {length} bytes")
        # No copy: many tensors may share one buffer.
        return np.frombuffer(buffer.DataAsNumpy(), dtype.newbyteorder("<")).reshape(shape)

    def _options(self, table: Any) -> dict[str, int | float | bool]:
        custom = table.CustomOptionsLength()
        if custom:
            if custom > MAX_OPTIONS:
                raise ImporterError(f"a custom operator has {custom} bytes of options")
            return _flexible(table.CustomOptionsAsNumpy().tobytes())
        kind = _schema_names(self._tflite.BuiltinOptions).get(table.BuiltinOptionsType())
        union = table.BuiltinOptions()
        options = getattr(self._tflite, kind, None) if kind else None
        if union is None or options is None:
            return {}
        stated = options()
        stated.Init(union.Bytes, union.Pos)
        found = {}
        for name in dir(options):
            if name[0].isupper() and name != "Init" and not name.startswith(("GetRoot", options.__name__)):
                getter = getattr(stated, name)
                # Those of vectors take an index.
                if getter.__func__.__code__.co_argcount == 1:
                    value = getter()
                    if isinstance(value, (int, float, bool)):
                        found[name] = value
        return found


#: Characters of a name that are kept.
MAX_NAME = 200


def _count(length: int, what: str, most: int = MAX_COUNT) -> int:
    if not 0 <= length <= most:
        raise ImporterError(f"holds {length} {what}; at most {most} are read")
    return length


def _text(value: bytes | None) -> str:
    return printable(" ".join((value or b"").decode("utf-8", "replace").split()))[:MAX_NAME]


def _schema_names(enumeration: type) -> dict[int, str]:
    """The names of an enumeration of the schema by their numbers."""
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _flexible(content: bytes) -> dict[str, int | float | bool]:
    """The numbers of a flexbuffer that is a map, by their names."""
    from flatbuffers import flexbuffers

    root = flexbuffers.GetRoot(bytearray(content))
    if not root.IsMap:
        raise ImporterError("the options of a custom operator are no map")
    entries = root.AsMap
    if len(entries) > MAX_ENTRIES:
        raise ImporterError(f"the options of a custom operator have {len(entries)} entries")
    found: dict[str, int | float | bool] = {}
    for key, value in zip(entries.Keys, entries.Values):
        if value.IsBool or value.IsInt or value.IsFloat:
            found[_text(bytes(key.AsKeyBytes))] = value.Value
    return found
