"""How a record states its fields: each one's range or shape, once, as the metadata of a dataclass field.

A *scalar* (:func:`whole`, :func:`wholes`, :func:`choice`, :func:`optional`) stands in ``model.yaml``, an *array*
(:func:`array`) in ``binary.npz``. Reading, writing and checking follow from the statement::

    kernel: tuple[int, int] = field(metadata=wholes(2, 1, 64))
    threshold: NDArray[np.int32] = field(metadata=array(np.int32, lambda sizes: (sizes.out_channels,)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.checks import ModelError, check_whole, show

Metadata = Mapping[str, Any]
#: Takes the name of a field and a value from YAML or from a caller; returns the value or raises :class:`ModelError`.
Reader = Callable[[str, object], Any]

_SCALAR, _ARRAY = "scalar", "array"


@dataclass(frozen=True)
class Array:
    """An array of a record.

    Attributes:
        dtype: of its elements.
        shape: computes its shape from any object that has the record's scalars as attributes.
        is_parameter: whether training chose it; False for a table that describes the input.
    """

    dtype: type
    shape: Callable[[Any], tuple[int, ...]]
    is_parameter: bool = True


def array(dtype: type, shape: Callable[[Any], tuple[int, ...]], is_parameter: bool = True) -> Metadata:
    """An array; see :class:`Array`."""
    return {_ARRAY: Array(dtype, shape, is_parameter)}


def whole(low: int, high: int) -> Metadata:
    """A whole number."""

    def read(where: str, value: object) -> Any:
        check_whole(where, value, low, high)
        return value

    return {_SCALAR: read}


def wholes(count: int, low: int = 0, high: int | None = None) -> Metadata:
    """A tuple of whole numbers, a list in YAML. Without ``high`` the layer checks them: its bound is no constant."""

    def read(where: str, value: object) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != count:
            raise ModelError(f"{where} is {show(value)}; it must be {count} whole numbers")
        if high is not None:
            for item in value:
                check_whole(where, item, low, high)
        return tuple(value)

    return {_SCALAR: read}


def pair_or_pads() -> Metadata:
    """Two whole numbers, for y and x, or four, for top, left, bottom and right. The layer checks their bounds."""

    def read(where: str, value: object) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) not in (2, 4):
            raise ModelError(
                f"{where} is {show(value)}; it must be 2 whole numbers (y, x) or 4 (top, left, bottom, right)"
            )
        return tuple(value)

    return {_SCALAR: read}


def flag() -> Metadata:
    """True or false."""

    def read(where: str, value: object) -> Any:
        if not isinstance(value, bool):
            raise ModelError(f"{where} is {show(value)}; it must be true or false")
        return value

    return {_SCALAR: read}


def names() -> Metadata:
    """A tuple of names of layers, a list in YAML."""

    def read(where: str, value: object) -> Any:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{where} is {show(value)}; it must be a list of names of layers")
        return tuple(value)

    return {_SCALAR: read}


def reals(count: int, low: float, high: float) -> Metadata:
    """A tuple of at most ``count`` numbers, a list in YAML; empty where nothing is stated."""

    def read(where: str, value: object) -> Any:
        if (
            not isinstance(value, (list, tuple))
            or len(value) > count
            or not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
            or not all(low <= item <= high for item in value)
        ):
            raise ModelError(f"{where} is {show(value)}; it must be numbers from {low:g} to {high:g}")
        return tuple(float(item) for item in value)

    return {_SCALAR: read}


def choice(*values: Any, text: str = "") -> Metadata:
    """One of a few values; ``text`` lists them in the message, where their own names do not suffice."""

    def read(where: str, value: object) -> Any:
        # Of the same type: 3.0 and true equal 3 and 1.
        if not any(type(value) is type(choice) and value == choice for choice in values):
            raise ModelError(f"{where} is {show(value)}; it can be {text or ', '.join(map(str, values))}")
        return value

    return {_SCALAR: read}


def optional(cls: type) -> Metadata:
    """A record of scalars, a mapping in YAML, or None."""

    def read(where: str, value: object) -> Any:
        if isinstance(value, cls):
            check_scalars(where, value)
            return value
        return None if value is None else cls(**read_scalars(where, value, cls))

    return {_SCALAR: read}


def arrays(cls: type) -> dict[str, Array]:
    """The arrays of a record by name."""
    return {f.name: f.metadata[_ARRAY] for f in fields(cls) if _ARRAY in f.metadata}


def _readers(cls: type) -> dict[str, Reader]:
    return {f.name: f.metadata[_SCALAR] for f in fields(cls) if _SCALAR in f.metadata}


def read_scalars(where: str, config: object, cls: type) -> dict[str, Any]:
    """The scalars of a record from a mapping in YAML; a field that is unknown, missing or wrong is refused."""
    if not isinstance(config, dict):
        raise ModelError(f"{where}: is not a mapping of fields")
    readers = _readers(cls)
    for key in config:
        if key not in readers:
            raise ModelError(f"{where}: unknown field {show(key)}")
    for f in fields(cls):
        if f.name in readers and f.default is MISSING and f.name not in config:
            raise ModelError(f"{where}: the field '{f.name}' is missing")
    return {key: readers[key](f"{where}.{key}", value) for key, value in config.items()}


def write_scalars(record: Any) -> dict[str, Any]:
    """The scalars of a record as they stand in YAML: the inverse of :func:`read_scalars`."""
    written: dict[str, Any] = {}
    for name in _readers(type(record)):
        value = getattr(record, name)
        if value == ():  # nothing is stated
            continue
        if isinstance(value, tuple):
            value = list(value)
        elif is_dataclass(value):
            value = write_scalars(value)
        written[name] = value
    return written


def check_scalars(where: str, record: Any) -> None:
    """Refuse a record whose scalars could not be read."""
    for name, read in _readers(type(record)).items():
        read(f"{where}.{name}", getattr(record, name))


def check_arrays(where: str, record: Any) -> None:
    """Refuse a record whose arrays have not the shape and type that its fields state."""
    for name, stated in arrays(type(record)).items():
        value, shape = getattr(record, name), stated.shape(record)
        dtype = np.dtype(stated.dtype)
        if isinstance(value, np.ndarray) and value.shape == shape and value.dtype == dtype:
            continue
        found = (
            f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        )
        raise ModelError(f"{where}.{name} is {found}, not {dtype.name} {list(shape)}")


def check_finite(where: str, record: Any, *names: str) -> None:
    """Refuse floats that are not finite."""
    for name in names:
        values: NDArray[np.floating] = getattr(record, name)
        if not np.all(np.isfinite(values)):
            raise ModelError(f"{where}.{name} holds a value that is not finite")
