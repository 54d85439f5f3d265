"""Which layers run as one step: each in exactly one, in an order that works, and no value stored that need not be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from models import (
    affine,
    clip,
    make_model,
    models,
    output_dense,
    prelu,
    real_conv,
    real_input_conv,
    residual_model,
    residual_models,
    scaled_conv,
    scaled_stem_model,
    sign,
)

from bnn_perception.backends.fusion import CHAINED, Fused, fuse
from bnn_perception.net.folder import load_model
from bnn_perception.net.layer import Layer
from bnn_perception.net.model import InputSpec, Model, iter_layers
from bnn_perception.net.signals import Add, AveragePool, ChannelPad, Concat, Sign
from bnn_perception.resources import find_model

SHAPE = (6, 6, 8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def check(model: Model) -> list[Fused]:
    """The steps of a model, which run every layer once and find what they read."""
    steps = fuse(model)
    places = {place.layer.name: place for place in iter_layers(model)}
    ran = [layer.name for step in steps for layer in step.layers]
    assert sorted(ran) == sorted(places)
    stored = set()
    for step in steps:
        reads = [source for source in step.head.sources if source is not None]
        if isinstance(step.head.layer, Add):
            reads = reads[:1]
        names = [source.name for source in reads] + ([step.addend] if step.addend is not None else [])
        assert set(names) <= stored, f"{step.name} reads what no step before it has stored"
        signals = [layer for layer in step.layers if layer.gives == "signal"]
        # Whatever lies within the step goes to the next layer of it, and nowhere else.
        for layer, following in zip(signals, signals[1:]):
            assert places[layer.name].readers == (following,)
        assert sum(isinstance(layer, Add) for layer in step.chain) == (step.addend is not None)
        assert all(isinstance(layer, CHAINED) for layer in step.chain)
        own = [layer for layer in step.layers if layer not in step.chain and layer is not step.sign]
        assert own == ([step.head.layer] if step.has_head else [])
        if signals:
            others = [reader for reader in places[signals[-1].name].readers if reader is not step.sign]
            is_read = bool(others) or signals[-1] is model.layers[-1]
            assert step.signal == (signals[-1].name if is_read else None)
        else:
            assert step.signal is None
        if step.signal is not None:
            stored.add(step.signal)
        if step.layers[-1].gives != "signal":
            stored.add(step.layers[-1].name)
    return steps


@given(residual_models())
def test_nets_with_signals(model: Model) -> None:
    check(model)


@given(models())
def test_plain_stacks_are_a_step_a_layer(model: Model) -> None:
    assert [step.name for step in check(model)] == [layer.name for layer in model.layers]


def test_nets_of_every_kind(rng: np.random.Generator) -> None:
    for side in (16, 17):
        check(residual_model(rng, side))
        check(scaled_stem_model(rng, side))


def names(steps: list[Fused]) -> list[str]:
    return [" ".join(layer.name for layer in step.layers) for step in steps]


def test_a_block_is_one_step(rng: np.random.Generator) -> None:
    """Convolution, batch norm, activation, shortcut and the next sign; the sum is stored, for the next shortcut."""
    steps = {step.name: step for step in check(load_model(find_model("quicknet_tiny")))}
    block = steps["conv3"]
    assert names([block]) == ["conv3 conv3_prelu conv3_norm conv3_add conv3_sign"]
    assert (block.addend, block.signal) == ("conv2_add", "conv3_add")
    last = steps["conv9"]
    assert (last.addend, last.signal) == ("conv8_add", None)
    # Eight blocks with a sign each, the stem, two shortcuts of an average and a repetition, and the output.
    assert len(steps) == 8 + 1 + 2 * 2 + 1


def image(rng: np.random.Generator) -> Layer:
    return real_input_conv(rng, "stem", (6, 6, 3), 8)


def mean() -> Layer:
    return AveragePool("mean", 8, (6, 6), (1, 1), (0, 0), True)


def model(*layers: Layer) -> Model:
    return make_model(InputSpec(6, 6), list(layers))


def test_a_signal_with_two_readers_ends_its_step(rng: np.random.Generator) -> None:
    steps = check(
        model(
            image(rng),
            prelu(rng, "relu", 8),
            affine(rng, "left", 8, ("relu",)),
            clip(rng, "right", 8, ("relu",)),
            Add("sum", 8, inputs=("left", "right")),
            mean(),
        )
    )
    # Of two branches the first takes the sum; it runs where the sum stands, behind the other.
    assert names(steps) == ["stem relu", "right", "left sum", "mean"]
    assert (steps[2].addend, steps[2].signal, steps[2].has_head) == ("right", "sum", False)


@pytest.mark.parametrize("inputs", [("relu", "short"), ("short", "relu")])
def test_either_input_of_a_sum_may_be_the_shortcut(rng: np.random.Generator, inputs: tuple[str, str]) -> None:
    layers = [image(rng), sign(rng, "sign", 8, ("stem",)), scaled_conv(rng, "conv", SHAPE, 8)]
    layers += [prelu(rng, "relu", 8), real_conv(rng, "short", SHAPE, 8, inputs=("stem",))]
    steps = check(model(*layers, Add("sum", 8, inputs=inputs), mean()))
    assert names(steps) == ["stem sign", "short", "conv relu sum", "mean"]
    assert steps[2].addend == "short"


def test_a_sum_of_a_signal_with_itself_reads_what_is_stored(rng: np.random.Generator) -> None:
    steps = check(model(image(rng), Add("twice", 8, inputs=("stem", "stem")), prelu(rng, "relu", 8), mean()))
    assert names(steps) == ["stem", "twice relu", "mean"]
    assert (steps[0].signal, steps[1].addend) == ("stem", "stem")


def test_a_step_adds_once(rng: np.random.Generator) -> None:
    layers = [image(rng), real_conv(rng, "conv", SHAPE, 8), Add("first", 8, inputs=("conv", "stem"))]
    steps = check(model(*layers, Add("second", 8, inputs=("first", "stem")), mean()))
    assert names(steps) == ["stem", "conv first", "second", "mean"]
    assert (steps[1].signal, steps[2].addend) == ("first", "stem")


def test_one_sign_goes_with_its_signal_and_another_by_itself(rng: np.random.Generator) -> None:
    signs: list[Layer] = [sign(rng, name, 8, ("stem",)) for name in ("first", "second")]
    convs = [scaled_conv(rng, f"{layer.name}_conv", SHAPE, 8, inputs=(layer.name,)) for layer in signs]
    sums = Add("sum", 8, inputs=("first_conv", "second_conv"))
    steps = check(model(image(rng), *signs, *convs, sums, mean()))
    assert names(steps) == ["stem first", "second", "second_conv", "first_conv sum", "mean"]
    assert isinstance(steps[1].sign, Sign)
    assert (steps[1].head.layer, steps[1].chain, steps[1].has_head) == (steps[1].sign, (), False)


def test_rearranged_channels_may_be_changed_in_their_step(rng: np.random.Generator) -> None:
    layers = [image(rng), ChannelPad("pad", 11, 1, 2), affine(rng, "norm", 11)]
    layers += [Concat("joined", 22, inputs=("norm", "norm")), prelu(rng, "relu", 22), sign(rng, "sign", 22)]
    steps = check(model(*layers, output_dense(rng, "output", (6, 6, 22), 3)))
    assert names(steps) == ["stem", "pad norm", "joined relu sign", "output"]
    assert [step.signal for step in steps] == ["stem", "norm", None, None]


def test_the_last_signal_is_kept_for_the_logits(rng: np.random.Generator) -> None:
    steps = check(model(image(rng), mean(), real_conv(rng, "output", (1, 1, 8), 3), affine(rng, "scores", 3)))
    assert names(steps) == ["stem", "mean", "output scores"]
    assert steps[-1].signal == "scores"
