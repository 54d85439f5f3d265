"""The CPU backends: the binary one equals the reference bit for bit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import share_of_stages
from models import (
    CHANNEL_COUNTS,
    affine,
    binary_conv,
    binary_dense,
    clip,
    input_conv,
    make_model,
    models,
    output_dense,
    prelu,
    random_frame,
    random_model,
    real_conv,
    real_input_conv,
    residual_model,
    residual_models,
    road_sign_model,
    scaled_conv,
    scaled_input_conv,
    scaled_stem_model,
    sign,
    thermometer,
)
from numpy.typing import NDArray

from bnn_perception import native
from bnn_perception.backends import Backend, BackendError, make_backend, reference
from bnn_perception.backends.cpu.binary import CpuBinaryBackend
from bnn_perception.backends.cpu.program import Program, aligned_zeros
from bnn_perception.backends.fusion import fuse
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare
from bnn_perception.net import bits
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import load_model
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.model import InputSpec, Model
from bnn_perception.net.signals import (
    MAX_PIXEL_WEIGHT,
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Concat,
    MaxPool,
    Pool2d,
    RealInputConv2d,
    ScaledBinaryConv2d,
    Sign,
)
from bnn_perception.resources import find_model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


@pytest.fixture(scope="module")
def shipped() -> Model:
    """The model that comes with the package, which has a float twin."""
    return load_model(find_model("road_signs"))


def stored(model: Model) -> list[str]:
    """The layers whose output a step stores; what lies between them is never in memory."""
    names = []
    for step in fuse(model):
        last = step.layers[-1]
        names += [last.name] if last.gives != "signal" else []
        names += [step.signal] if step.signal is not None else []
    return names


def assert_same(model: Model, backend: Backend, rng: np.random.Generator, count: int = 1) -> None:
    """Everything that ``backend`` stores equals the reference: signals and logits by value, bits word by word."""
    for _ in range(count):
        frame = random_frame(rng, 23, 31)
        (_, pixels), *layers = ReferenceBackend(model).activations(frame)
        (name, ours), *actual = backend.activations(frame)
        assert name == "input"
        np.testing.assert_array_equal(ours, pixels)
        expected = dict(layers)
        assert [name for name, _ in actual] == stored(model)
        for name, ours in actual:
            assert ours.dtype == expected[name].dtype, name
            np.testing.assert_array_equal(ours, expected[name], err_msg=name)


@given(models(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_every_layer_equals_the_reference(model: Model, threads: int) -> None:
    backend = CpuBinaryBackend(model, threads)
    try:
        assert_same(model, backend, np.random.default_rng(7), count=2)
    finally:
        backend.close()


def check(model: Model, threads: int = 1) -> None:
    backend = CpuBinaryBackend(model, threads)
    assert_same(model, backend, np.random.default_rng(7), count=2)
    backend.close()


@given(residual_models(), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_every_signal_equals_the_reference(model: Model, threads: int) -> None:
    check(model, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("side", [16, 17, 33])
@pytest.mark.parametrize("channels", [5, 24, 32, 33, 64, 96])
def test_residual_nets(rng: np.random.Generator, side: int, channels: int, threads: int) -> None:
    """Every kind of layer with a signal; channels that end within a vector, at its edge and in the next."""
    check(residual_model(rng, side, channels=channels), threads)
    check(scaled_stem_model(rng, side, channels=channels), threads)


class Net:
    """Layers that are appended one by one, each behind its inputs, for an image of ``shape``."""

    def __init__(self, rng: np.random.Generator, shape: Shape) -> None:
        self.rng = rng
        self.image = shape
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {}

    @property
    def shape(self) -> Shape:
        """Of the last layer's output."""
        return self.shapes[self.layers[-1].name] if self.layers else self.image

    def add(self, layer: Layer) -> Shape:
        """Append a layer; returns the shape of its output."""
        before = [self.shapes[name] for name in layer.inputs] or [self.shape]
        self.layers.append(layer)
        self.shapes[layer.name] = layer.output_shape(*before)
        return self.shapes[layer.name]

    def stem(self, channels: int) -> Shape:
        """Signals of ``channels`` of either sign, as large as the image."""
        return self.add(real_input_conv(self.rng, "stem", self.image, channels, (1, 1), padding=(0, 0)))

    def model(self) -> Model:
        """With the means of the last signal as logits, or a layer of binary weights behind the last bits."""
        size, last = self.shape[:2], list[Layer]()
        if self.layers[-1].gives == "bits":
            last.append(output_dense(self.rng, "output", self.shape, 3))
        elif size != (1, 1):
            last.append(AveragePool("output", self.shape[2], size, size, (0, 0), True))
        return make_model(InputSpec(*self.image), [*self.layers, *last])


@pytest.mark.parametrize("pool", [Pool(2, 2), Pool(3, 2), Pool(2, 1), Pool(1, 2), Pool(4, 3)])
def test_pools_before_scales(rng: np.random.Generator, pool: Pool) -> None:
    """The maximum of the dot products: negative scales would make it the minimum. Items of several rows, too."""
    net = Net(rng, (64, 65, 3))
    net.add(scaled_input_conv(rng, "stem", net.shape, 33, pool=pool, signed=True))
    net.add(sign(rng, "sign", 33))
    net.add(scaled_conv(rng, "block", net.shape, 66, (4, 4), pool=Pool(2, 1), padding=(2, 2)))
    net.add(prelu(rng, "relu", 66))
    net.add(sign(rng, "block_sign", 66))
    net.add(scaled_conv(rng, "pooled", net.shape, 40, pool=pool, padding_value=0))
    for threads in (1, 2):
        check(net.model(), threads)


def test_dot_products_beyond_16_bits(rng: np.random.Generator) -> None:
    """More taps in the stem, and more units in the block, than 16 bits hold."""
    net = Net(rng, (16, 16, 3))
    net.add(scaled_input_conv(rng, "stem", net.shape, 65, kernel=(7, 7), padding=(3, 3)))
    net.add(sign(rng, "sign", 65))
    net.add(scaled_conv(rng, "block", net.shape, 65, (31, 31), padding=(15, 15), padding_value=1))
    net.add(sign(rng, "block_sign", 65))
    check(net.model(), threads=2)


@pytest.mark.parametrize("kernel", [(7, 5), (40, 40), (64, 63)])
def test_pixel_sums_beyond_32_bits(rng: np.random.Generator, kernel: tuple[int, int]) -> None:
    """The largest weights on white pixels: sums that neither int32 nor float32 holds, of more taps than one int32."""
    shape = (*kernel, 3)
    stem = real_input_conv(rng, "stem", shape, 40, kernel, padding=(0, 0))
    limit = MAX_PIXEL_WEIGHT
    weights = stem.weights.copy()
    weights[:16] = limit - rng.integers(0, 2, weights[:16].shape)
    weights[16:32] = -limit
    stem = replace(stem, weights=weights)
    model = make_model(InputSpec(*kernel), [stem])
    backend, definition = CpuBinaryBackend(model, 1), ReferenceBackend(model)
    for pixels in (np.full(shape, 255, np.uint8), rng.integers(0, 256, shape, dtype=np.uint8)):
        np.testing.assert_array_equal(backend.logits([Frame(pixels)]), definition.logits([Frame(pixels)]))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (7, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
def test_pixels_with_real_weights(
    rng: np.random.Generator, kernel: tuple[int, int], stride: tuple[int, int], groups: int
) -> None:
    """Paddings on one side and on all; maps whose width is no multiple of a tile; chains behind the sums."""
    for width, filters in ((9, 3), (10, 33), (13, 66)):
        for padding in ((0, 0), (kernel[0] // 2, kernel[1] // 2), (0, kernel[1] - 1, kernel[0] - 1, 0)):
            net = Net(rng, (11, width, 3))
            net.add(real_input_conv(rng, "stem", net.image, filters, kernel, stride, padding, groups))
            net.add(prelu(rng, "relu", filters))
            net.add(affine(rng, "norm", filters))
            net.add(sign(rng, "sign", filters, ("norm",)))
            net.add(scaled_conv(rng, "conv", net.shape, 8, (1, 1), padding=(0, 0), inputs=("sign",)))
            net.add(Concat("both", filters + 8, inputs=("norm", "conv")))
            check(net.model(), threads=2 if width == 10 else 1)


@pytest.mark.parametrize("channels", CHANNEL_COUNTS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 1), (1, 1), (0, 0)),
        ((1, 1), (2, 3), (0, 0)),
        ((3, 3), (1, 1), (1, 1)),
        ((3, 2), (2, 1), (2, 0, 0, 1)),
        ((7, 9), (1, 1), (0, 0)),
    ],
)
def test_real_convolutions(
    rng: np.random.Generator,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, ...],
) -> None:
    """One group and one a channel, with more filters than channels and as many; a matrix; chains behind the sums."""
    for groups, filters in ((1, 1), (1, 70), (channels, channels), (channels, 3 * channels)):
        net = Net(rng, (7, 9, 3))
        net.stem(channels)
        net.add(real_conv(rng, "conv", net.shape, filters, kernel, stride, padding, groups))
        net.add(clip(rng, "clip", filters))
        net.add(sign(rng, "sign", filters))
        check(net.model(), threads=1 + (filters == 70))
        net = Net(rng, (7, 9, 3))
        net.stem(channels)
        net.add(real_conv(rng, "conv", net.shape, filters, kernel, stride, padding, groups))
        check(net.model())


@pytest.mark.parametrize(
    ("channels", "groups", "filters"), [(4, 2, 6), (64, 2, 64), (96, 3, 192), (66, 33, 99), (128, 4, 32)]
)
def test_groups_of_several_channels(
    rng: np.random.Generator, channels: int, groups: int, filters: int
) -> None:
    for kernel in ((1, 1), (3, 3)):
        net = Net(rng, (6, 5, 3))
        net.stem(channels)
        pad = kernel[0] // 2
        net.add(real_conv(rng, "conv", net.shape, filters, kernel, (1, 1), (pad, pad), groups))
        net.add(prelu(rng, "relu", filters))
        check(net.model(), threads=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (12, 13), (40, 33)])
@pytest.mark.parametrize("channels", [1, 31, 32, 65])
def test_pools_of_signals(rng: np.random.Generator, size: tuple[int, int], channels: int) -> None:
    """Windows as large as the map and beyond it, padded on one side and on all, and every second pixel."""
    cases: list[tuple[tuple[int, int], tuple[int, int], tuple[int, ...]]] = [
        ((1, 1), (1, 1), (0, 0)),
        ((1, 1), (2, 2), (0, 0)),
        (size, size, (0, 0)),
        ((size[0] + 1, size[1] + 2), (2, 3), (size[0], size[1] + 1)),
        ((3, 3), (2, 2), (1, 1)),
        ((2, 3), (1, 2), (1, 0, 0, 2)),
    ]
    for kernel, stride, padding in cases:
        pools: list[Pool2d] = [MaxPool("pool", channels, kernel, stride, padding)]
        pools += [AveragePool("pool", channels, kernel, stride, padding, whole) for whole in (False, True)]
        for pool in pools:
            net = Net(rng, (*size, 3))
            net.stem(channels)
            try:
                net.add(pool)
            except ModelError:  # no window fits
                net.layers.pop()
                continue
            net.add(affine(rng, "norm", channels))
            net.add(sign(rng, "sign", channels))
            check(net.model(), threads=2)


@pytest.mark.parametrize("channels", [1, 32, 65])
@pytest.mark.parametrize("side", [1, 2, 9])
def test_pools_of_bits(rng: np.random.Generator, side: int, channels: int) -> None:
    for kernel, stride, padding in (
        ((1, 1), (2, 2), (0, 0)),
        ((3, 3), (2, 2), (1, 1)),
        ((2, 2), (1, 1), (1, 0, 0, 1)),
        ((side, side), (1, 1), (side - 1, side - 1)),
    ):
        net = Net(rng, (side, side, 3))
        net.stem(channels)
        net.add(sign(rng, "sign", channels))
        net.add(BinaryMaxPool("pool", channels, kernel, stride, padding))
        check(net.model(), threads=2)


@pytest.mark.parametrize("parts", [(1, 1), (31, 1), (32, 32), (33, 40), (5, 64, 27), (64, 65)])
def test_channels_side_by_side(rng: np.random.Generator, parts: tuple[int, ...]) -> None:
    """What is joined goes on as a signal, as signs, as both, and changed in the same step."""
    total = sum(parts)
    for ends in (["signal"], ["signs"], ["signal", "signs"], ["changed"], ["changed", "signs"]):
        for kind in ("concat", "pad"):
            net = Net(rng, (5, 7, 3))
            net.stem(parts[0])
            for index, count in enumerate(parts[1:]):
                net.add(real_conv(rng, f"part{index}", (5, 7, parts[0]), count, inputs=("stem",)))
            names = tuple(net.shapes)
            net.add(Concat("joined", total, inputs=names))
            if kind == "pad":
                net.add(ChannelPad("padded", total + 7, 3, 4, inputs=("joined",)))
            channels = net.shape[2]
            if "changed" in ends:
                net.add(affine(rng, "changed", channels))
            last = net.layers[-1].name
            if "signs" in ends:
                net.add(sign(rng, "sign", channels, (last,)))
                if len(ends) > 1:
                    net.add(scaled_conv(rng, "conv", net.shape, channels, inputs=("sign",)))
                    net.add(Add("sum", channels, inputs=("conv", last)))
            check(net.model(), threads=1 + (kind == "pad"))


def test_one_tensor_of_signs_for_several_borders(rng: np.random.Generator) -> None:
    """Readers that look different distances beyond the map, each on its own sides, with each value outside."""
    net = Net(rng, (9, 10, 3))
    net.stem(40)
    net.add(sign(rng, "sign", 40))
    geometries = [((1, 1), (0, 0)), ((3, 3), (1, 1)), ((5, 3), (4, 0, 0, 2)), ((4, 5), (0, 4, 3, 0))]
    means: list[str] = []
    for value in (-1, 0, 1):
        for kernel, padding in geometries:
            name = f"conv{len(means)}"
            options = {"padding": padding, "padding_value": value, "inputs": ("sign",)}
            net.add(scaled_conv(rng, name, (9, 10, 40), 5, kernel, **options))
            means.append(f"{name}_mean")
            net.add(AveragePool(means[-1], 5, net.shape[:2], (1, 1), (0, 0), True))
    net.add(Concat("ends", 5 * len(means), inputs=tuple(means)))
    check(net.model(), threads=2)


def test_one_signal_for_several_readers(rng: np.random.Generator) -> None:
    """Convolutions with borders of their own, pools that must not see those borders, signs and shortcuts."""
    net = Net(rng, (8, 9, 3))
    net.stem(36)
    # Every value is far below 0, so that a border of zeros would be the largest of its window.
    net.add(Affine("low", 36, np.full(36, 0.01, np.float32), np.full(36, -50, np.float32)))
    ends = []
    for index, (kernel, padding) in enumerate([((3, 3), (1, 1)), ((5, 4), (4, 0, 0, 3)), ((1, 1), (0, 0))]):
        net.add(
            real_conv(rng, f"conv{index}", (8, 9, 36), 4, kernel, padding=padding, inputs=("low",)),
        )
        ends.append(f"conv{index}")
        net.add(MaxPool(f"max{index}", 36, kernel, (1, 1), padding, inputs=("low",)))
        ends.append(f"max{index}")
        net.add(AveragePool(f"mean{index}", 36, kernel, (1, 1), padding, False, inputs=("low",)))
        ends.append(f"mean{index}")
    for name in list(ends):
        shape = net.shapes[name]
        net.add(AveragePool(f"{name}_all", shape[2], shape[:2], (1, 1), (0, 0), True, inputs=(name,)))
    names = tuple(f"{name}_all" for name in ends)
    net.add(Concat("ends", sum(net.shapes[name][2] for name in names), inputs=names))
    check(net.model())


def test_a_thermometer_before_a_signal(rng: np.random.Generator) -> None:
    net = Net(rng, (12, 12, 3))
    net.add(thermometer(rng, "levels", (12, 12, 3), 8))
    net.add(scaled_conv(rng, "first", (12, 12, 24), 32))
    net.add(sign(rng, "sign", 32))
    net.add(binary_conv(rng, "plain", (12, 12, 32), 40))
    check(net.model(), threads=2)


def signs_of(values: NDArray[np.float32], threshold: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Signs of given values by given thresholds, a channel each, in the step of their convolution and of their own."""
    count = len(values)
    zeros, ones = np.zeros((count, 1, 1, 1), np.int32), np.ones(count, np.float32)
    stem = RealInputConv2d(
        "stem", 1, count, (1, 1), (1, 1), (0, 0), 1, zeros, ones, values, np.zeros(1, "f4")
    )
    flip = np.arange(count) % 2 == 1
    fused, own = (Sign(name, count, threshold, flip, inputs=("stem",)) for name in ("fused", "own"))
    words = np.zeros((1, 1, 1, bits.words_for(count)), np.uint32)
    convs = [
        ScaledBinaryConv2d(
            f"{name}_conv",
            count,
            1,
            (1, 1),
            (1, 1),
            (0, 0),
            None,
            words,
            ones[:1],
            ones[:1],
            inputs=(name,),
        )
        for name in ("fused", "own")
    ]
    sums = Add("sum", 1, inputs=("fused_conv", "own_conv"))
    model = make_model(InputSpec(1, 1, 1), [stem, fused, own, *convs, sums])
    backend = CpuBinaryBackend(model, 1)
    frame = Frame(np.full((1, 1, 1), 77, np.uint8), "mono8")
    outputs = dict(backend.activations(frame))
    np.testing.assert_array_equal(backend.logits([frame]), ReferenceBackend(model).logits([frame]))
    np.testing.assert_array_equal(outputs["fused"], outputs["own"])
    np.testing.assert_array_equal(outputs["stem"][0, 0], values)
    return bits.unpack(outputs["fused"][0, 0], count) ^ flip


def test_values_right_at_their_thresholds() -> None:
    """Equal is reached; the next float above is not. Zeros are one value; every value reaches -inf and none +inf."""
    tiny, smallest, large = np.float32(1e-40), np.float32(1.4e-45), np.float32(3e36)
    values = np.array(
        [0.0, -0.0, 1.0, -1.0, 0.1, -0.1, tiny, -tiny, smallest, -smallest, large, -large], np.float32
    )
    infinity = np.full(len(values), np.inf, np.float32)
    assert signs_of(values, values).all()
    assert signs_of(values, -infinity).all()
    assert not signs_of(values, infinity).any()
    assert not signs_of(values, np.nextafter(values, infinity)).any()
    assert signs_of(values, np.nextafter(values, -infinity)).all()
    zeros = np.zeros(len(values), np.float32)
    np.testing.assert_array_equal(signs_of(values, zeros), values >= 0)
    np.testing.assert_array_equal(signs_of(values, -zeros), values >= 0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_road_sign_net(rng: np.random.Generator, threads: int) -> None:
    check(road_sign_model(rng), threads)


def test_the_net_of_the_paper(rng: np.random.Generator) -> None:
    """arXiv 1808.00209: one threshold a colour, 5x5 convolutions with 32 filters, a dense layer of 18,432 inputs."""
    layers: list[Layer] = [
        thermometer(rng, "binarize", (96, 96, 3), 1),
        binary_conv(rng, "conv1", (96, 96, 3), 32, (5, 5), padding=(2, 2), pool=Pool(2, 2)),
        binary_conv(rng, "conv2", (48, 48, 32), 32, (5, 5), padding=(2, 2), pool=Pool(2, 2)),
        binary_dense(rng, "dense1", (24, 24, 32), 100),
        binary_dense(rng, "dense2", (1, 1, 100), 100),
        output_dense(rng, "dense3", (1, 1, 100), 4),
    ]
    check(make_model(InputSpec(96, 96), layers), threads=2)


@pytest.mark.parametrize("value", [0, 255])
def test_values_beyond_16_bits(rng: np.random.Generator, value: int) -> None:
    """More taps (7 x 7 x 3) and more units (64 x 64 x 16 bytes) than 16 bits hold, thresholds right at the sums."""
    shape = (64, 64, 128)
    first = input_conv(rng, "first", (64, 64, 3), 128, (7, 7), padding=(3, 3))
    first = replace(
        first,
        weights=first.weights | bits.spare_mask(3),  # all +1: the largest sums on white pixels
        threshold=np.arange(-64, 64, dtype=np.int32) + 147 * value,
    )
    ones = bits.unpack(reference.input_conv2d(first, np.full((64, 64, 3), value, np.uint8)), 128).sum()
    dense = binary_dense(rng, "dense", shape, 40)
    dense = replace(
        dense,
        weights=np.full_like(dense.weights, 0xFFFFFFFF),
        threshold=np.arange(-20, 20, dtype=np.int32) + np.int32(2 * int(ones) - 64 * 64 * 128),
    )
    model = make_model(InputSpec(64, 64), [first, dense, output_dense(rng, "output", (1, 1, 40), 2)])
    frame = Frame(np.full((64, 64, 3), value, np.uint8))
    expected = dict(ReferenceBackend(model).activations(frame))
    fires = bits.unpack(expected["dense"], 40) ^ dense.flip
    np.testing.assert_array_equal(fires[0, 0], np.arange(-20, 20) <= 0)
    backend = CpuBinaryBackend(model, 1)
    for name, output in backend.activations(frame):
        np.testing.assert_array_equal(output, expected[name], err_msg=name)


def test_results_do_not_depend_on_threads(rng: np.random.Generator) -> None:
    model = road_sign_model(rng)
    frames = [random_frame(rng, 60, 80) for _ in range(5)]
    expected = ReferenceBackend(model).logits(frames)
    for threads in (1, 2, 3, 8):
        backend = CpuBinaryBackend(model, threads)
        for _ in range(20):
            np.testing.assert_array_equal(backend.logits(frames), expected)
        backend.close()


def test_two_backends_at_the_same_time(rng: np.random.Generator) -> None:
    """As in the node while it swaps models; each is used by one thread, and has threads of its own."""
    nets = [road_sign_model(rng), random_model(rng), random_model(rng, side=20, classes=9)]
    frames = [random_frame(rng, 40, 50) for _ in range(3)]
    expected = [ReferenceBackend(model).logits(frames) for model in nets]
    backends = [CpuBinaryBackend(model, 2) for model in nets]

    def work(index: int) -> None:
        for _ in range(100):
            np.testing.assert_array_equal(backends[index].logits(frames), expected[index])

    with ThreadPoolExecutor(len(nets)) as pool:
        for future in [pool.submit(work, index) for index in range(len(nets))]:
            future.result(timeout=120)
    for backend in backends:
        backend.close()


def helpers() -> int:
    return sum(thread.name.startswith("cpu_binary") for thread in threading.enumerate())


def test_threads_end_with_the_backend(rng: np.random.Generator) -> None:
    model = random_model(rng)
    before = helpers()
    backend = CpuBinaryBackend(model, 4)
    assert helpers() == before + 3
    backend.close()
    backend.close()
    assert helpers() == before
    with pytest.raises(BackendError, match="closed"):
        backend.logits([random_frame(rng, 12, 12)])
    forgotten = CpuBinaryBackend(model, 3)
    assert helpers() == before + 2
    del forgotten
    gc.collect()
    assert helpers() == before


def test_times_are_sums_over_the_frames_of_the_last_call(rng: np.random.Generator) -> None:
    backend = CpuBinaryBackend(road_sign_model(rng), 1)
    frame = random_frame(rng, 240, 320)
    assert share_of_stages(backend, [frame] * 10) > 0.6
    assert share_of_stages(backend, [frame]) > 0.6
    backend.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_steps_stay_in_their_scratch_memory(rng: np.random.Generator, threads: int) -> None:
    """A step that needs more than the program says would write over what lies behind, here over a guard of 1 MiB."""
    pooled = scaled_input_conv(rng, "stem", (40, 300, 3), 33, pool=Pool(3, 2))
    shape = pooled.output_shape((40, 300, 3))
    wide = make_model(
        InputSpec(40, 300), [pooled, sign(rng, "sign", 33), output_dense(rng, "last", shape, 2)]
    )
    plain = input_conv(rng, "first", (300, 40, 3), 33, pool=Pool(3, 1))
    high = make_model(
        InputSpec(300, 40), [plain, output_dense(rng, "last", plain.output_shape((300, 40, 3)), 2)]
    )
    for model in (wide, high, random_model(rng), residual_model(rng), scaled_stem_model(rng)):
        program = Program(model, threads, native)
        program.pixels[...] = rng.integers(0, 256, program.pixels.shape)
        state = aligned_zeros((native.state_bytes(len(program.steps)),), np.uint8)
        native.open_state(state.ctypes.data)
        memory = aligned_zeros((program.scratch_bytes + (1 << 20),), np.uint8)
        guard = memory[program.scratch_bytes :]
        guard[...] = 0xA5
        native.evaluate(program.steps, state.ctypes.data, memory.ctypes.data, False)
        assert (guard == 0xA5).all(), model.layers[0].name
        frame = Frame(program.pixels.copy())
        np.testing.assert_array_equal(
            program.outputs[model.layers[-1].name], ReferenceBackend(model).logits([frame])[0]
        )


def test_a_closed_backend_says_so(rng: np.random.Generator) -> None:
    backend = CpuBinaryBackend(random_model(rng), 2)
    assert (backend.name, backend.is_float) == ("cpu_binary", False)
    assert backend.device_name.endswith(", 2 threads")
    backend.close()
    backend.close()
    for call in (backend.logits, lambda frames: list(backend.activations(frames[0]))):
        with pytest.raises(BackendError, match="the backend is closed"):
            call([random_frame(rng, 12, 12)])


def run_python(code: str, **environment: str) -> tuple[int, str, str]:
    """Exit code and both outputs of an interpreter of its own, which finds the package and the tests' modules."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "HOME": str(Path.home()), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_an_interpreter_ends_without_close() -> None:
    code = (
        "from bnn_perception.backends.cpu.binary import CpuBinaryBackend;"
        "from bnn_perception.net.folder import load_model; from bnn_perception.resources import find_model;"
        "backend = CpuBinaryBackend(load_model(find_model('road_signs')), 3); print('made')"
    )
    assert run_python(code) == (0, "made\n", "")


def test_inference_leaves_the_interpreter_to_others(rng: np.random.Generator) -> None:
    """Another Python thread goes on while a long frame is evaluated; it would stand still if the lock were held."""
    layers: list[Layer] = [input_conv(rng, "a", (512, 512, 3), 64)]
    layers.append(binary_conv(rng, "b", (512, 512, 64), 64, (5, 5), padding=(2, 2)))
    layers.append(output_dense(rng, "c", (512, 512, 64), 2))
    backend = CpuBinaryBackend(make_model(InputSpec(512, 512), layers), 1)
    done, ticks = threading.Event(), []

    def tick() -> None:
        while not done.is_set():
            time.sleep(0.0005)
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    backend.workers.evaluate()
    end = time.perf_counter()
    done.set()
    thread.join()
    # The one call takes a hundred milliseconds, enough for over a hundred ticks on an idle machine.
    assert sum(begin < moment < end for moment in ticks) >= 5


def test_memory_is_steady(rng: np.random.Generator) -> None:
    backend = CpuBinaryBackend(road_sign_model(rng), 2)
    frames = [random_frame(rng, 480, 640)]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(200):
        backend.logits(frames)
    before = resident()
    for _ in range(2000):
        backend.logits(frames)
    # Pages of 4 KiB; a leak of one small array a frame would be 1000 pages and more.
    assert resident() - before < 250


def test_processors_without_the_table_instruction() -> None:
    """Bits are counted by a vector popcount there, as on every ARM; numba compiles for a plain x86-64 here."""
    code = (
        "import numpy as np\n"
        "from numba.core.registry import cpu_target\n"
        "from models import random_frame, random_model, residual_model, scaled_stem_model\n"
        "from bnn_perception import native\n"
        "from bnn_perception.backends.cpu.binary import CpuBinaryBackend\n"
        "from bnn_perception.backends.reference import ReferenceBackend\n"
        "assert not native._table_lookup(cpu_target.target_context)\n"
        "rng = np.random.default_rng(0)\n"
        "frames = [random_frame(rng, 30, 20) for _ in range(5)]\n"
        "for model in random_model(rng), residual_model(rng), scaled_stem_model(rng):\n"
        "    backends = CpuBinaryBackend(model, 2), ReferenceBackend(model)\n"
        "    assert np.array_equal(*(backend.logits(frames) for backend in backends))\n"
    )
    assert run_python(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == (0, "", "")


def test_without_a_place_for_the_cache() -> None:
    """numba has nowhere to keep what it compiled: the package's folder, the home and its own are not writable."""
    code = (
        "from numba.core import caching\n"
        "def refuse(self): raise OSError('read-only')\n"
        "for locator in caching.CacheImpl._locator_classes: locator.ensure_cache_path = refuse\n"
        "import numpy as np\n"
        "from bnn_perception.net.model import InputSpec\n"
        "from bnn_perception.frames.frame import Frame\n"
        "from bnn_perception.frames.preprocess import prepare, prepare_reference\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)\n"
        "frame, spec = Frame(pixels), InputSpec(8, 8)\n"
        "assert np.array_equal(prepare(frame, spec), prepare_reference(frame, spec))\n"
    )
    # What is compiled is kept nowhere, so that it need not be fast.
    returned, output, said = run_python(code, NUMBA_OPT="0")
    assert (returned, output) == (0, "")
    (line,) = said.splitlines()  # once, whatever is compiled
    assert "set NUMBA_CACHE_DIR" in line


@pytest.mark.parametrize("package", ["numba", "onnxruntime"])
def test_a_missing_package_is_named(
    rng: np.random.Generator, shipped: Model, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "bnn_perception.native", raising=False)
    monkeypatch.delattr("bnn_perception.native", raising=False)
    choices = ["binary", "float"] if package == "numba" else ["float"]
    for backend in choices:
        with pytest.raises(BackendError, match=f"pip install {package}"):
            make_backend(shipped, backend, device="cpu")
    if package == "numba":
        with pytest.raises(ImportError, match="pip install numba"):
            prepare(random_frame(rng, 8, 8), shipped.input)


@pytest.mark.parametrize("backend", ["binary", "float"])
def test_a_negative_number_of_threads(shipped: Model, backend: str) -> None:
    with pytest.raises(BackendError, match="threads is -1"):
        make_backend(shipped, backend, device="cpu", threads=-1)


def test_as_many_threads_as_pay_off(shipped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The road-sign net takes 41.6 million multiply-accumulates: less than it pays to wake a thread for."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    for backend, work, count in (
        ("binary", 100e6, "1 thread"),
        ("binary", 10e6, "5 threads"),
        ("float", 1e6, "6 threads"),
    ):
        monkeypatch.setattr(f"bnn_perception.backends.cpu.{backend}.MACS_PER_THREAD", int(work))
        made = make_backend(shipped, backend, "cpu")
        assert made.device_name.endswith(f", {count}")
        made.close()


@pytest.mark.parametrize("name", ["road_signs", "quicknet_tiny"])
def test_the_shipped_models(name: str) -> None:
    check(load_model(find_model(name)), threads=2)
