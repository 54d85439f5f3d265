"""Every kind of layer has an entry in every table by kind, is drawn by the generators of models, and is inspected."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import models
import numpy as np
import pytest
from hypothesis import given, settings

from bnn_perception.backends import reference
from bnn_perception.backends.cpu import program
from bnn_perception.backends.cuda import network
from bnn_perception.cli.inspect_ import layer_rows
from bnn_perception.net.layer import Layer
from bnn_perception.net.model import Model
from bnn_perception.net.signals import LAYER_KINDS
from bnn_perception.training import kinds as training_kinds
from bnn_perception.training.kinds import LAYER_SPECS, Signal

#: How each backend evaluates each kind.
BACKENDS: dict[str, Mapping[type[Layer], object]] = {
    "reference": reference.EVALUATE,
    "cpu": program.LOWER,
    "cuda": network.LOWER,
}
PAIRS = [(kind, backend) for kind in LAYER_KINDS for backend in BACKENDS]


@pytest.mark.parametrize(("kind", "backend"), PAIRS, ids=[f"{kind} on {backend}" for kind, backend in PAIRS])
def test_every_backend_has_every_kind(kind: str, backend: str) -> None:
    assert LAYER_KINDS[kind] in BACKENDS[backend], f"{backend} has no entry for a {kind}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_has_a_kind_that_the_format_lacks(backend: str) -> None:
    unknown = [cls.__name__ for cls in BACKENDS[backend] if cls not in LAYER_KINDS.values()]
    assert not unknown, f"{backend} has entries that no model can hold: {', '.join(unknown)}"


#: Blocks of training that become several layers, and the name of no kind.
BLOCKS = {"residual_conv2d"}


def test_what_is_trained_becomes_layers_of_the_format() -> None:
    assert LAYER_SPECS.keys() - BLOCKS <= LAYER_KINDS.keys()


@pytest.mark.parametrize("kind", LAYER_SPECS)
def test_the_record_for_training_says_what_the_model_layer_takes_and_gives(kind: str) -> None:
    spec = LAYER_SPECS[kind]
    if kind not in BLOCKS:
        layer = LAYER_KINDS[kind]
        assert (spec.takes == "pixels") == (layer.takes == "pixels")
        assert (spec.gives == "logits") == (layer.gives == "logits")
        assert (spec.gives == "residual") == (layer.gives == "signal")
    assert not spec.__abstractmethods__, "it lacks methods of LayerSpec"
    silent = [f.name for f in dataclasses.fields(spec) if not f.metadata.keys() & {"bounds", "choices"}]
    assert not silent, f"{kind}: neither bounds nor choices are stated for {', '.join(silent)}"


def test_one_file_of_training_distinguishes_between_kinds() -> None:
    own = Path(training_kinds.__file__)
    records = {spec.__name__ for spec in LAYER_SPECS.values()}
    named = {
        f"{path.name} names {node.id}"
        for path in own.parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path != own and isinstance(node, ast.Name) and node.id in records
    }
    assert not named


def test_the_size_of_a_signal_follows_from_the_record() -> None:
    pixels = Signal(11, 8, 3)
    assert LAYER_SPECS["thermometer"](levels=4).output(pixels) == Signal(11, 8, 12)
    assert LAYER_SPECS["input_conv2d"](channels=5, kernel=3, pool=2).output(pixels) == Signal(5, 4, 5)
    residual = LAYER_SPECS["residual_conv2d"](channels=6, stride=2).output(pixels)
    assert residual == Signal(6, 4, 6, residual=True)
    assert LAYER_SPECS["binary_dense"](features=9).output(pixels) == Signal(1, 1, 9, flat=True)
    assert pixels.features == 11 * 8 * 3


def concrete(cls: type[Layer]) -> set[type[Layer]]:
    """The subclasses of ``cls`` that have a kind of their own."""
    found = {cls} if "kind" in vars(cls) else set()
    return found.union(*(concrete(child) for child in cls.__subclasses__()))


def test_every_class_with_a_kind_is_in_the_table() -> None:
    assert concrete(Layer) == set(LAYER_KINDS.values())


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_field_says_how_it_is_read(kind: str) -> None:
    silent = [f.name for f in dataclasses.fields(LAYER_KINDS[kind]) if f.name != "name" and not f.metadata]
    assert not silent, f"{kind}: no range, choice or shape is stated for {', '.join(silent)}"


@cache
def drawn() -> dict[str, Model]:
    """For each kind that test/models.py draws a model that has it, the same in each run."""
    found: dict[str, Model] = {}

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(models.models() | models.residual_models())
    def collect(model: Model) -> None:
        for layer in model.layers:
            found.setdefault(layer.kind, model)

    collect()
    return found


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_kind_is_drawn_and_inspected(kind: str) -> None:
    model = drawn()[kind]
    row = next(row for row in layer_rows(model) if row["kind"] == kind)
    layer = next(layer for layer in model.layers if layer.kind == kind)
    assert row["packed_bytes"] == sum(
        array.nbytes for name, array in layer.array_values().items() if name != "levels"
    )
    assert row["packed_bytes"] == row["bit_bytes"] + row["real_bytes"]
    assert (row["macs"] > 0) == (row["float_bytes"] > 0) == layer.has_weights
    takes, gives = row["precision"].split(" -> ")
    assert takes.split(" x ")[0] == {"pixels": "8", "bits": "1", "signal": "32"}[layer.takes]
    assert gives == {"bits": "1", "signal": "32", "logits": gives}[layer.gives]


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_kind_runs_and_hands_on_what_its_record_says(kind: str) -> None:
    """On the reference: the shape and type of the output."""
    model = drawn()[kind]
    rng = np.random.default_rng(5)
    activations = dict(reference.ReferenceBackend(model).activations(models.random_frame(rng, 20, 30)))
    for layer, shape in zip(model.layers, model.shapes()[1:]):
        output = activations[layer.name]
        if layer is model.layers[-1]:
            assert (output.dtype, output.shape) == (np.float32, (layer.outputs,))
        elif layer.gives == "signal":
            assert (output.dtype, output.shape) == (np.float32, shape)
        else:
            assert (output.dtype, output.shape[:2]) == (np.uint32, shape[:2])
