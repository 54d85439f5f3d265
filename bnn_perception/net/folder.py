"""A model is a folder, and this module is its contract: what training and importers write, backends read.

::

    model.yaml   name, labels, input, layers, where it came from, accuracy, sha256 of the files beside it
    binary.npz   packed words and integer thresholds
    float.onnx   the float twin, optional: float32 (N, channels, H, W) in [0, 1] -> logits (N, classes)

The scalars of each layer stand in ``model.yaml``, its arrays in ``binary.npz`` as ``<layer>.<array>``;
:mod:`bnn_perception.net.layers` says which. A model folder is untrusted input: :func:`load_model` checks all of it and
names the field that is wrong.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line
from bnn_perception.files import is_inside, naming, read_regular, replacing
from bnn_perception.net.checks import MAX_LAYERS, ModelError, layer_name, show
from bnn_perception.net.description import parse, to_yaml
from bnn_perception.net.fields import arrays, read_scalars, write_scalars
from bnn_perception.net.layer import Layer
from bnn_perception.net.model import BINARY, DESCRIPTION, FLOAT_TWIN, TEMPERATURES, InputSpec, Model
from bnn_perception.net.signals import LAYER_KINDS

#: What is written. Format 1 had the integer layers alone (and residual layers in fixed point, which are gone).
FORMAT, READABLE = 2, (1, 2)
#: Kinds of format 1 whose arithmetic no backend has any more.
FIXED_POINT_KINDS = ("input_stream_conv2d", "residual_conv2d")

# Far above any net for a robot, far below what exhausts its memory.
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 28
MAX_ONNX_BYTES = 1 << 30
MAX_ENTRIES = 8 * MAX_LAYERS


def load_model(folder: str | os.PathLike[str]) -> Model:
    """Read and validate a model folder.

    Raises:
        ModelError: naming the file, the field and what is wrong with it.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    description = _read_description(path)
    try:
        files = description["files"]
        if not isinstance(files, dict) or BINARY not in files:
            raise ModelError(f"files: no sha256 of {BINARY}")
        unknown = set(files) - {BINARY, FLOAT_TWIN}
        if unknown:
            raise ModelError(f"files: unknown file {show(sorted(map(str, unknown))[0])}")
        configs = description["layers"]
        if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
            raise ModelError("layers: not a list of layers")
        if not 0 < len(configs) <= MAX_LAYERS:
            raise ModelError(f"layers: {len(configs)} of them; a model has 1 to {MAX_LAYERS}")
        input_spec = InputSpec(**read_scalars("input", description["input"], InputSpec))
        labels = description["labels"]
        if not isinstance(labels, list):
            raise ModelError("labels: not a list")
        name = description["name"]
        temperatures = {key: description[key] for key in TEMPERATURES if key in description}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except KeyError as error:
        raise ModelError(f"{path}: the field {error} is missing") from None
    binary = _read_checked(folder / BINARY, files[BINARY], MAX_ARRAY_BYTES)
    if FLOAT_TWIN in files:
        _read_checked(folder / FLOAT_TWIN, files[FLOAT_TWIN], MAX_ONNX_BYTES)
    if FLOAT_TWIN not in files and (folder / FLOAT_TWIN).exists():
        raise ModelError(f"{path}: files: no sha256 of {FLOAT_TWIN}, which lies in the folder")
    try:
        with _ArrayFile(binary) as file:
            layers = tuple(_read_layer(config, file) for config in configs)
            file.check_all_used()
        known = {"format", "name", "labels", "input", "layers", "files", *TEMPERATURES}
        return Model(
            name=name,
            labels=tuple(labels),
            input=input_spec,
            layers=layers,
            **temperatures,
            info={key: value for key, value in description.items() if key not in known},
            folder=folder,
            twin_digest=files.get(FLOAT_TWIN, ""),
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read_twin(model: Model) -> bytes:
    """The float twin of a model, as it was when the model was loaded.

    Raises:
        ModelError: where the file is another by now, cannot be read, or the model has none.
    """
    if model.folder is None or not model.twin_digest:
        raise ModelError(f"model '{model.name}' has no float twin ({FLOAT_TWIN})")
    return _read_checked(model.folder / FLOAT_TWIN, model.twin_digest, MAX_ONNX_BYTES)


def save_model(model: Model, folder: str | os.PathLike[str], float_twin: bytes | None = None) -> Model:
    """Write a model folder; what was there under the same names is replaced.

    The files are written to a folder inside it first, and loaded from there, so that a full disk, or a model that
    cannot be loaded, leaves what was there; ``model.yaml`` is renamed into its place last, so that an interrupted save
    never looks like a whole model.

    Args:
        model: what to write.
        folder: made where it does not exist.
        float_twin: the bytes of the ONNX file, None to ship none.

    Returns:
        The model as :func:`load_model` reads it back.

    Raises:
        ModelError: where it could not be loaded again.
        OSError: where it cannot be written.
    """
    folder = Path(folder)
    values: dict[str, Any] = {
        f"{layer.name}.{name}": value
        for layer in model.layers
        for name, value in layer.array_values().items()
    }
    with _made(folder), tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as partial:
        prepared = Path(partial)
        with _written(prepared / BINARY, folder / BINARY) as stream:
            np.savez_compressed(stream, **values)
        if float_twin is not None:
            with _written(prepared / FLOAT_TWIN, folder / FLOAT_TWIN) as stream:
                stream.write(float_twin)
        with _written(prepared / DESCRIPTION, folder / DESCRIPTION) as stream:
            stream.write(_described(model, prepared))
        try:
            saved = load_model(prepared)
        except ModelError as error:
            raise ModelError(str(error).replace(str(prepared), str(folder))) from None
        (folder / DESCRIPTION).unlink(missing_ok=True)
        os.replace(prepared / BINARY, folder / BINARY)
        if float_twin is not None:
            os.replace(prepared / FLOAT_TWIN, folder / FLOAT_TWIN)
        else:
            (folder / FLOAT_TWIN).unlink(missing_ok=True)
        os.replace(prepared / DESCRIPTION, folder / DESCRIPTION)
    return replace(saved, folder=folder)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder, which is removed again where it was not there before and something went wrong."""
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _written(path: Path, place: Path) -> Iterator[BinaryIO]:
    """A file to write, which is on the disk afterwards; errors name ``place``, where it is to go."""
    with naming(place), path.open("xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _described(model: Model, folder: Path) -> bytes:
    """``model.yaml`` for the files that lie in a folder."""
    temperatures = TEMPERATURES if (folder / FLOAT_TWIN).exists() else TEMPERATURES[:1]
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": model.name,
        **model.info,
        "labels": list(model.labels),
        "input": write_scalars(model.input),
        **{name: float(getattr(model, name)) for name in temperatures},
        "layers": [_write_layer(layer) for layer in model.layers],
        "files": {
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in (BINARY, FLOAT_TWIN)
            if (folder / file).exists()
        },
    }
    return to_yaml(description).encode()


def update_info(folder: str | os.PathLike[str], **info: Any) -> Model:
    """Set top-level fields of ``model.yaml`` that no backend reads (accuracy, say), or a temperature.

    The other files are left alone, and an interrupted update leaves the model as it was.

    Raises:
        ModelError: for a folder that is no model, or a field that defines the net.
    """
    model = load_model(folder)
    reserved = {"format", "name", "labels", "input", "layers", "files"} & set(info)
    if reserved:
        raise ModelError(f"{sorted(reserved)[0]} defines the net and cannot be updated")
    temperatures = {name: info.pop(name) for name in TEMPERATURES if name in info}
    updated = _described(replace(model, info={**model.info, **info}, **temperatures), Path(folder))
    path = Path(folder) / DESCRIPTION
    if len(updated) > MAX_DESCRIPTION_BYTES:
        raise ModelError(f"{path}: {len(updated)} bytes; at most {MAX_DESCRIPTION_BYTES} are read")
    _parse_description(path, updated)
    with replacing(path) as partial:
        partial.write_bytes(updated)
    return load_model(folder)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        content = _read_file(path, MAX_DESCRIPTION_BYTES)
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; a model is a folder with {DESCRIPTION} and {BINARY}"
        ) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {one_line(error)}") from None
    return _parse_description(path, content)


def _parse_description(path: Path, content: bytes) -> dict[str, Any]:
    try:
        description = parse(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: cannot be read: byte {error.start} is no UTF-8") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if not isinstance(description, dict):
        raise ModelError(f"{path}: is not a mapping of fields")
    version = description.get("format")
    if type(version) is not int or version not in READABLE:
        newer = type(version) is int and version > FORMAT
        remedy = "; update bnn_perception to read it" if newer else ""
        raise ModelError(
            f"{path}: format is {show(version)}; this version reads formats {' and '.join(map(str, READABLE))}{remedy}"
        )
    return description


def _read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file of the folder, which is regular and has at most ``limit`` bytes.

    Raises:
        ModelError: where it is no regular file, larger, or a link that leads out of the folder.
        OSError: where it cannot be opened or read.
    """
    try:
        # Before the file is looked at: whose it is, what it says and whether it is there are nobody's business.
        if os.path.islink(path) and not is_inside(path, path.parent):
            raise ValueError("is a link out of its folder; put the file itself there")
        return read_regular(path, limit)
    except ValueError as error:
        raise ModelError(f"{path}: {one_line(error)}") from None


def _read_checked(path: Path, digest: object, limit: int) -> bytes:
    """The bytes of a file whose sha256 is as ``model.yaml`` says."""
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ModelError(
            f"{path.parent / DESCRIPTION}: files: the sha256 of {path.name} is not 64 hexadecimal digits"
        )
    try:
        content = _read_file(path, limit)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, but {DESCRIPTION} lists it") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {one_line(error)}") from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise ModelError(
            f"{path}: its sha256 begins {actual[:12]}, {DESCRIPTION} says {digest[:12]}; the file was changed"
        )
    return content


class _ArrayFile:
    """Reads arrays of the expected shape and type out of the bytes of an npz file, and nothing larger."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._used: set[str] = set()
        self._left = MAX_ARRAY_BYTES

    def __enter__(self) -> _ArrayFile:
        # How an entry of the archive's directory begins. Each would be made an object of before one is looked for.
        if (entries := self._content.count(b"PK\x01\x02")) > MAX_ENTRIES:
            raise ModelError(f"{BINARY}: {entries} entries; at most {MAX_ENTRIES} are read")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(self._content))
        # A damaged directory of the archive raises what its parsing happens to raise.
        except Exception as error:
            raise ModelError(f"{BINARY}: is not an npz file: {one_line(error)}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        wanted = f"{np.dtype(dtype).name} {list(shape)}"
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        self._left -= expected
        if self._left < 0:
            raise ModelError(
                f"{BINARY}: {name} takes {expected} bytes; at most {MAX_ARRAY_BYTES} are read in all"
            )
        try:
            # The header of an npy file is at most 64 KiB; anything longer is not the array that is wanted.
            if self._zip.getinfo(f"{name}.npy").file_size > expected + (1 << 16):
                raise ModelError(f"{BINARY}: {name} is larger than {wanted}")
            with self._zip.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                if version != (1, 0):
                    raise ModelError(f"{BINARY}: {name} has npy version {version}, not (1, 0)")
                actual_shape, fortran, actual_dtype = np.lib.format.read_array_header_1_0(stream)
                if actual_shape != shape or actual_dtype != np.dtype(dtype) or fortran:
                    raise ModelError(f"{BINARY}: {name} is {actual_dtype} {list(actual_shape)}, not {wanted}")
                content = stream.read(expected)
        except KeyError:
            raise ModelError(f"{BINARY}: the array {name} is missing") from None
        except ModelError:
            raise
        # Of zipfile, of the decompressors, of NumPy's parser of headers.
        except Exception as error:
            raise ModelError(f"{BINARY}: {name} cannot be read: {one_line(error)}") from None
        if len(content) != expected:
            raise ModelError(f"{BINARY}: {name} ends early")
        self._used.add(f"{name}.npy")
        return np.frombuffer(content, dtype=dtype).reshape(shape)

    def check_all_used(self) -> None:
        unused = sorted(set(self._zip.namelist()) - self._used)
        if unused:
            raise ModelError(f"{BINARY}: {show(unused[0])} belongs to no layer")


def _read_layer(config: Mapping[str, Any], file: _ArrayFile) -> Layer:
    name = layer_name(config.get("name"))
    kind = config.get("kind")
    if kind in FIXED_POINT_KINDS:
        raise ModelError(
            f"{name}: a {kind} is of format 1, whose residuals were in fixed point; import or train the net anew "
            "(python -m bnn_perception import NET.onnx FOLDER)"
        )
    if not isinstance(kind, str) or kind not in LAYER_KINDS:
        raise ModelError(f"{name}: kind {show(kind)} is unknown; this version knows {', '.join(LAYER_KINDS)}")
    cls = LAYER_KINDS[kind]
    scalars = {key: value for key, value in config.items() if key not in ("name", "kind")}
    values = read_scalars(name, scalars, cls)
    sizes = SimpleNamespace(**values)
    for array, stated in arrays(cls).items():
        values[array] = file.read(f"{name}.{array}", stated.shape(sizes), stated.dtype)
    return cls(name=name, **values)


def _write_layer(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "kind": layer.kind, **write_scalars(layer)}
