"""The reference backend against loops that say what the words in its docstrings say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from models import (
    binary_conv,
    binary_dense,
    input_conv,
    input_residual_conv,
    make_model,
    output_bits,
    output_dense,
    random_frame,
    random_model,
    random_words,
    residual_conv,
    residual_model,
    thermometer,
)
from numpy.typing import NDArray

from bnn_perception.backends import reference
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.classifier import Classifier
from bnn_perception.frames.frame import Frame
from bnn_perception.net import bits
from bnn_perception.net.layer import Pool
from bnn_perception.net.layers import Conv2d, ResidualConv2d
from bnn_perception.net.model import InputSpec


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def looped(layer: Conv2d, values: NDArray[np.int64], padding_value: int) -> NDArray[np.bool_]:
    """A convolution with pool, threshold and flip, one product after the other."""
    return (looped_sums(layer, values, padding_value) >= layer.threshold) != layer.flip


def looped_sums(layer: Conv2d, values: NDArray[np.int64], padding_value: int) -> NDArray[np.int64]:
    """The integers after the pool."""
    shape = (values.shape[0], values.shape[1], layer.in_channels)
    weights = bits.signs(layer.weights, layer.in_channels)
    sums = np.zeros(layer.conv_shape(shape), dtype=np.int64)
    for y, x, out in np.ndindex(sums.shape):
        for ky, kx, channel in np.ndindex(*layer.kernel, layer.in_channels):
            row = y * layer.stride[0] + ky - layer.padding[0]
            column = x * layer.stride[1] + kx - layer.padding[1]
            inside = 0 <= row < shape[0] and 0 <= column < shape[1]
            value = values[row, column, channel] if inside else padding_value
            sums[y, x, out] += value * weights[out, ky, kx, channel]
    result = np.zeros(layer.output_shape(shape), dtype=np.int64)
    pool = layer.pool or Pool(1, 1)
    for y, x, out in np.ndindex(result.shape):
        top, left = y * pool.stride, x * pool.stride
        result[y, x, out] = sums[top : top + pool.size, left : left + pool.size, out].max()
    return result


POOLS = [None, Pool(2, 2), Pool(3, 2)]


@pytest.mark.parametrize(("pool", "padding_value"), list(itertools.product(POOLS, [-1, 0])))
def test_binary_conv2d(rng: np.random.Generator, pool: Pool | None, padding_value: int) -> None:
    shape = (7, 6, 35)
    layer = binary_conv(rng, "a", shape, 5, (3, 2), (2, 1), (2, 1), pool, padding_value)
    words = random_words(rng, shape)
    expected = looped(layer, bits.signs(words, 35).astype(np.int64), padding_value)
    np.testing.assert_array_equal(reference.binary_conv2d(layer, words), bits.pack(expected))


@pytest.mark.parametrize(("pool", "signed"), list(itertools.product(POOLS, [False, True])))
def test_input_conv2d(rng: np.random.Generator, pool: Pool | None, signed: bool) -> None:
    layer = input_conv(rng, "a", (7, 6, 3), 5, (3, 2), (1, 2), (1, 0), pool, signed)
    pixels = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    values = pixels.astype(np.int64) - (128 if signed else 0)
    np.testing.assert_array_equal(reference.input_conv2d(layer, pixels), bits.pack(looped(layer, values, 0)))


def test_thermometer(rng: np.random.Generator) -> None:
    layer = thermometer(rng, "a", (4, 5, 3), 11)
    pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    expected = np.zeros((4, 5, 33), dtype=bool)
    for y, x, channel, level in np.ndindex(4, 5, 3, 11):
        expected[y, x, channel * 11 + level] = pixels[y, x, channel] >= layer.thresholds[channel, level]
    np.testing.assert_array_equal(reference.thermometer(layer, pixels), bits.pack(expected))


def one_tap(weights: list[list[int]], **arrays: list[int] | str) -> ResidualConv2d:
    """A 1x1 convolution of the given signs, (out_channels, in_channels); its residual is the dot product by default."""
    signs = np.array(weights)
    out = len(signs)
    fields = {"multiplier": [1] * out, "offset": [0] * out, "threshold": [0] * out, **arrays}
    fields.setdefault("negative_multiplier", fields["multiplier"])
    names = ("multiplier", "negative_multiplier", "offset", "threshold")
    return ResidualConv2d(
        name="a",
        in_channels=signs.shape[1],
        out_channels=out,
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        pool=None,
        weights=bits.pack(signs > 0)[:, None, None],
        flip=np.zeros(out, dtype=bool),
        shortcut=str(arrays.get("shortcut", "none")),
        **{name: np.array(fields[name], dtype=np.int32) for name in names},
    )


def plane(rows: list[list[int]]) -> NDArray[np.int32]:
    """A residual of one channel."""
    return np.array(rows, dtype=np.int32)[:, :, None]


def test_multipliers_by_the_sign_of_the_dot_product() -> None:
    """Channels: plain, ReLU, PReLU, and a negative batch norm after PReLU. Dot products of the two pixels: 2 and -2."""
    layer = one_tap(
        [[1, 1]] * 4, multiplier=[3, 3, 3, -3], negative_multiplier=[3, 0, 1, -1], offset=[10, 10, -1, 0]
    )
    words, residual = reference.residual_conv2d(layer, bits.pack(np.array([[[1, 1], [0, 0]]])), None)
    assert residual.tolist() == [[[16, 16, 5, -6], [4, 10, -3, 2]]]
    assert words.tolist() == [[[0b0111], [0b1011]]]


def test_a_dot_product_of_zero_leaves_the_offset() -> None:
    layer = one_tap([[1, 1]], multiplier=[7], negative_multiplier=[-9], offset=[5], threshold=[5])
    words, residual = reference.residual_conv2d(layer, bits.pack(np.array([[[1, 0]]])), None)
    assert (residual.item(), words.item()) == (5, 1)


def test_thresholds_are_in_units_of_the_stream() -> None:
    """(y >= threshold) ^ flip of the sum, not of the dot product."""
    layer = one_tap(
        [[1]] * 3, multiplier=[4] * 3, offset=[1] * 3, threshold=[104, 105, 106], shortcut="identity"
    )
    words, residual = reference.residual_conv2d(layer, np.ones((1, 1, 1), np.uint32), plane([[100]]))
    assert residual.tolist() == [[[105, 105, 105]]]
    assert words.item() == 0b011


def test_the_identity_shortcut_repeats_channels() -> None:
    """Of a residual of 2 channels, 4 of the layer get 0, 1, 0, 1. The dot product is 2 everywhere."""
    layer = one_tap([[1, 1]] * 4, multiplier=[1, 2, 3, 4], shortcut="identity")
    before = np.array([[[100, -100]]], dtype=np.int32)
    _, residual = reference.residual_conv2d(layer, bits.pack(np.ones((1, 1, 2))), before)
    assert residual.tolist() == [[[102, -96, 106, -92]]]


def test_the_average_is_rounded_down() -> None:
    before = plane(
        [[1, 2, -1, -2, 9], [3, 1, -3, -1, 9], [0, 0, -1, 0, 9], [0, -1, 0, 0, 9], [9, 9, 9, 9, 9]]
    )
    # Sums 7, -7, -1, -1; the last row and column of five belong to no window.
    assert reference.average_pool(before)[..., 0].tolist() == [[1, -2], [-1, -1]]
    layer = one_tap([[1]], multiplier=[10], shortcut="average_pool", threshold=[9])
    half = ResidualConv2d(
        **{**vars(layer), "stride": (2, 2), "kernel": (2, 2), "weights": np.ones((1, 2, 2, 1), np.uint32)}
    )
    words, residual = reference.residual_conv2d(half, np.zeros((5, 5, 1), np.uint32), before)
    assert half.output_shape((5, 5, 1)) == (2, 2, 1)
    assert residual[..., 0].tolist() == [[-39, -42], [-41, -41]]
    assert not words.any()


@pytest.mark.parametrize(("pool", "padding_value"), list(itertools.product(POOLS, [-1, 0])))
def test_residual_conv2d(rng: np.random.Generator, pool: Pool | None, padding_value: int) -> None:
    """Pool and padding act on the dot products; the rest follows."""
    shape = (7, 6, 35)
    layer = residual_conv(
        rng, "a", shape, 5, (3, 2), (2, 1), (2, 1), pool, padding_value, shortcut="none", activation="prelu"
    )
    words = random_words(rng, shape)
    sums = looped_sums(layer, bits.signs(words, 35).astype(np.int64), padding_value)
    expected = np.where(sums < 0, layer.negative_multiplier, layer.multiplier) * sums + layer.offset
    result = reference.residual_conv2d(layer, words, None)
    assert result.residual.dtype == np.int32
    np.testing.assert_array_equal(result.residual, expected)
    np.testing.assert_array_equal(result.value, bits.pack((expected >= layer.threshold) != layer.flip))


@pytest.mark.parametrize("pool", POOLS)
def test_input_stream_conv2d(rng: np.random.Generator, pool: Pool | None) -> None:
    layer = input_residual_conv(rng, "a", (7, 6, 3), 5, kernel=(3, 2), pool=pool, activation="prelu")
    pixels = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    sums = looped_sums(layer, pixels.astype(np.int64), 0)
    expected = np.where(sums < 0, layer.negative_multiplier, layer.multiplier) * sums + layer.offset
    result = reference.input_residual_conv2d(layer, pixels)
    assert result.residual.dtype == np.int32
    np.testing.assert_array_equal(result.residual, expected)
    np.testing.assert_array_equal(result.value, bits.pack((expected >= layer.threshold) != layer.flip))


@pytest.mark.parametrize("side", [16, 17])
def test_streams_follow_the_words_of_their_layer(rng: np.random.Generator, side: int) -> None:
    model = residual_model(rng, side)
    backend = ReferenceBackend(model)
    frame = random_frame(rng, 30, 20)
    outputs = list(backend.activations(frame))
    names = ["stem", "identity", "down", "point", "zero", "alone", "pooled"]
    both = [name for layer in names for name in (layer, f"{layer}.residual")]
    assert [name for name, _ in outputs] == ["input", *both, "dense", "output"]
    np.testing.assert_array_equal(outputs[-1][1], backend.logits([frame])[0])
    values = dict(outputs)
    for layer, shape in zip(model.layers[: len(names)], model.shapes()[1:]):
        residual = values[f"{layer.name}.residual"]
        assert (residual.dtype, residual.shape) == (np.int32, shape)
        fires = (residual >= layer.threshold) ^ layer.flip
        np.testing.assert_array_equal(values[layer.name], bits.pack(fires), err_msg=layer.name)
        assert 0.2 < fires.mean() < 0.8, layer.name
    for name, before in (("identity", "stem"), ("zero", "point")):
        assert 0 < np.abs(values[f"{name}.residual"] - values[f"{before}.residual"]).mean() < 1e5


def test_dense_layers(rng: np.random.Generator) -> None:
    shape = (2, 3, 33)
    words = random_words(rng, shape)
    values = bits.signs(words, 33).reshape(-1)
    for make in (binary_dense, output_dense, output_bits):
        layer = make(rng, "a", shape, 7)
        weights = bits.signs(layer.weights.reshape(7, 2, 3, 2), 33).reshape(7, -1)
        dots = np.array([sum(int(v) * int(w) for v, w in zip(values, row)) for row in weights])
        if make is binary_dense:
            expected = bits.pack((dots >= layer.threshold) != layer.flip)
            np.testing.assert_array_equal(reference.binary_dense(layer, words), expected.reshape(1, 1, 1))
        elif make is output_dense:
            # Rounded to float32 after the product and again after the sum.
            expected = np.float32(np.float32(dots) * layer.scale) + layer.bias
            np.testing.assert_array_equal(reference.output_dense(layer, words), expected)
        else:
            fires = (dots >= layer.threshold) != layer.flip
            expected = np.where(fires, layer.scale + layer.bias, layer.bias)
            np.testing.assert_array_equal(reference.output_bits(layer, words), expected)


def test_logits_are_the_last_activation(rng: np.random.Generator) -> None:
    model = random_model(rng)
    backend = ReferenceBackend(model)
    frames = [random_frame(rng, 30, 20), random_frame(rng, 15, 25, "bgra8")]
    logits = backend.logits(frames)
    assert logits.dtype == np.float32
    for frame, row in zip(frames, logits):
        names, outputs = zip(*backend.activations(frame))
        assert names == ("input", *(layer.name for layer in model.layers))
        np.testing.assert_array_equal(outputs[-1], row)
        for output, shape in zip(outputs[1:-1], model.shapes()[1:-1]):
            assert output.dtype == np.uint32
            assert output.shape == (shape[0], shape[1], bits.words_for(shape[2]))
    assert list(backend.times) == ["preprocess", "inference"]


def test_random_models_have_bits_of_both_kinds(rng: np.random.Generator) -> None:
    """Or the other tests would compare constants."""
    model = random_model(rng)
    for name, words in list(ReferenceBackend(model).activations(random_frame(rng, 30, 20)))[1:-1]:
        channels = dict(zip((layer.name for layer in model.layers), (s[2] for s in model.shapes()[1:])))[name]
        share = bits.unpack(words, channels).mean()
        assert 0.2 < share < 0.8, name


def test_classifier_scores(rng: np.random.Generator) -> None:
    model = random_model(rng)
    classifier = Classifier(model, ReferenceBackend(model))
    frames = [random_frame(rng, 30, 20) for _ in range(3)]
    scores = classifier.scores(frames)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    for predictions, row in zip(classifier.classify(frames, top_k=3), scores):
        assert [p.class_id for p in predictions] == list(np.argsort(-row, kind="stable")[:3])
        assert all(p.label == model.labels[p.class_id] and p.score == row[p.class_id] for p in predictions)


def test_each_precision_has_its_temperature(rng: np.random.Generator) -> None:
    model = replace(random_model(rng), temperature=2.0, float_temperature=0.5)
    backend, frame = ReferenceBackend(model), random_frame(rng, 30, 20)
    logits = backend.logits([frame]).astype(np.float64)
    for backend.is_float, temperature in ((False, 2.0), (True, 0.5)):
        powers = np.exp(logits / temperature)
        scores = Classifier(model, backend).scores([frame])
        np.testing.assert_allclose(scores, powers / powers.sum(), rtol=1e-4)  # float32, logits up to 20


def test_a_thermometer_model(rng: np.random.Generator) -> None:
    layers = [thermometer(rng, "a", (5, 5, 1), 32), output_dense(rng, "b", (5, 5, 32), 3)]
    model = make_model(InputSpec(5, 5, channels=1), list(layers))
    assert ReferenceBackend(model).logits([Frame(np.zeros((5, 5, 1), np.uint8), "mono8")]).shape == (1, 3)
