"""Model folders: written and read back, and refused with the file, the field and the reason."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import math
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    binary_conv,
    binary_dense,
    input_conv,
    make_model,
    models,
    output_bits,
    output_dense,
    random_model,
    real_conv,
    residual_model,
    residual_models,
    scaled_input_conv,
    thermometer,
)
from numpy.typing import NDArray

from bnn_perception.backends.reference import convolution
from bnn_perception.net import bits
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import load_model, read_twin, save_model, update_info
from bnn_perception.net.layer import Layer, Pool
from bnn_perception.net.layers import BinaryConv2d, InputConv2d
from bnn_perception.net.model import BINARY, DESCRIPTION, FLOAT_TWIN, InputSpec, Model, iter_layers
from bnn_perception.net.signals import Add, AveragePool, Concat, MaxPool
from bnn_perception.resources import find_model

Description = dict[str, Any]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A whole model: an input convolution, a binary one, a dense layer, the output, a float twin."""
    save_model(random_model(rng), tmp_path / "model", float_twin=b"not looked at here")
    return tmp_path / "model"


def assert_equal(a: Model, b: Model) -> None:
    assert (a.name, a.labels, a.input, a.temperature) == (b.name, b.labels, b.input, b.temperature)
    assert a.float_temperature == b.float_temperature
    assert dict(a.info) == dict(b.info)
    assert [type(layer) for layer in a.layers] == [type(layer) for layer in b.layers]
    for ours, theirs in zip(a.layers, b.layers):
        for field, value in vars(ours).items():
            other = getattr(theirs, field)
            if isinstance(value, np.ndarray):
                assert value.dtype == other.dtype
                np.testing.assert_array_equal(value, other)
            else:
                assert value == other


@given(st.one_of(models(), residual_models()))
@settings(max_examples=60, deadline=None)
def test_a_saved_model_is_read_back(tmp_path_factory: pytest.TempPathFactory, model: Model) -> None:
    model = replace(model, temperature=1.5, info={"accuracy": {"binary": 0.9}, "note": "two\nlines, Übermaß"})
    assert_equal(save_model(model, tmp_path_factory.mktemp("model")), model)


@pytest.mark.parametrize("file", [BINARY, FLOAT_TWIN, DESCRIPTION])
def test_a_full_disk_leaves_the_model_that_was_there(
    folder: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = load_model(folder), sorted(path.name for path in folder.iterdir())
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_model(random_model(np.random.default_rng(1)), folder, float_twin=b"another")
    assert caught.value.filename == str(folder / file)
    assert_equal(load_model(folder), model)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_float_twin_is_kept_dropped_and_found(folder: Path) -> None:
    model = load_model(folder)
    assert model.float_twin == folder / FLOAT_TWIN
    assert save_model(model, folder).float_twin is None
    assert not (folder / FLOAT_TWIN).exists()


def test_update_info(folder: Path) -> None:
    before = load_model(folder)
    written = (folder / BINARY).stat()
    after = update_info(folder, accuracy=0.95, temperature=2.0, float_temperature=0.5)
    assert after.info["accuracy"] == 0.95
    assert (after.temperature, after.float_temperature) == (2.0, 0.5)
    assert (folder / BINARY).stat() == written
    assert (folder / FLOAT_TWIN).read_bytes() == b"not looked at here"
    assert_equal(replace(after, info={}, temperature=1.0, float_temperature=1.0), replace(before, info={}))
    with pytest.raises(ModelError, match="layers defines the net"):
        update_info(folder, layers=[])


def test_an_update_replaces_what_it_names_and_nothing_else(folder: Path) -> None:
    update_info(folder, accuracy=0.9, note="first", float_temperature=3.0)
    after = update_info(folder, accuracy=0.95, temperature=2.0)
    assert after.info == {"accuracy": 0.95, "note": "first"}
    assert (after.temperature, after.float_temperature) == (2.0, 3.0)
    # A temperature has one place.
    assert list(read(folder)).count("temperature") == 1


@pytest.mark.parametrize("field", ["format", "name", "labels", "input", "layers", "files"])
def test_a_field_that_defines_the_net_is_not_updated(folder: Path, field: str) -> None:
    before = (folder / DESCRIPTION).read_bytes()
    with pytest.raises(ModelError, match=f"{field} defines the net"):
        update_info(folder, accuracy=0.5, **{field: 1})
    assert (folder / DESCRIPTION).read_bytes() == before


def test_an_interrupted_update_leaves_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise OSError("disk full")

    before = load_model(folder)
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="disk full"):
        update_info(folder, temperature=2.0)
    assert_equal(load_model(folder), before)
    assert sorted(path.name for path in folder.iterdir()) == [BINARY, FLOAT_TWIN, DESCRIPTION]


def test_temperatures_may_be_missing(folder: Path) -> None:
    update_info(folder, temperature=2.0, float_temperature=0.5)
    description = read(folder)
    del description["temperature"], description["float_temperature"]
    write(folder, description)
    model = load_model(folder)
    assert (model.temperature, model.float_temperature) == (1.0, 1.0)


def test_fields_that_have_a_default_may_be_missing(folder: Path) -> None:
    description = read(folder)
    del (
        description["input"]["fit"],
        description["input"]["channels"],
        description["layers"][1]["padding_value"],
    )
    write(folder, description)
    model = load_model(folder)
    assert (model.input.fit, model.input.channels) == ("crop", 3)
    assert isinstance(model.layers[1], BinaryConv2d)
    assert model.layers[1].padding_value == -1


def test_an_interrupted_save_is_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise OSError("the power is gone")

    model = load_model(folder)
    # The new files are written then, and take the places of the old ones.
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="the power is gone"):
        save_model(model, folder)
    with pytest.raises(ModelError, match=rf"{DESCRIPTION}: no such file"):
        load_model(folder)


def read(folder: Path) -> Description:
    description = yaml.safe_load((folder / DESCRIPTION).read_text(encoding="utf-8"))
    assert isinstance(description, dict)
    return description


def write(folder: Path, description: object) -> None:
    (folder / DESCRIPTION).write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")


def arrays(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / BINARY) as file:
        return dict(file)


def write_binary(folder: Path, content: bytes) -> None:
    """Replace ``binary.npz`` and state its digest, as an attacker would."""
    (folder / BINARY).write_bytes(content)
    description = read(folder)
    description["files"][BINARY] = hashlib.sha256(content).hexdigest()
    write(folder, description)


def write_arrays(folder: Path, values: dict[str, Any]) -> None:
    file = io.BytesIO()
    np.savez(file, **values)
    write_binary(folder, file.getvalue())


def assert_refused(folder: Path, *parts: str) -> None:
    """Loading fails with one line that holds all ``parts``."""
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", f"{DESCRIPTION}: no such file")


@pytest.mark.parametrize("file", [BINARY, FLOAT_TWIN])
def test_a_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert_refused(folder, f"{file}: no such file")


@pytest.mark.parametrize("file", [DESCRIPTION, BINARY])
def test_a_folder_in_the_place_of_a_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    assert_refused(folder, file)


def test_a_changed_file(folder: Path) -> None:
    with (folder / BINARY).open("ab") as file:
        file.write(b"x")
    assert_refused(folder, BINARY, "the file was changed")


def test_a_float_twin_without_a_digest(folder: Path) -> None:
    description = read(folder)
    del description["files"][FLOAT_TWIN]
    write(folder, description)
    assert_refused(folder, f"no sha256 of {FLOAT_TWIN}")


def test_a_description_that_is_too_long(folder: Path) -> None:
    text, limit = (folder / DESCRIPTION).read_text(encoding="utf-8"), 2**20
    text += "#" * (limit - len(text.encode()))
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    load_model(folder)
    (folder / DESCRIPTION).write_text(text + "#", encoding="utf-8")
    assert_refused(folder, f"{limit + 1} bytes; at most {limit} are read")


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "\tname: x",
        "- a\n- b",
        "just text",
        "",
        "name: \x07",
        "a: !!python/object:os.system {}",
        "a: 2020-13-45",  # a date, as YAML takes it
        "a: !!int ''",
        "a: !!timestamp x",
        "a: " + "9" * 5000,  # more digits than Python converts
        "[" * 400,
        "? [a]\n: b",
    ],
)
def test_a_description_that_is_not_a_mapping(folder: Path, text: str) -> None:
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    assert_refused(folder, DESCRIPTION)


def test_a_description_that_is_not_text(folder: Path) -> None:
    (folder / DESCRIPTION).write_bytes(b"name: \xff\xfe\xfa")
    assert_refused(folder, "cannot be read")


def bomb(depth: int, what: str = "[{}]") -> str:
    """References to references: each line stands for nine times as many values as the one before it."""
    lines = ["a0: &a0 " + (what.format("x") if what == "[{}]" else "{x: 1}")]
    lines += [f"a{n}: &a{n} {what.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(30), r"line \d+: over 131072 values"),
        (bomb(30, "{{<<: [{}]}}"), r"line \d+: over 131072 values"),
        ("x: [" + "1," * 2**17 + "1]\n", "line 1: over 131072 values"),
        ("- " * 400_000 + "\n", "line 1: values are nested over 32 deep"),
        ("x: " + "[" * 33 + "]" * 33 + "\n", "line 1: values are nested over 32 deep"),
        ("x: " + "{a: " * 33 + "}" * 33 + "\n", "line 1: values are nested over 32 deep"),
        ("x: " + "9" * 65537 + "\n", "line 1: a value of 65537 characters; it has at most 65536"),
        ("x: &a [*a]\n", r"line 1: refers \(\*\) to what does not end before it"),
        ("x: &a {b: {c: *a}}\n", r"line 1: refers \(\*\) to what does not end before it"),
        ("x: *nothing\n", r"line 1: refers \(\*\) to what does not end before it"),
        ("x: !!binary aGVsbG8=\n", r"line 1: has a tag \(!\)"),
        ("x: !!set {a, b}\n", r"line 1: has a tag \(!\)"),
    ],
)
def test_the_cost_of_a_description_is_bounded(folder: Path, text: str, reason: str) -> None:
    (folder / DESCRIPTION).write_text(text + (folder / DESCRIPTION).read_text())
    started = time.process_time()
    with pytest.raises(ModelError, match=reason):
        load_model(folder)
    # A second is what the largest description takes with PyYAML in C; without, ten times as long.
    assert time.process_time() - started < 20


def test_references_to_values_before_them_are_read(folder: Path) -> None:
    text = "again: &a [1, {b: 2}]\nlist: [*a, *a]\nmerged: {<<: {c: 3}}\nday: 2024-05-01\n"
    (folder / DESCRIPTION).write_text(text + (folder / DESCRIPTION).read_text())
    info = load_model(folder).info
    assert info["list"] == [[1, {"b": 2}]] * 2
    assert info["merged"] == {"c": 3}
    assert info["day"] == "2024-05-01"  # a text, as in JSON


@pytest.mark.parametrize("field", ["format", "input.channels", "layers.1.padding_value"])
def test_a_number_with_a_point_is_no_whole_number(folder: Path, field: str) -> None:
    load_model(folder)
    description = read(folder)
    *parents, last = field.split(".")
    place: Any = description
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[last] = float(place[last])
    write(folder, description)
    assert_refused(folder, f"{last} is {place[last]}")


def at(path: str, value: object) -> Callable[[Description], None]:
    """An edit that sets the field ``path``, or deletes it where ``value`` is Ellipsis."""

    def edit(description: Description) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = description
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return edit


REFUSALS: list[tuple[str, object, str]] = [
    ("format", 3, "update bnn_perception"),
    ("format", 0, "format is 0"),
    ("format", "1", "format is '1'"),
    ("format", True, "format is True"),
    ("format", ..., "format is None"),
    ("name", ..., "'name' is missing"),
    ("name", "", "name is ''"),
    ("name", 3, "name is 3"),
    ("labels", ..., "'labels' is missing"),
    ("labels", "bus", "labels: not a list"),
    ("labels", ["a", "b"], "labels: 2 of them, but dense2 has 5 outputs"),
    ("labels", ["a", "b", "c", "d", 5], "labels: 5 is not a text"),
    ("labels", ["a", "b", "c", "d", " "], "labels: ' ' is not a text"),
    ("input", ..., "'input' is missing"),
    ("input", [12, 12], "input: is not a mapping"),
    ("input.height", ..., "input: the field 'height' is missing"),
    ("input.height", 0, "input.height is 0"),
    ("input.height", 1e3, "input.height is 1000.0"),
    ("input.height", True, "input.height is True"),
    ("input.height", 100000, "input.height is 100000"),
    ("input.channels", 2, "input.channels is 2"),
    ("input.channels", [3], "input.channels is [3]"),
    ("input.fit", "pad", "input.fit is 'pad'"),
    ("input.colour", "rgb", "input: unknown field 'colour'"),
    ("temperature", 0, "temperature is 0"),
    ("temperature", -1.0, "temperature is -1.0"),
    ("temperature", float("nan"), "temperature is nan"),
    ("temperature", float("inf"), "temperature is inf"),
    ("temperature", "warm", "temperature is 'warm'"),
    ("temperature", 10**400, "temperature is"),
    ("temperature", True, "temperature is True"),
    ("float_temperature", 0, "float_temperature is 0"),
    ("files", ..., "'files' is missing"),
    ("files", [], "files: no sha256 of binary.npz"),
    ("files", {}, "files: no sha256 of binary.npz"),
    ("files.binary.npz", None, ""),
    ("files", {BINARY: "0" * 64, "../evil": "0" * 64}, "files: unknown file '../evil'"),
    ("files", {BINARY: "0" * 63}, "is not 64 hexadecimal digits"),
    ("files", {BINARY: "0" * 64}, "the file was changed"),
    ("layers", ..., "'layers' is missing"),
    ("layers", [], "layers: 0 of them"),
    ("layers", {}, "layers: not a list"),
    ("layers", ["conv"], "layers: not a list"),
    ("layers.1.name", ..., "layers: the name None is not a word"),
    ("layers.1.name", 3, "layers: the name 3 is not a word"),
    ("layers.1.name", "conv1", "conv1"),
    ("layers.1.name", "../conv", "layers: the name '../conv' is not a word"),
    ("layers.1.kind", ..., "conv2: kind None is unknown"),
    ("layers.1.kind", "residual", "conv2: kind 'residual' is unknown"),
    ("layers.1.kind", ["binary_conv2d"], "conv2: kind ['binary_conv2d'] is unknown"),
    ("layers.1.kind", "thermometer", "conv2"),
    ("layers.1.kind", "k" * 70, f"conv2: kind '{'k' * 70}' is unknown"),
    ("layers.1.kind", "k" * 200, f"conv2: kind '{'k' * 37}...{'k' * 38}' is unknown"),
    ("layers.1.kind", "input_conv2d", "conv2"),
    ("layers.1.groups", 2, "conv2: unknown field 'groups'"),
    ("layers.1.weights", [1], "conv2: unknown field 'weights'"),
    ("layers.1.in_channels", ..., "conv2: the field 'in_channels' is missing"),
    ("layers.1.in_channels", 41, "conv2: in_channels is 41, but its input has 40"),
    ("layers.1.in_channels", 400, "conv2.weights is uint32 [70, 3, 3, 2], not uint32 [70, 3, 3, 13]"),
    ("layers.1.in_channels", "many", "conv2"),
    ("layers.1.in_channels", -5, "conv2"),
    ("layers.1.out_channels", 71, "conv2.weights is uint32 [70, 3, 3, 2], not uint32 [71, 3, 3, 2]"),
    ("layers.1.out_channels", 10**30, "conv2"),
    ("layers.1.kernel", 3, "conv2.kernel is 3; it must be 2 whole numbers"),
    ("layers.1.kernel", [3], "conv2.kernel is [3]"),
    ("layers.1.kernel", [3, "x"], "conv2.kernel is 'x'"),
    ("layers.1.kernel", [3, 5], "conv2.weights"),
    ("layers.1.stride", [0, 1], "conv2.stride is 0"),
    ("layers.1.stride", [65, 1], "conv2.stride is 65"),
    ("layers.1.padding", [3, 1], "conv2.padding is 3; it must be a whole number from 0 to 2"),
    ("layers.1.padding_value", 2, "conv2.padding_value is 2"),
    ("layers.1.padding_value", [0], "conv2.padding_value is [0]"),
    ("layers.0.pool", 2, "conv1.pool: is not a mapping"),
    ("layers.0.pool", {"size": 2}, "conv1.pool: the field 'stride' is missing"),
    ("layers.0.pool", {"size": 2, "stride": 0}, "conv1.pool.stride is 0"),
    ("layers.0.pool", {"size": "2", "stride": 2}, "conv1.pool.size is '2'"),
    ("layers.0.pool", {"size": 13, "stride": 2}, "conv1: pool.size 13 is larger than its input"),
    (
        "layers.0.pool",
        {"size": 4, "stride": 2},
        "dense1: in_shape is [6, 6, 70], but its input has [5, 5, 70]",
    ),
    ("layers.2.in_shape", [6, 6], "dense1.in_shape is [6, 6]; it must be 3 whole numbers"),
    ("layers.2.in_shape", [0, 6, 70], "dense1"),
    ("layers.2.in_shape", [6, 6, 96], "dense1"),
    ("layers.3.out_features", 6, "dense2.weights"),
    ("layers.3.kind", "binary_dense", "dense2"),
]


@pytest.mark.parametrize(("path", "value", "reason"), REFUSALS)
def test_a_wrong_field(folder: Path, path: str, value: object, reason: str) -> None:
    description = read(folder)
    if path == "files.binary.npz":
        description["files"][BINARY] = value
        reason = "is not 64 hexadecimal digits"
    else:
        at(path, value)(description)
    write(folder, description)
    assert_refused(folder, reason)


LIMITS: list[tuple[str, dict[str, Any], str]] = [
    ("conv", {"in_channels": 0}, "conv.in_channels is 0; it must be a whole number from 1 to 65536"),
    ("conv", {"in_channels": 65537}, "conv.in_channels is 65537; it must be a whole number from 1 to 65536"),
    ("conv", {"out_channels": 0}, "conv.out_channels is 0; it must be a whole number from 1 to 65536"),
    ("conv", {"out_channels": True}, "conv.out_channels is True; it must be a whole number from 1 to 65536"),
    ("conv", {"kernel": (0, 3)}, "conv.kernel is 0; it must be a whole number from 1 to 64"),
    ("conv", {"kernel": (3, 65)}, "conv.kernel is 65; it must be a whole number from 1 to 64"),
    ("conv", {"stride": (1, 0)}, "conv.stride is 0; it must be a whole number from 1 to 64"),
    ("conv", {"stride": (65, 1)}, "conv.stride is 65; it must be a whole number from 1 to 64"),
    ("conv", {"padding": (1, 3)}, "conv.padding is 3; it must be a whole number from 0 to 2"),
    ("conv", {"padding": (-1, 1)}, "conv.padding is -1; it must be a whole number from 0 to 2"),
    ("conv", {"pool": Pool(0, 1)}, "conv.pool.size is 0; it must be a whole number from 1 to 64"),
    ("conv", {"pool": Pool(65, 1)}, "conv.pool.size is 65; it must be a whole number from 1 to 64"),
    ("conv", {"pool": Pool(2, 0)}, "conv.pool.stride is 0; it must be a whole number from 1 to 64"),
    ("conv", {"pool": Pool(2, 65)}, "conv.pool.stride is 65; it must be a whole number from 1 to 64"),
    ("levels", {"levels": 0}, "levels.levels is 0; it must be a whole number from 1 to 255"),
    ("levels", {"levels": 256}, "levels.levels is 256; it must be a whole number from 1 to 255"),
    ("levels", {"channels": 0}, "levels.channels is 0; it must be a whole number from 1 to 65536"),
    ("dense", {"in_shape": (0, 4, 8)}, "dense.in_shape is 0; it must be a whole number from 1 to 65536"),
    (
        "dense",
        {"in_shape": (4, 4, 65537)},
        "dense.in_shape is 65537; it must be a whole number from 1 to 65536",
    ),
    ("dense", {"out_features": 0}, "dense.out_features is 0; it must be a whole number from 1 to 65536"),
    ("input", {"height": 0}, "input.height is 0; it must be a whole number from 1 to 4096"),
    ("input", {"width": 4097}, "input.width is 4097; it must be a whole number from 1 to 4096"),
    ("input", {"width": 8.0}, "input.width is 8.0; it must be a whole number from 1 to 4096"),
    ("model", {"labels": ("a", "b" * 201)}, "labels: 'b.*' is not a text of 1 to 200 characters"),
    ("model", {"labels": ("a", "")}, "labels: '' is not a text of 1 to 200 characters"),
    ("model", {"temperature": 0.99e-6}, "temperature is 9.9e-07; it must be a number from 1e-6 to 1e6"),
    (
        "model",
        {"float_temperature": 1.01e6},
        "float_temperature is 1010000.0; it must be a number from 1e-6 to 1e6",
    ),
]


def small_parts(rng: np.random.Generator) -> dict[str, Any]:
    """A part of a model of each kind, and a model."""
    parts: dict[str, Any] = {
        "conv": binary_conv(rng, "conv", (8, 8, 8), 4, pool=Pool(2, 2)),
        "levels": thermometer(rng, "levels", (8, 8, 3), 8),
        "dense": binary_dense(rng, "dense", (4, 4, 8), 3),
        "input": InputSpec(8, 8),
    }
    layers = [input_conv(rng, "first", (8, 8, 3), 8), output_dense(rng, "last", (8, 8, 8), 2)]
    return {**parts, "model": make_model(InputSpec(8, 8), layers)}


@pytest.mark.parametrize(("part", "fields", "reason"), LIMITS)
def test_limits_of_a_part(rng: np.random.Generator, part: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"^{reason}"):
        replace(small_parts(rng)[part], **fields)


def test_what_lies_at_its_limits_is_taken(rng: np.random.Generator) -> None:
    model = small_parts(rng)["model"]
    replace(model, labels=("a", "b" * 200), temperature=1e-6, float_temperature=1e6)
    replace(model, temperature=1_000_000, float_temperature=1e-6)
    InputSpec(1, 4096)
    InputSpec(4096, 1, channels=1)
    thermometer(rng, "levels", (1, 1, 3), 255)
    binary_conv(rng, "a" * 64, (70, 70, 1), 1, (64, 64), stride=(64, 64), padding=(63, 63), pool=Pool(64, 64))
    binary_dense(rng, "dense", (1, 1, 1 << 16), 1)
    with pytest.raises(ModelError, match="layers: the name 'a+.*a+' is not a word"):
        make_model(
            InputSpec(8, 8),
            [input_conv(rng, "a" * 65, (8, 8, 3), 8), output_dense(rng, "last", (8, 8, 8), 2)],
        )
    middle = [binary_conv(rng, f"c{index}", (1, 1, 1), 1) for index in range(2046)]
    first, last = input_conv(rng, "first", (1, 1, 3), 1), output_dense(rng, "last", (1, 1, 1), 2)
    make_model(InputSpec(1, 1), [first, *middle, last])
    with pytest.raises(ModelError, match="layers: 2049 of them; a model has 1 to 2048"):
        make_model(InputSpec(1, 1), [first, *middle, replace(middle[0], name="more"), last])
    with pytest.raises(ModelError, match="layers: 0 of them; a model has 1 to 2048"):
        replace(model, layers=())


def test_too_many_layers(folder: Path) -> None:
    description = read(folder)
    description["layers"] = [description["layers"][1]] * 2049
    write(folder, description)
    assert_refused(folder, "layers: 2049 of them; a model has 1 to 2048")


SIGNAL_REFUSALS: list[tuple[str, object, str]] = [
    ("identity.inputs", ["nothing"], "identity.inputs: no layer before it has the name 'nothing'"),
    ("identity.inputs", ["identity"], "identity.inputs: no layer before it has the name 'identity'"),
    ("identity.inputs", ["identity_add"], "identity.inputs: no layer before it has the name 'identity_add'"),
    (
        "identity.inputs",
        ["stem_pool"],
        "identity: a scaled_binary_conv2d takes bits, but stem_pool gives signal",
    ),
    ("identity.inputs", "stem", "identity.inputs is 'stem'; it must be a list of names of layers"),
    ("identity.inputs", [1], "identity.inputs is [1]; it must be a list of names of layers"),
    ("identity_add.inputs", ["identity"], "identity_add.inputs: 1 of them; a add takes 2"),
    ("identity_add.inputs", ["stem_pool"] * 3, "identity_add.inputs: 3 of them; a add takes 2"),
    ("identity_add.inputs", ["stem_pool", "stem_pool"], "identity: no layer takes its output"),
    ("down_add.inputs", ["down_shortcut", "stem_pool"], "down_clip: no layer takes its output"),
    ("wide.channels", 7, "wide: channels is 7, but its input has 112"),
    ("wide.inputs", ["wide_a"], "wide.inputs: 1 of them; a concat takes 2 to 64"),
    ("stem_pool.padding", [3, 0], "stem_pool.padding is 3; it must be a whole number from 0 to 2"),
    ("stem_pool.padding", [0, 0, 0, 3], "stem_pool.padding is 3; it must be a whole number from 0 to 2"),
    (
        "stem_pool.padding",
        [1, 1, 1],
        "stem_pool.padding is [1, 1, 1]; it must be 2 whole numbers (y, x) or 4",
    ),
    ("down.padding_value", 2, "down.padding_value is 2; it can be -1, 0, 1"),
    ("blur.groups", 5, "blur.weights is float32 [117, 3, 3, 1], not float32 [117, 3, 3, 23]"),
    ("down_mean.counts_padding", 1, "down_mean.counts_padding is 1; it must be true or false"),
    ("pad_zeros.before", -1, "pad_zeros.before is -1; it must be a whole number from 0"),
    ("pad_zeros.before", 3, "pad_zeros: channels is 117, but its input has 118"),
    ("stem.kind", "input_conv2d", "stem"),
    ("down.kind", "binary_conv2d", "down"),
]


@pytest.mark.parametrize(("path", "value", "reason"), SIGNAL_REFUSALS)
def test_a_wrong_field_of_a_net_with_signals(
    tmp_path: Path, rng: np.random.Generator, path: str, value: object, reason: str
) -> None:
    save_model(residual_model(rng), tmp_path)
    description = read(tmp_path)
    name, field = path.split(".")
    (layer,) = [layer for layer in description["layers"] if layer["name"] == name]
    layer[field] = value
    write(tmp_path, description)
    assert_refused(tmp_path, reason)


def spoilt(name: str, change: Callable[[NDArray[Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {**values, name: change(values[name])}


def with_value(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        changed = array.copy()
        changed.reshape(-1)[0] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("down.scale", with_value(np.inf), "down.scale holds a value that is not finite"),
        ("down.bias", with_value(np.nan), "down.bias holds a value that is not finite"),
        ("down_sign.threshold", with_value(np.nan), "down_sign.threshold holds a value that is not a number"),
        ("stem_relu.slope", with_value(np.inf), "stem_relu.slope holds a value that is not finite"),
        ("down_clip.low", with_value(1e3), "down_clip: low 1000 is above high"),
        ("blur.weights", with_value(np.nan), "blur.weights holds a value that is not finite"),
        ("stem.weights", with_value(1 << 23), "stem.weights lie in"),
        ("stem.outside", with_value(np.inf), "stem.outside holds a value that is not finite"),
        ("stem.scale", with_value(1e30), "stem: channel 0 of its signal can reach"),
        ("identity_shift.scale", with_value(3e37), "identity_shift: channel 0 of its signal can reach"),
        ("blur.weights", with_value(1e37), "blur: channel 0 of its signal can reach"),
        ("stem.weights", lambda a: a.astype(np.int16), "stem.weights is int16"),
        ("down.scale", lambda a: a[1:], "down.scale is float32 [47], not float32 [48]"),
    ],
)
def test_a_wrong_array_of_a_net_with_signals(
    tmp_path: Path, rng: np.random.Generator, name: str, change: Callable[[NDArray[Any]], Any], reason: str
) -> None:
    save_model(residual_model(rng), tmp_path)
    write_arrays(tmp_path, spoilt(name, change)(arrays(tmp_path)))
    assert_refused(tmp_path, reason)


def test_signals_that_do_not_fit_together(rng: np.random.Generator) -> None:
    spec, last = InputSpec(8, 8), real_conv(rng, "last", (1, 1, 32), 2)
    stem, half = (
        scaled_input_conv(rng, "stem", (8, 8, 3), 32),
        AveragePool("half", 32, (2, 2), (2, 2), (0, 0), True),
    )
    mean = AveragePool("mean", 32, (4, 4), (4, 4), (0, 0), True)
    make_model(spec, [stem, half, mean, last])
    with pytest.raises(ModelError, match=r"sum: adds \[4, 4, 32\] to \[8, 8, 32\]"):
        make_model(spec, [stem, half, Add("sum", 32, inputs=("stem", "half")), last])
    with pytest.raises(ModelError, match=r"both: puts \[4, 4, 32\] beside \[8, 8, 32\]"):
        make_model(spec, [stem, half, Concat("both", 64, inputs=("stem", "half")), last])
    with pytest.raises(
        ModelError, match=r"last: the last layer gives \[4, 4, 2\]; logits are a signal of one pixel"
    ):
        make_model(spec, [stem, half, last])
    with pytest.raises(ModelError, match="grouped.groups is 5, which does not divide in_channels 32"):
        replace(real_conv(rng, "grouped", (8, 8, 32), 40), groups=5)


def test_a_sign_may_never_or_always_be_reached(tmp_path: Path, rng: np.random.Generator) -> None:
    save_model(residual_model(rng), tmp_path)
    for value in (np.inf, -np.inf):
        write_arrays(tmp_path, spoilt("down_sign.threshold", with_value(value))(arrays(tmp_path)))
        load_model(tmp_path)


def test_format_1_is_read_but_for_its_fixed_point(folder: Path) -> None:
    model = load_model(folder)
    description = read(folder)
    assert description["format"] == 2
    description["format"] = 1
    write(folder, description)
    assert_equal(load_model(folder), model)
    for kind in ("input_stream_conv2d", "residual_conv2d"):
        description["layers"][1]["kind"] = kind
        write(folder, description)
        assert_refused(
            folder, f"conv2: a {kind} is of format 1, whose residuals were in fixed point; import or train"
        )


def test_inputs_are_written_where_they_are_not_the_layer_before(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    save_model(residual_model(rng), tmp_path)
    written = {layer["name"]: layer.get("inputs") for layer in read(tmp_path)["layers"]}
    assert written["stem_relu"] is None
    assert written["identity_add"] == ["identity", "stem_pool"]


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"mean": [0.5]}, "input: 1 values of mean and 0 of std"),
        ({"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "both have one for each of 3 channels, or none"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0]}, "input.std holds a 0"),
        ({"mean": ["a"] * 3, "std": [0.5] * 3}, "input.mean is ['a', 'a', 'a']; it must be numbers"),
        ({"mean": [float("nan")] * 3, "std": [0.5] * 3}, "input.mean is"),
    ],
)
def test_a_pixel_range_that_makes_no_sense(folder: Path, stated: dict[str, Any], reason: str) -> None:
    description = read(folder)
    description["input"].update(stated)
    write(folder, description)
    assert_refused(folder, reason)


def test_a_pixel_range_is_kept(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    ranged = replace(model, input=replace(model.input, mean=(0.4, 0.5, 0.6), std=(0.25, 0.5, 0.125)))
    saved = save_model(ranged, tmp_path / "ranged")
    assert (saved.input.mean, saved.input.std) == ((0.4, 0.5, 0.6), (0.25, 0.5, 0.125))


def test_layers_in_the_wrong_place(rng: np.random.Generator) -> None:
    first = input_conv(rng, "first", (8, 8, 3), 32)
    middle = binary_conv(rng, "middle", (8, 8, 32), 32)
    last = output_dense(rng, "last", (8, 8, 32), 2)
    spec = InputSpec(8, 8)
    with pytest.raises(ModelError, match="first: the last layer must give a signal or be"):
        make_model(spec, [first])
    hidden = binary_dense(rng, "hidden", (8, 8, 32), 2)
    with pytest.raises(ModelError, match="hidden: the last layer must give a signal or be"):
        Model("hidden last", ("a", "b"), spec, (first, hidden))
    with pytest.raises(ModelError, match="middle: a binary_conv2d cannot stand at place 1"):
        make_model(spec, [middle, last])
    with pytest.raises(ModelError, match="again: a input_conv2d cannot stand at place 2"):
        make_model(spec, [first, replace(first, name="again"), last])
    with pytest.raises(ModelError, match="bits: a output_bits must be the last layer"):
        make_model(
            spec, [first, output_bits(rng, "bits", (8, 8, 32), 2), output_dense(rng, "last", (1, 1, 2), 2)]
        )
    with pytest.raises(ModelError, match="the name 'first' stands twice"):
        make_model(spec, [first, replace(middle, name="first"), last])
    with pytest.raises(ModelError, match="is not a word"):
        make_model(spec, [first, replace(last, name="a/b")])


ARRAY_REFUSALS: list[tuple[str, Callable[[NDArray[Any]], Any], str]] = [
    ("conv2.weights", lambda a: a[:-1], "conv2.weights is uint32 [69, 3, 3, 2], not uint32 [70, 3, 3, 2]"),
    ("conv2.weights", lambda a: a.astype(np.int32), "conv2.weights is int32"),
    ("conv2.weights", lambda a: a.astype(">u4"), "conv2.weights is >u4"),
    ("conv2.weights", np.asfortranarray, "conv2.weights is uint32"),
    ("conv2.weights", lambda a: a | np.uint32(1 << 31), "conv2.weights: a spare bit is set"),
    ("conv2.weights", lambda a: np.zeros(1 << 20, np.uint32), "conv2.weights is larger than uint32"),
    ("conv2.threshold", lambda a: a.astype(np.float32), "conv2.threshold is float32"),
    ("conv2.flip", lambda a: a.astype(np.uint8), "conv2.flip is uint8"),
    ("conv2.flip", lambda a: np.array([None] * len(a), dtype=object), "conv2.flip"),
    ("conv1.levels", lambda a: a - 1, "conv1.levels lie in -1..254"),
    ("conv1.levels", lambda a: a * 2, "conv1.levels lie in 0..510"),
    ("dense1.weights", lambda a: a | np.uint32(1 << 31), "dense1.weights: a spare bit is set"),
    ("dense2.scale", lambda a: a * np.nan, "dense2.scale holds a value that is not finite"),
    ("dense2.bias", lambda a: a + np.inf, "dense2.bias holds a value that is not finite"),
]


@pytest.mark.parametrize(("name", "change", "reason"), ARRAY_REFUSALS)
def test_a_wrong_array(folder: Path, name: str, change: Callable[[NDArray[Any]], Any], reason: str) -> None:
    values = arrays(folder)
    values[name] = change(values[name])
    write_arrays(folder, values)
    assert_refused(folder, reason)


def test_a_missing_array_and_one_too_many(folder: Path) -> None:
    values = arrays(folder)
    threshold = values.pop("conv2.threshold")
    write_arrays(folder, values)
    assert_refused(folder, BINARY, "the array conv2.threshold is missing")
    write_arrays(folder, {**values, "conv2.threshold": threshold, "conv9.threshold": threshold})
    assert_refused(folder, BINARY, "'conv9.threshold.npy' belongs to no layer")


def test_a_truncated_file(folder: Path) -> None:
    content = (folder / BINARY).read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        write_binary(folder, content[:length])
        assert_refused(folder, BINARY, "is not an npz file")


def test_an_array_that_cannot_be_unpacked(folder: Path) -> None:
    """The directory of the archive is whole, what it says of the contents is not true."""
    content = bytearray((folder / BINARY).read_bytes())
    with zipfile.ZipFile(folder / BINARY) as archive:
        entry = archive.getinfo("conv2.weights.npy")
    begin = entry.header_offset + 30 + len(entry.filename) + 40
    content[begin : begin + 100] = bytes(100)
    write_binary(folder, bytes(content))
    assert_refused(folder, f"{BINARY}: conv2.weights cannot be read: ")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(4, np.float32), r"float32 \[4\]"),
        (np.zeros(5, np.int32), r"int32 \[5\]"),
        ([0, 0, 0, 0], "list"),
        (None, "NoneType"),
    ],
)
def test_an_array_of_another_kind_is_named(rng: np.random.Generator, array: Any, found: str) -> None:
    with pytest.raises(ModelError, match=rf"^conv\.threshold is {found}, not int32 \[4\]"):
        replace(small_parts(rng)["conv"], threshold=array)


def test_an_array_that_ends_early(folder: Path) -> None:
    values = arrays(folder)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in values.items():
            entry = io.BytesIO()
            np.save(entry, value)
            cut = 5 if name == "conv2.weights" else 0
            archive.writestr(f"{name}.npy", entry.getvalue()[: len(entry.getvalue()) - cut])
    write_binary(folder, file.getvalue())
    assert_refused(folder, BINARY, "conv2.weights ends early")


def test_activations_have_their_limit(rng: np.random.Generator) -> None:
    """2**28 bits, 32 MiB: 4,096 x 4,096 pixels of 16 channels are as many, those of 17 are more."""
    spec = InputSpec(4096, 4096, channels=1)

    def net(levels: int) -> Model:
        coded = thermometer(rng, "coded", spec.shape, levels)
        small = binary_conv(
            rng, "small", (4096, 4096, levels), 1, kernel=(1, 1), stride=(64, 64), padding=(0, 0)
        )
        return make_model(spec, [coded, small, output_dense(rng, "last", (64, 64, 1), 2)])

    net(16)
    with pytest.raises(ModelError, match=rf"coded: its output of \[4096, 4096, 17\] is over {2**28} bits"):
        net(17)


@pytest.mark.parametrize(
    ("limit", "reason"), [("MAX_OPERATIONS", "operations for a frame"), ("MAX_TOTAL_BITS", "bits")]
)
def test_all_layers_together_have_their_limits(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str
) -> None:
    model = random_model(rng)
    low, high = 0, 1 << 40
    while high - low > 1:  # the least limit that lets the model pass
        middle = (low + high) // 2
        monkeypatch.setattr(f"bnn_perception.net.model.{limit}", middle)
        try:
            replace(model)
            high = middle
        except ModelError as error:
            assert reason in str(error)
            low = middle
    cost = sum(
        place.layer.operations(*place.before_all)
        if limit == "MAX_OPERATIONS"
        else math.prod(place.after) * (32 if place.layer.gives == "signal" else 1)
        for place in iter_layers(model)
    )
    assert high == cost
    assert model.macs < cost or limit == "MAX_TOTAL_BITS"


def test_windows_of_a_pool_cost_operations(rng: np.random.Generator) -> None:
    pool = MaxPool("pool", channels=7, kernel=(5, 3), stride=(1, 1), padding=(0, 0))
    assert pool.macs((10, 10, 7)) == 0
    assert pool.operations((10, 10, 7)) == 6 * 8 * 7 * 15


def test_the_float_twin_is_what_was_checked(folder: Path) -> None:
    model = load_model(folder)
    assert read_twin(model) == b"not looked at here"
    (folder / FLOAT_TWIN).write_bytes(b"changed since")
    with pytest.raises(ModelError, match=r"float\.onnx: its sha256 begins .*; the file was changed"):
        read_twin(model)
    (folder / FLOAT_TWIN).unlink()
    with pytest.raises(ModelError, match=r"float\.onnx: no such file"):
        read_twin(model)
    with pytest.raises(ModelError, match="has no float twin"):
        read_twin(replace(model, twin_digest=""))


def test_what_cannot_be_loaded_again_is_not_written(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = replace(load_model(folder), info={"notes": ["x" * 100] * 20_000})
    for place in (folder, tmp_path / "new"):
        with pytest.raises(ModelError, match=f"{place}/{DESCRIPTION}: .* bytes; at most") as caught:
            save_model(model, place)
        assert ".partial" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()
    with pytest.raises(ModelError, match="bytes; at most"):
        update_info(folder, notes=["x" * 100] * 20_000)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_archive_of_too_many_entries(folder: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(16385):
            archive.writestr(str(index), b"")
    write_binary(folder, file.getvalue())
    assert_refused(folder, "16385 entries; at most 16384 are read")


@pytest.mark.parametrize(("file", "limit"), [(BINARY, 2**28), (FLOAT_TWIN, 2**30)])
def test_a_file_that_is_too_large_is_not_read(folder: Path, file: str, limit: int) -> None:
    os.truncate(folder / file, limit + 1)  # a hole, which takes no space on the disk
    assert_refused(folder, f"{file}: {limit + 1} bytes; at most {limit} are read")


def test_a_file_of_just_the_largest_size_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another limit stands in for 1 GiB, which would take long to read."""
    size = (folder / FLOAT_TWIN).stat().st_size
    monkeypatch.setattr("bnn_perception.net.folder.MAX_ONNX_BYTES", size)
    load_model(folder)
    monkeypatch.setattr("bnn_perception.net.folder.MAX_ONNX_BYTES", size - 1)
    assert_refused(folder, f"{FLOAT_TWIN}: {size} bytes; at most {size - 1} are read")


@pytest.mark.parametrize("file", [DESCRIPTION, BINARY, FLOAT_TWIN])
def test_only_regular_files_are_read(folder: Path, file: str) -> None:
    """Whoever opens a FIFO waits for its other end."""
    for make in (os.mkfifo, os.mkdir):
        (folder / file).rename(folder / "before")
        make(folder / file)
        assert_refused(folder, f"{file}: is not a regular file")
        if (folder / file).is_dir():
            (folder / file).rmdir()
        else:
            (folder / file).unlink()
        (folder / "before").rename(folder / file)
    load_model(folder)


@pytest.mark.parametrize("file", [DESCRIPTION, BINARY, FLOAT_TWIN])
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, file: str) -> None:
    secret = folder.parent / "secret"
    secret.write_text("root:$6$abc: x")
    inside = folder / "inside"
    for target in ("/dev/zero", "/nowhere", str(secret), "../secret", "/proc/self/limits"):
        (folder / file).rename(folder / "before")
        (folder / file).symlink_to(target)
        assert_refused(folder, f"{file}: is a link out of its folder")
        (folder / file).unlink()
        (folder / "before").rename(folder / file)
    (folder / file).rename(inside)
    (folder / file).symlink_to("inside")
    load_model(folder)
    # The folder itself may be one.
    (folder.parent / "link").symlink_to(folder)
    load_model(folder.parent / "link")


@pytest.mark.parametrize(
    "text",
    [
        "hunter2: [",
        "hunter2",
        "&x *hunter2",
        "a: !hunter2 b",
        "%hunter2\n---\n",
        "hunter2: \x07",
        "- hunter2",
    ],
)
def test_a_refusal_shows_nothing_of_what_is_no_description(folder: Path, text: str) -> None:
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_states_no_size_is_read_to_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folder / DESCRIPTION).stat().st_size
    monkeypatch.setattr("bnn_perception.net.folder.MAX_DESCRIPTION_BYTES", size - 1)
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_mode=stat.S_IFREG, st_size=0))
    assert_refused(folder, f"{size} bytes or more; at most {size - 1} are read")


@pytest.mark.parametrize(
    "name", ["a" * 300, "/".join(["a" * 200] * 30), "a\0b", "a\ud800b", "~no such user/x"]
)
def test_a_folder_that_there_cannot_be_is_named(name: str) -> None:
    with pytest.raises(ModelError):
        load_model(find_model(name))


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udfff"])
def test_names_and_labels_are_texts_that_a_message_can_hold(rng: np.random.Generator, text: str) -> None:
    model = random_model(rng)
    with pytest.raises(ModelError, match="labels: .* is not a text of"):
        replace(model, labels=(text, *model.labels[1:]))
    with pytest.raises(ModelError, match="name is .*; it must be a text"):
        replace(model, name=text)


def test_arrays_that_are_too_large_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(value.nbytes for value in arrays(folder).values())
    monkeypatch.setattr("bnn_perception.net.folder.MAX_ARRAY_BYTES", total)
    load_model(folder)
    monkeypatch.setattr("bnn_perception.net.folder.MAX_ARRAY_BYTES", total - 1)
    assert_refused(folder, BINARY, "at most")


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-1, 70), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.sampled_from(["size", "stride", "x"]), st.integers(-1, 5), max_size=3),
    st.dates(),
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every field in a description."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, child in value.items():
            found += places(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            found += places(child, (*path, index))
    return found


WHOLE: Description = {}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that the fuzz tests change again and again."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    save_model(random_model(np.random.default_rng(0)), folder)
    shutil.copytree(folder, folder.parent / "whole")
    WHOLE.update(read(folder))
    return folder


def assert_loads_or_refuses(folder: Path) -> None:
    refusal = None
    try:
        load_model(folder)
    except ModelError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith(str(folder))
        assert "\n" not in refusal
        assert len(refusal) < len(str(folder)) + 1000


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_fields_of_any_value(fuzzed: Path, data: st.DataObject) -> None:
    description = copy.deepcopy(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(places(description)))
        place: Any = description
        for part in parents:
            place = place[part]
        action = data.draw(st.sampled_from(["set", "delete", "add"]))
        if action == "set":
            place[last] = data.draw(values)
        elif action == "delete":
            del place[last]
        elif isinstance(place, dict):
            place[data.draw(st.text(max_size=4))] = data.draw(values)
    write(fuzzed, description)
    shutil.copy(fuzzed.parent / "whole" / BINARY, fuzzed)
    assert_loads_or_refuses(fuzzed)


def mutated(data: st.DataObject, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        if data.draw(st.booleans()):
            changed[position] = data.draw(st.integers(0, 255))
        else:
            del changed[position : position + data.draw(st.integers(1, 30))]
    return bytes(changed)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_descriptions_of_any_bytes(fuzzed: Path, data: st.DataObject) -> None:
    (fuzzed / DESCRIPTION).write_bytes(mutated(data, (fuzzed.parent / "whole" / DESCRIPTION).read_bytes()))
    assert_loads_or_refuses(fuzzed)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_arrays_of_any_bytes(fuzzed: Path, data: st.DataObject) -> None:
    shutil.copy(fuzzed.parent / "whole" / DESCRIPTION, fuzzed)
    write_binary(fuzzed, mutated(data, (fuzzed.parent / "whole" / BINARY).read_bytes()))
    assert_loads_or_refuses(fuzzed)


@given(st.binary(max_size=300), st.sampled_from(["conv2.weights", "dense2.scale"]))
@settings(max_examples=100, deadline=None)
def test_array_headers_of_any_bytes(fuzzed: Path, header: bytes, name: str) -> None:
    shutil.copytree(fuzzed.parent / "whole", fuzzed, dirs_exist_ok=True)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(2000)
        )
    write_binary(fuzzed, file.getvalue())
    assert_loads_or_refuses(fuzzed)


# What layers say of themselves.


def test_shapes_macs_and_fan_in(rng: np.random.Generator) -> None:
    conv = input_conv(rng, "a", (17, 20, 3), 8, kernel=(5, 3), stride=(2, 1), padding=(2, 1), pool=Pool(3, 2))
    assert conv.conv_shape((17, 20, 3)) == (9, 20, 8)
    assert conv.output_shape((17, 20, 3)) == (4, 9, 8)
    assert conv.fan_in == 45
    assert conv.macs((17, 20, 3)) == 9 * 20 * 8 * 45
    dense = binary_dense(rng, "b", (4, 9, 8), 50)
    assert dense.output_shape((4, 9, 8)) == (1, 1, 50)
    assert dense.macs((4, 9, 8)) == 4 * 9 * 8 * 50
    levels = thermometer(rng, "c", (17, 20, 3), 32)
    assert levels.output_shape((17, 20, 3)) == (17, 20, 96)
    with pytest.raises(ModelError, match="a: in_channels is 3, but its input has 1"):
        conv.output_shape((17, 20, 1))
    with pytest.raises(ModelError, match="larger than its padded input"):
        binary_conv(rng, "d", (3, 3, 8), 8, kernel=(5, 5), padding=(0, 0)).output_shape((3, 3, 8))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_that_is_one_too_large_for_its_input(rng: np.random.Generator, axis: int) -> None:
    """By one pixel in one direction: there would be no row, or no column."""
    shape = (3, 8, 8) if axis == 0 else (8, 3, 8)
    kernel = (4, 3) if axis == 0 else (3, 4)
    with pytest.raises(ModelError, match=r"a: kernel \[., .\] is larger than its padded input"):
        binary_conv(rng, "a", shape, 8, kernel, padding=(0, 0)).output_shape(shape)
    assert min(binary_conv(rng, "a", shape, 8, (3, 3), padding=(0, 0)).output_shape(shape)) == 1
    with pytest.raises(ModelError, match="a: pool.size 4 is larger than its input"):
        binary_conv(rng, "a", shape, 8, pool=Pool(4, 1)).output_shape(shape)
    assert min(binary_conv(rng, "a", shape, 8, pool=Pool(3, 1)).output_shape(shape)) == 1


@given(st.integers(0, 1 << 32), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 5, 33]), st.data())
@settings(max_examples=60, deadline=None)
def test_border_correction(seed: int, height: int, width: int, channels: int, data: st.DataObject) -> None:
    """Padding by -1 plus the correction is padding by 0, or by 1."""
    rng = np.random.default_rng(seed)
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(data.draw(st.integers(0, kernel[side % 2] - 1)) for side in range(4))
    value = data.draw(st.sampled_from([0, 1]))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    shape = (height, width, channels)
    layer = binary_conv(rng, "a", shape, 3, kernel, stride, padding, padding_value=value)
    try:
        conv_shape = layer.conv_shape(shape)
    except ModelError:
        return
    values = rng.choice(np.array([-1, 1], dtype=np.int32), shape)
    weights = bits.signs(layer.weights, channels)
    row, column, table = layer.border_correction(shape)
    corrected = convolution(values, weights, stride, padding, -1) + table[row][:, column]
    assert corrected.shape == conv_shape
    np.testing.assert_array_equal(corrected, convolution(values, weights, stride, padding, value))


def test_levels_are_the_identity_unless_stated(rng: np.random.Generator) -> None:
    layer: Layer = input_conv(rng, "a", (8, 8, 3), 8)
    assert isinstance(layer, InputConv2d)
    np.testing.assert_array_equal(layer.levels, np.arange(256))
    assert isinstance(binary_conv(rng, "b", (8, 8, 8), 8), BinaryConv2d)
