"""Writes ``.tflite`` files table by table, also such as no converter would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import flexbuffers
from numpy.typing import NDArray

#: Codes of the schema: types of numbers, operators, options.
TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "string": 5, "int8": 9}
CODES = {"ADD": 0, "CONV_2D": 3, "SOFTMAX": 25, "CUSTOM": 32, "RELU": 19, "LOGISTIC": 14, "QUANTIZE": 114}


@dataclass(frozen=True, eq=False)
class TensorOf:
    """A tensor: its buffer by its number, 0 for none."""

    name: str
    shape: Sequence[int]
    buffer: int = 0
    type: str = "float32"
    scale: float | None = None


@dataclass(frozen=True, eq=False)
class OperatorOf:
    """An operator: its code, its tensors by their numbers, a custom one's options."""

    code: int
    inputs: Sequence[int]
    outputs: Sequence[int]
    custom: bytes = b""


def options(**values: int) -> bytes:
    """The options of a custom operator."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for name, value in values.items():
            builder.Int(name, value)
    return bytes(builder.Finish())


def write(
    tensors: Sequence[TensorOf],
    operators: Sequence[OperatorOf],
    inputs: Sequence[int],
    outputs: Sequence[int],
    buffers: Sequence[NDArray[Any]] = (),
    codes: Sequence[str] = ("ADD",),
    graphs: int = 1,
    repeats: int = 1,
) -> bytes:
    """The bytes of a file.

    Args:
        buffers: from the number 1 on.
        codes: names of :data:`CODES`, or of custom operators.
        repeats: how often the list of operators names each; all share one table.
    """
    builder = flatbuffers.Builder(1024)

    def table(**fields: tuple[str, Any]) -> int:
        slots = [int(name[1:]) for name in fields]
        builder.StartObject(max(slots) + 1)
        for slot, (kind, value) in zip(slots, fields.values()):
            if kind == "offset":
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
            else:
                getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
        return int(builder.EndObject())

    def tables(offsets: Sequence[int]) -> tuple[str, int]:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return "offset", builder.EndVector()

    def numbers(values: Any, dtype: Any) -> tuple[str, int]:
        return "offset", builder.CreateNumpyVector(np.asarray(values, dtype))

    def text(value: str) -> tuple[str, int]:
        return "offset", builder.CreateString(value)

    made = [table(_0=numbers([], np.uint8))]
    made += [table(_0=numbers(np.frombuffer(buffer.tobytes(), np.uint8), np.uint8)) for buffer in buffers]
    code_tables = []
    for name in codes:
        # Codes below 127 stand in the older field too, where readers look for them.
        code = CODES.get(name, CODES["CUSTOM"])
        fields: dict[str, tuple[str, Any]] = {"_0": ("Int8", min(code, 127)), "_3": ("Int32", code)}
        if name not in CODES:
            fields["_1"] = text(name)
        code_tables.append(table(**fields))
    tensor_tables = []
    for tensor in tensors:
        fields = {
            "_0": numbers(tensor.shape, np.int32),
            "_1": ("Int8", TYPES[tensor.type]),
            "_2": ("Uint32", tensor.buffer),
            "_3": text(tensor.name),
        }
        if tensor.scale is not None:
            fields["_4"] = ("offset", table(_2=numbers([tensor.scale], np.float32)))
        tensor_tables.append(table(**fields))
    operator_tables = []
    for operator in operators:
        fields = {
            "_0": ("Uint32", operator.code),
            "_1": numbers(operator.inputs, np.int32),
            "_2": numbers(operator.outputs, np.int32),
        }
        if operator.custom:
            fields["_5"] = numbers(np.frombuffer(operator.custom, np.uint8), np.uint8)
        operator_tables.append(table(**fields))
    graph = table(
        _0=tables(tensor_tables),
        _1=numbers(inputs, np.int32),
        _2=numbers(outputs, np.int32),
        _3=tables(operator_tables * repeats),
    )
    model = table(
        _0=("Uint32", 3),
        _1=tables(code_tables),
        _2=tables([graph] * graphs),
        _4=tables(made),
    )
    builder.Finish(model, file_identifier=b"TFL3")
    return bytes(builder.Output())
