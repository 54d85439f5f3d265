"""Damaged model folders and float twins: a model that answers comes out, or the error that is stated."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import yaml
from fuzzing import Generator, assert_one_line, damaged, number, one_of, run
from test_fuzz_importers import change_graph

from bnn_perception.backends import BackendError
from bnn_perception.backends.cpu.float import CpuFloatBackend
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.importers.errors import FloatTwinError
from bnn_perception.importers.onnx.float_twin import read_float_twin
from bnn_perception.importers.onnx.operators import OPERATORS
from bnn_perception.importers.onnx.twin_file import OTHERS
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import load_model, save_model
from bnn_perception.net.model import BINARY, DESCRIPTION, FLOAT_TWIN, InputSpec

#: Nets that cost more are loaded and not evaluated; the limit of a model is another matter.
CHEAP = 1 << 22

VALUES = [
    None,
    True,
    False,
    0.5,
    3.0,
    math.nan,
    math.inf,
    "",
    "a",
    "conv1",
    "\0",
    "x" * 300,
    [],
    {},
    [0, 0],
    [1, 1],
    [-1, 5],
]


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every field."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [
        *([path] if path else []),
        *(place for key, child in entries for place in places(child, (*path, key))),
    ]


def change_field(rng: Generator, description: dict[str, Any]) -> None:
    """Change, delete, double or move one field."""
    found = places(description)
    *parents, last = found[int(rng.integers(len(found)))]
    place: Any = description
    for part in parents:
        place = place[part]
    fault = rng.integers(4)
    if fault == 0:
        place[last] = number(rng)
    elif fault == 1:
        place[last] = one_of(rng, VALUES)
    elif fault == 2:
        del place[last]
    elif isinstance(place, list):
        place.insert(int(rng.integers(len(place) + 1)), place[int(rng.integers(len(place)))])
    else:
        place[last] = place[one_of(rng, list(place))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = np.random.default_rng(0)
    nets = [
        models.random_model(rng, side=6),
        models.residual_model(rng),
        models.scaled_stem_model(rng, side=8),
    ]
    made = [tmp_path_factory.mktemp("fuzz") / f"model{index}" for index in range(len(nets))]
    for net, folder in zip(nets, made):
        save_model(net, folder)
    return made


def test_model_folders(folders: list[Path], tmp_path: Path) -> None:
    whole = [((f / DESCRIPTION).read_text(encoding="utf-8"), (f / BINARY).read_bytes()) for f in folders]
    place = tmp_path / "model"
    shutil.copytree(folders[0], place)
    loaded = 0

    def case(rng: Generator) -> None:
        nonlocal loaded
        text, binary = whole[int(rng.integers(len(whole)))]
        kind = rng.random()
        if kind < 0.4:
            binary = damaged(rng, binary, [content for _, content in whole])
        if kind >= 0.3:
            # The digest is what an attacker says it is.
            description = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            for _ in range(int(rng.integers(0, 4))):
                change_field(rng, description)
            if isinstance(description.get("files"), dict):
                description["files"][BINARY] = hashlib.sha256(binary).hexdigest()
            text = yaml.dump(description, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
        if kind > 0.8:
            text = damaged(rng, text.encode()).decode("utf-8", "surrogateescape")
        (place / DESCRIPTION).write_bytes(text.encode("utf-8", "surrogateescape"))
        (place / BINARY).write_bytes(binary)
        try:
            model = load_model(place)
        except ModelError as error:
            assert_one_line(error)
            return
        loaded += 1
        if model.macs < CHEAP and math.prod(model.input.shape) < CHEAP:
            logits = ReferenceBackend(model).logits([Frame(np.zeros((9, 7, 3), np.uint8))])
            assert np.isfinite(logits).all()

    run("model folders", case)
    assert loaded > 0


def test_float_twins(tmp_path: Path) -> None:
    """Both readers, and ONNX Runtime, which loads and evaluates what the check lets through."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    rng = np.random.default_rng(0)
    net = models.random_model(rng, side=6, classes=3)
    content = models.random_float_twin(rng, net)
    model = save_model(net, tmp_path, content)
    whole = onnx.load_from_string(content)
    operators = sorted({*OTHERS, *(name for name, each in OPERATORS.items() if each.stage is not None)})
    answered = 0

    def changed(rng: Generator) -> bytes:
        if rng.random() < 0.5:
            return damaged(rng, content[: int(rng.choice([2000, len(content)]))])
        proto = onnx.ModelProto()
        proto.CopyFrom(whole)
        for _ in range(int(rng.integers(1, 3))):
            change_graph(rng, proto, operators)
        return bytes(proto.SerializeToString())

    def case(rng: Generator) -> None:
        nonlocal answered
        twin = changed(rng)
        try:
            read_float_twin(tmp_path / FLOAT_TWIN, InputSpec(6, 6), 3, twin)
        except FloatTwinError as error:
            assert_one_line(error)
        (tmp_path / FLOAT_TWIN).write_bytes(twin)
        try:
            # The digest is what an attacker says it is.
            CpuFloatBackend(replace(model, twin_digest=hashlib.sha256(twin).hexdigest()), 1).close()
            answered += 1
        except BackendError as error:
            assert_one_line(error)

    run("float twins", case)
    assert answered > 0
