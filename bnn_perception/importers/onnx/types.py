"""Types of numbers: which nodes may take whole numbers and truth values, and what Cast makes of them.

The graph's floats are taken for rational numbers. Whole numbers would wrap around or be cut off where a type ends;
nodes that would do so are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Signal
from bnn_perception.importers.onnx.graph import FLOATS, Node

_ANY = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
#: Nodes that mean the same of whole numbers as of rational ones; those that are there for truth values.
_WHOLE = (*_ANY, *_COMPARISONS, "Add", "Mul", "Neg", "Sub")
_TRUTH = (*_ANY, "Not", "Where")


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are floats; bfloat16 is no kind of its own to NumPy."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def check_input(node: Node) -> None:
    """That a node may take numbers of the type that its signal has."""
    dtype = node.signal.dtype
    if dtype.kind == "b":
        if node.op not in _TRUTH:
            raise RefusalError("takes truth values; a Cast or a Where must stand before it")
    elif node.op in ("Not", "Where"):
        raise RefusalError(f"takes {dtype.name}; only truth values can be chosen by")
    elif not is_float(dtype) and node.op not in _WHOLE:
        raise RefusalError(f"takes {dtype.name}; a Cast to floats must stand before it")


def check_range(signal: Signal) -> Signal:
    """A signal whose numbers its type can hold."""
    dtype = signal.dtype
    if is_float(dtype) or dtype.kind == "b":
        return signal
    if dtype.kind not in "iu":
        raise RefusalError(f"numbers of type {dtype.name} cannot be expressed")
    info = np.iinfo(dtype)
    for level in signal.extremes():
        values = signal.scale * level + signal.offset
        if any(values < int(info.min)) or any(values > int(info.max)):
            raise RefusalError(f"leaves the range of {dtype.name}")
    return signal


def cast(node: Node) -> Signal:
    from onnx import helper

    signal, to = node.signal, node.attribute("to", FLOATS[0])
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if to in FLOATS or dtype == signal.dtype:
        return replace(signal, dtype=dtype)
    if dtype.kind not in "iu":
        raise RefusalError(f"casts to {dtype.name}")
    if is_float(signal.dtype):
        low, high = signal.offset - signal.scale, signal.offset + signal.scale
        if signal.kind != "signs" or any(value.denominator != 1 for value in (*low, *high)):
            raise RefusalError("casts to integers")
    return check_range(replace(signal, dtype=dtype))
