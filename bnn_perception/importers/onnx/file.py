"""Reads an ``.onnx`` file, which nobody vouches for: its size, its protobuf, the constants that lie in other files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bnn_perception.importers.errors import ImporterError, printable

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 1 << 30


def load(source: Path, one_file: bool = False) -> onnx.ModelProto:
    """Read the graph and the constants beside it.

    Args:
        source: the ``.onnx`` file.
        one_file: refuse constants in other files.

    Raises:
        ImporterError: naming the file and the reason.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise ImporterError(f"{source}: reading it needs the package onnx; pip install onnx") from None

    try:
        size = source.stat().st_size
        if size > MAX_BYTES:
            raise ImporterError(f"{source}: {size} bytes; at most {MAX_BYTES} are read")
        proto = onnx.load(str(source), load_external_data=False)
    except OSError as error:
        raise ImporterError(f"{source}: cannot be read: {error.strerror or error}") from None
    except DecodeError:
        raise ImporterError(f"{source}: is not an ONNX file") from None
    _load_external_data(proto, source, one_file)
    return proto


def _load_external_data(proto: onnx.ModelProto, source: Path, one_file: bool) -> None:
    """Read the initializers that lie in files beside the graph; onnx sees to it that these lie in its folder."""
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
            length = external_data_helper.ExternalDataInfo(tensor).length or 0
            if not 0 < length <= left:
                raise ValueError(f"its length is {length}; all of them have at most {MAX_BYTES} bytes")
            left -= length
            external_data_helper.load_external_data_for_tensor(tensor, str(source.parent))
        # Names and numbers of the file reach Python's open, numpy and C++, each with errors of its own.
        except Exception as error:
            raise ImporterError(
                f"{source}: the data of '{tensor.name}', in another file, cannot be read: {printable(error)}"
            ) from None
        # Older versions of onnx leave both set.
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
