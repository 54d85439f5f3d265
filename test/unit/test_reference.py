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
    make_model,
    output_bits,
    output_dense,
    random_frame,
    random_model,
    random_words,
    real_conv,
    real_input_conv,
    residual_model,
    scaled_conv,
    scaled_input_conv,
    thermometer,
)
from numpy.typing import NDArray

from bnn_perception.backends import reference
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.classifier import Classifier
from bnn_perception.frames.frame import Frame
from bnn_perception.net import bits
from bnn_perception.net.layer import Pool
from bnn_perception.net.layers import Conv2d
from bnn_perception.net.model import InputSpec
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Clip,
    Concat,
    MaxPool,
    PRelu,
    RealConv2d,
    Sign,
)


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


@pytest.mark.parametrize("padding_value", [-1, 0, 1])
def test_pads_of_each_side(rng: np.random.Generator, padding_value: int) -> None:
    """Two rows below and a column on the right, as TensorFlow pads strided windows."""
    layer = binary_conv(rng, "a", (6, 5, 35), 5, (3, 2), (2, 1), (0, 0, 2, 1), None, padding_value)
    words = random_words(rng, (6, 5, 35))
    whole = np.pad(bits.signs(words, 35), ((0, 2), (0, 1), (0, 0)), constant_values=padding_value)
    expected = looped(replace(layer, padding=(0, 0)), whole.astype(np.int64), 0)
    np.testing.assert_array_equal(reference.binary_conv2d(layer, words), bits.pack(expected))


# Signals. One operation after the other, each rounded to float32: what float64 gives for one, rounded, is the same.

F32 = np.float32


def mul(a: float, b: float) -> float:
    return float(F32(float(a) * float(b)))  # the product of two float32 is exact in float64


def add(a: float, b: float) -> float:
    return float(
        F32(float(a) + float(b))
    )  # rounding to float64 first changes no sum of two: 53 >= 2 * 24 + 2


@pytest.mark.parametrize(("pool", "padding_value"), list(itertools.product(POOLS, [-1, 0, 1])))
def test_scaled_binary_conv2d(rng: np.random.Generator, pool: Pool | None, padding_value: int) -> None:
    shape = (7, 6, 35)
    layer = scaled_conv(rng, "a", shape, 5, (3, 2), (2, 1), (2, 1), pool, padding_value=padding_value)
    words = random_words(rng, shape)
    sums = looped_sums(layer, bits.signs(words, 35).astype(np.int64), padding_value)
    result = reference.scaled_binary_conv2d(layer, words)
    assert (result.dtype, result.shape) == (np.float32, sums.shape)
    for place, value in np.ndenumerate(result):
        assert value == add(mul(layer.scale[place[2]], sums[place]), layer.bias[place[2]])


@pytest.mark.parametrize("pool", POOLS)
def test_scaled_input_conv2d(rng: np.random.Generator, pool: Pool | None) -> None:
    layer = scaled_input_conv(rng, "a", (7, 6, 3), 5, kernel=(3, 2), pool=pool)
    pixels = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    sums = looped_sums(layer, pixels.astype(np.int64), 0)
    for place, value in np.ndenumerate(reference.scaled_input_conv2d(layer, pixels)):
        assert value == add(mul(layer.scale[place[2]], sums[place]), layer.bias[place[2]])


def test_a_scale_and_a_bias_are_rounded_one_after_the_other() -> None:
    """A fused multiply-add would give 2**-24 + 2**-47 less."""
    one_third = F32(1 / 3)
    layer = Affine("a", 1, np.array([one_third]), np.array([F32(-1)]))
    x = np.full((1, 1, 1), 3, np.float32)
    fused = float(one_third) * 3 - 1
    assert reference.affine(layer, x).item() == 0 != fused


@pytest.mark.parametrize("groups", [1, 3])
def test_real_conv2d_adds_tap_by_tap(rng: np.random.Generator, groups: int) -> None:
    layer = real_conv(rng, "a", (5, 6, 6), 9, (3, 2), (2, 1), (1, 0, 2, 1), groups)
    x = rng.normal(0, 1, (5, 6, 6)).astype(np.float32)
    result = reference.real_conv2d(layer, x)
    assert result.shape == layer.output_shape((5, 6, 6))
    differs = 0
    for y, column, out in np.ndindex(result.shape):
        total, exact = 0.0, float(layer.bias[out])
        for ky, kx, c in np.ndindex(3, 2, 6 // groups):
            row, at = 2 * y - 1 + ky, column + kx
            channel = out // (9 // groups) * (6 // groups) + c
            inside = 0 <= row < 5 and 0 <= at < 6
            term = float(x[row, at, channel]) if inside else 0.0
            total = add(total, mul(term, layer.weights[out, ky, kx, c]))
            exact += term * float(layer.weights[out, ky, kx, c])
        assert result[y, column, out] == add(total, layer.bias[out])
        differs += result[y, column, out] != F32(exact)
    assert differs > 0  # or another order of the sum would not be noticed


def test_the_order_of_a_sum_is_that_of_its_taps() -> None:
    weights = np.array([1e8, 1, -1e8, 1], np.float32).reshape(1, 1, 1, 4)
    layer = RealConv2d("a", 4, 1, (1, 1), (1, 1), (0, 0), 1, weights, np.zeros(1, np.float32))
    # ((1e8 + 1) - 1e8) + 1: the first 1 is lost.
    assert reference.real_conv2d(layer, np.ones((1, 1, 4), np.float32)).item() == 1


@pytest.mark.parametrize("groups", [1, 3])
def test_real_weights_of_pixels_are_those_of_normalized_ones(rng: np.random.Generator, groups: int) -> None:
    """Against a convolution in float64 of pixels less their mean, padded with 0."""
    layer = real_input_conv(rng, "a", (7, 6, 3), 6, (3, 4), (2, 1), (1, 0, 2, 3), groups)
    pixels = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    result = reference.real_input_conv2d(layer, pixels)
    normalized = pixels.astype(np.float64) - layer.outside
    padded = np.pad(normalized, ((1, 2), (0, 3), (0, 0)))
    outside = np.repeat(layer.outside.astype(np.float64).reshape(groups, -1), 6 // groups, axis=0)
    all_taps = layer.scale.astype(np.float64) * (layer.weights * outside[:, None, None]).sum(axis=(1, 2, 3))
    for y, x, out in np.ndindex(result.shape):
        group = slice(out // (6 // groups) * (3 // groups), None)
        window = padded[2 * y : 2 * y + 3, x : x + 4, group][..., : 3 // groups]
        exact = (
            float(layer.scale[out]) * (window * layer.weights[out]).sum() + all_taps[out] + layer.bias[out]
        )
        # Three roundings to float32, of numbers of at most a few units.
        assert result[y, x, out] == pytest.approx(exact, abs=2e-6)


def test_values_one_by_one() -> None:
    x = np.array([[[-2.0, -0.5, 0.0, 0.5, 2.0]]], np.float32)
    slope = np.array([0.25, 0, 7, 7, 7], np.float32)
    assert reference.prelu(PRelu("a", 5, slope), x).tolist() == [[[-0.5, 0, 0, 0.5, 2]]]
    low, high = np.full(5, -1, np.float32), np.full(5, 1, np.float32)
    assert reference.clip(Clip("a", 5, low, high), x).tolist() == [[[-1, -0.5, 0, 0.5, 1]]]
    threshold = np.array([-2, -0.4, -0.0, np.inf, -np.inf], np.float32)
    for flip in (False, True):
        words = reference.sign(Sign("a", 5, threshold, np.full(5, flip)), x)
        assert words.item() == (0b01010 if flip else 0b10101)  # the value itself reaches it, and 0 reaches -0


def test_channels() -> None:
    x, y = (np.array([[values]], np.float32) for values in ([1, 2], [3]))
    assert reference.concat(Concat("a", 5), x, y, x).tolist() == [[[1, 2, 3, 1, 2]]]
    assert reference.channel_pad(ChannelPad("a", 5, 1, 2), x).tolist() == [[[0, 1, 2, 0, 0]]]
    assert reference.add(Add("a", 2), x, x).tolist() == [[[2, 4]]]


def plane(*rows: list[float]) -> NDArray[np.float32]:
    """A signal of one channel."""
    return np.array(rows, np.float32)[:, :, None]


def test_pools_look_inside_alone() -> None:
    x = plane([-1, -2, -3], [-4, -5, -6])
    layer = MaxPool("a", 1, (2, 2), (1, 2), (1, 0, 0, 1))
    assert reference.signal_max_pool(layer, x)[..., 0].tolist() == [[-1, -3], [-1, -3]]
    for counts, expected in ((False, [[-1.5, -3], [-3, -4.5]]), (True, [[-0.75, -0.75], [-3, -2.25]])):
        average = AveragePool("a", 1, (2, 2), (1, 2), (1, 0, 0, 1), counts)
        assert reference.average_pool(average, x)[..., 0].tolist() == expected
    words = bits.pack(np.array([[[0], [1], [0]], [[0], [0], [0]]]))
    pooled = reference.binary_max_pool(BinaryMaxPool("a", 1, (2, 2), (1, 2), (1, 0, 0, 1)), words)
    assert pooled[..., 0].tolist() == [[1, 0], [1, 0]]


def test_a_mean_is_a_sum_row_by_row_and_one_division() -> None:
    x = plane([1e8, 1], [-1e8, 1])
    assert reference.average_pool(AveragePool("a", 1, (2, 2), (2, 2), (0, 0), True), x).item() == 0.25
    third = reference.average_pool(AveragePool("a", 1, (1, 3), (1, 3), (0, 0), True), plane([1, 0, 0])).item()
    assert third == F32(1 / 3)


@pytest.mark.parametrize("side", [16, 17])
def test_activations_are_those_of_each_layer(rng: np.random.Generator, side: int) -> None:
    model = residual_model(rng, side)
    backend, frame = ReferenceBackend(model), random_frame(rng, 30, 20)
    outputs = list(backend.activations(frame))
    assert [name for name, _ in outputs] == ["input", *(layer.name for layer in model.layers)]
    np.testing.assert_array_equal(outputs[-1][1], backend.logits([frame])[0])
    values = dict(outputs)
    for layer in model.layers:
        if layer.kind == "sign":
            share = bits.unpack(values[layer.name], layer.outputs).mean()
            assert 0.2 < share < 0.8, layer.name
        elif layer.gives == "signal":
            assert 0.01 < values[layer.name].std() < 100, layer.name


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
