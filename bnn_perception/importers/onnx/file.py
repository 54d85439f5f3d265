"""Reads an ``.onnx`` file, which nobody vouches for: its size, its protobuf, the constants that lie in other files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_perception.errors import one_line
from bnn_perception.files import is_inside, open_regular, read_regular
from bnn_perception.importers.errors import ImporterError
from bnn_perception.importers.onnx.operators import QUANT_DOMAINS, STANDARD

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 1 << 30
#: The most nodes; each is looked at in Python.
MAX_NODES = 1 << 14


def load(source: Path, one_file: bool = False, content: bytes | None = None) -> onnx.ModelProto:
    """Read the graph and the constants beside it.

    Args:
        source: the ``.onnx`` file.
        one_file: refuse constants in other files.
        content: of the file, where it was read already; it is not opened then.

    Raises:
        ImporterError: naming the file and the reason.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise ImporterError(f"{source}: reading it needs the package onnx; pip install onnx") from None

    try:
        proto = onnx.load_from_string(read_regular(source, MAX_BYTES) if content is None else content)
    except OSError as error:
        raise ImporterError(f"{source}: cannot be read: {error.strerror or error}") from None
    except DecodeError:
        raise ImporterError(f"{source}: is not an ONNX file") from None
    except ValueError as error:
        raise ImporterError(f"{source}: {one_line(error)}") from None
    if len(proto.graph.node) > MAX_NODES:
        raise ImporterError(f"{source}: {len(proto.graph.node)} nodes; at most {MAX_NODES} are read")
    if proto.graph.sparse_initializer:
        raise ImporterError(f"{source}: holds sparse constants; store them whole")
    for function in proto.functions:
        if function.domain in (*STANDARD, *QUANT_DOMAINS):
            raise ImporterError(
                f"{source}: defines the operator {function.name} anew; only that of the standard is known"
            )
    _load_external_data(proto, source, one_file)
    return proto


def _load_external_data(proto: onnx.ModelProto, source: Path, one_file: bool) -> None:
    """Read the initializers that lie in files beside the graph, in its folder."""
    from onnx import external_data_helper

    left = MAX_BYTES
    for tensor in proto.graph.initializer:
        if not external_data_helper.uses_external_data(tensor):
            continue
        if one_file:
            raise ImporterError(
                f"{source}: the data of '{tensor.name}' is in another file; it must be one file"
            )
        try:
            stated = external_data_helper.ExternalDataInfo(tensor)
            length, offset = stated.length or 0, stated.offset or 0
            if not 0 < length <= left:
                raise ValueError(f"its length is {length}; all of them have at most {MAX_BYTES} bytes")
            left -= length
            tensor.raw_data = _read_part(source.parent, stated.location, offset, length)
        # Names and numbers of the file reach Python's open and numpy, each with errors of its own.
        except Exception as error:
            raise ImporterError(
                f"{source}: the data of '{tensor.name}', in another file, cannot be read: {one_line(error)}"
            ) from None
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")


def _read_part(folder: Path, name: str, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset`` on of a regular file in, or below, a folder."""
    path = folder / name
    if os.path.isabs(name) or not is_inside(path, folder):
        raise ValueError(f"'{name}' is not in the folder of the graph")
    with open_regular(path) as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise ValueError(f"'{name}' ends {length - len(data)} bytes early")
    return data
