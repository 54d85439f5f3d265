"""Random models for tests: any topology that the format allows, weights and thresholds that make every bit vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.net import bits
from bnn_perception.net.checks import ModelError
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    FullyConnected,
    InputConv2d,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.model import InputSpec, Model, iter_layers
from bnn_perception.net.signals import (
    MAX_PIXEL_WEIGHT,
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
    RealInputConv2d,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
    Sign,
)
from bnn_perception.net.windows import pads

#: Around multiples of a byte, a word and a vector of filters.
CHANNEL_COUNTS = (1, 3, 16, 31, 32, 33, 63, 64, 65, 96, 128)


def random_words(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Packed random bits of ``shape``, whose last axis counts channels."""
    return bits.pack(rng.integers(0, 2, shape).astype(bool))


def random_thresholds(rng: np.random.Generator, filters: int, spread: float) -> dict[str, NDArray[Any]]:
    """Thresholds near 0, where sums are; a few that always or never are reached; flips."""
    threshold = np.round(rng.normal(0, spread, filters)).astype(np.int32)
    threshold[rng.random(filters) < 0.05] = bits.ALWAYS
    threshold[rng.random(filters) < 0.05] = bits.NEVER
    return {"threshold": threshold, "flip": rng.random(filters) < 0.3}


def thermometer(rng: np.random.Generator, name: str, shape: Shape, levels: int = 8) -> Thermometer:
    return Thermometer(name, shape[2], levels, rng.integers(0, 256, (shape[2], levels)).astype(np.uint8))


def input_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    pool: Pool | None = None,
    signed: bool = False,
) -> InputConv2d:
    fan_in = kernel[0] * kernel[1] * shape[2]
    levels = np.arange(256, dtype=np.int16) - np.int16(128 if signed else 0)
    return InputConv2d(
        name=name,
        in_channels=shape[2],
        out_channels=filters,
        kernel=kernel,
        stride=stride,
        padding=padding,
        pool=pool,
        weights=random_words(rng, (filters, *kernel, shape[2])),
        **random_thresholds(rng, filters, 100 * fan_in**0.5),
        levels=levels,
    )


def binary_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    pool: Pool | None = None,
    padding_value: int = -1,
) -> BinaryConv2d:
    fan_in = kernel[0] * kernel[1] * shape[2]
    return BinaryConv2d(
        name=name,
        in_channels=shape[2],
        out_channels=filters,
        kernel=kernel,
        stride=stride,
        padding=padding,
        pool=pool,
        weights=random_words(rng, (filters, *kernel, shape[2])),
        **random_thresholds(rng, filters, fan_in**0.5),
        padding_value=padding_value,
    )


def _reals(rng: np.random.Generator, count: int, spread: float = 1.0) -> NDArray[np.float32]:
    return rng.normal(0, spread, count).astype(np.float32)


def scaled(layer: Conv2d, rng: np.random.Generator, spread: float) -> dict[str, Any]:
    """The fields of ``layer`` with a scale of either sign and a bias, which take sums of ``spread`` to about 1."""
    fields = {key: value for key, value in vars(layer).items() if key not in ("threshold", "flip")}
    scale, bias = _reals(rng, layer.out_channels, 1 / spread), _reals(rng, layer.out_channels, 0.5)
    return {**fields, "scale": scale, "bias": bias}


def scaled_input_conv(
    rng: np.random.Generator, name: str, shape: Shape, filters: int, *args: Any, **options: Any
) -> ScaledInputConv2d:
    """The convolution of :func:`input_conv` with a signal."""
    plain = input_conv(rng, name, shape, filters, *args, **options)
    return ScaledInputConv2d(**scaled(plain, rng, 100 * plain.fan_in**0.5))


def scaled_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    *args: Any,
    inputs: tuple[str, ...] = (),
    **options: Any,
) -> ScaledBinaryConv2d:
    """The convolution of :func:`binary_conv` with a signal."""
    plain = binary_conv(rng, name, shape, filters, *args, **options)
    return ScaledBinaryConv2d(**{**scaled(plain, rng, plain.fan_in**0.5), "inputs": inputs})


def real_input_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> RealInputConv2d:
    """Weights of up to 24 bits; scales that take sums to about 1; means that are no whole pixels."""
    size = (filters, *kernel, shape[2] // groups)
    weights = np.clip(np.round(rng.normal(0, 1 << 21, size)), -MAX_PIXEL_WEIGHT, MAX_PIXEL_WEIGHT)
    spread = 1 / ((1 << 21) * 100 * float(np.prod(size[1:])) ** 0.5)
    return RealInputConv2d(
        name,
        shape[2],
        filters,
        kernel,
        stride,
        padding,
        groups,
        weights.astype(np.int32),
        _reals(rng, filters, spread),
        _reals(rng, filters),
        rng.uniform(90, 140, shape[2]).astype(np.float32),
    )


def real_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    kernel: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    groups: int = 1,
    inputs: tuple[str, ...] = (),
) -> RealConv2d:
    size = (filters, *kernel, shape[2] // groups)
    weights = rng.normal(0, float(np.prod(size[1:])) ** -0.5, size).astype(np.float32)
    bias = _reals(rng, filters)
    return RealConv2d(name, shape[2], filters, kernel, stride, padding, groups, weights, bias, inputs=inputs)


def affine(rng: np.random.Generator, name: str, channels: int, inputs: tuple[str, ...] = ()) -> Affine:
    return Affine(name, channels, _reals(rng, channels), _reals(rng, channels), inputs=inputs)


def prelu(rng: np.random.Generator, name: str, channels: int, inputs: tuple[str, ...] = ()) -> PRelu:
    """Slopes of either sign, a few of them 0."""
    slope = _reals(rng, channels, 0.3)
    slope[rng.random(channels) < 0.2] = 0
    return PRelu(name, channels, slope, inputs=inputs)


def clip(rng: np.random.Generator, name: str, channels: int, inputs: tuple[str, ...] = ()) -> Clip:
    low, high = np.sort(rng.normal(0, 1, (2, channels)).astype(np.float32), axis=0)
    return Clip(name, channels, low, high, inputs=inputs)


def sign(rng: np.random.Generator, name: str, channels: int, inputs: tuple[str, ...] = ()) -> Sign:
    """Thresholds near 0; a few that always or never are reached; flips."""
    threshold = _reals(rng, channels, 0.5)
    threshold[rng.random(channels) < 0.05] = -np.inf
    threshold[rng.random(channels) < 0.05] = np.inf
    return Sign(name, channels, threshold, rng.random(channels) < 0.3, inputs=inputs)


def binary_dense(rng: np.random.Generator, name: str, shape: Shape, features: int) -> BinaryDense:
    weights = random_words(rng, (features, *shape)).reshape(features, -1)
    spread = float(np.prod(shape)) ** 0.5
    return BinaryDense(name, shape, features, weights, **random_thresholds(rng, features, spread))


def output_dense(rng: np.random.Generator, name: str, shape: Shape, features: int) -> OutputDense:
    return OutputDense(
        name,
        shape,
        features,
        random_words(rng, (features, *shape)).reshape(features, -1),
        scale=rng.normal(0, 0.1, features).astype(np.float32),
        bias=rng.normal(0, 1, features).astype(np.float32),
    )


def output_bits(rng: np.random.Generator, name: str, shape: Shape, features: int) -> OutputBits:
    dense = binary_dense(rng, name, shape, features)
    scale, bias = rng.normal(0, 1, (2, features)).astype(np.float32)
    return OutputBits(name, shape, features, dense.weights, dense.threshold, dense.flip, scale, bias)


def make_model(spec: InputSpec, layers: list[Layer], name: str = "random") -> Model:
    last = layers[-1]
    return Model(name, tuple(f"class {index}" for index in range(last.outputs)), spec, tuple(layers))


def road_sign_model(rng: np.random.Generator) -> Model:
    """Random weights in the topology of the road-sign net."""
    layers: list[Layer] = [input_conv(rng, "conv1", (32, 32, 3), 64, pool=Pool(2, 2))]
    layers.append(binary_conv(rng, "conv2", (16, 16, 64), 128, pool=Pool(2, 2)))
    layers.append(binary_conv(rng, "conv3", (8, 8, 128), 256, pool=Pool(2, 2)))
    layers.append(binary_dense(rng, "dense1", (4, 4, 256), 512))
    layers.append(output_dense(rng, "dense2", (1, 1, 512), 43))
    return make_model(InputSpec(32, 32), layers)


def random_model(rng: np.random.Generator, side: int = 12, classes: int = 5) -> Model:
    """A small net with every kind of layer but the thermometer."""
    layers: list[Layer] = [input_conv(rng, "conv1", (side, side, 3), 40, pool=Pool(2, 2))]
    layers.append(binary_conv(rng, "conv2", layers[-1].output_shape((side, side, 3)), 70, padding_value=0))
    shape = (side // 2, side // 2, 70)
    layers.append(binary_dense(rng, "dense1", shape, 33))
    layers.append(output_dense(rng, "dense2", (1, 1, 33), classes))
    return make_model(InputSpec(side, side), layers)


def residual_model(rng: np.random.Generator, side: int = 17, classes: int = 5, channels: int = 24) -> Model:
    """A small net with every kind of layer that gives or takes a signal, most ways to combine them, and odd sizes."""
    layers: list[Layer] = []
    shapes: dict[str, Shape] = {}

    def add(layer: Layer) -> str:
        """Append a layer behind its inputs; returns its name."""
        names = layer.inputs or ((layers[-1].name,) if layers else ())
        before = [shapes[name] for name in names] or [(side, side, 3)]
        shapes[layer.name] = layer.output_shape(*before)
        layers.append(layer)
        return layer.name

    def count(name: str) -> int:
        return shapes[name][2]

    add(real_input_conv(rng, "stem", (side, side, 3), channels))
    add(prelu(rng, "stem_relu", channels))
    x = add(MaxPool("stem_pool", channels, (3, 3), (1, 1), (1, 1)))
    # A block of one convolution with RSign and RPReLU.
    add(sign(rng, "identity_sign", channels))
    add(scaled_conv(rng, "identity", shapes[x], channels))
    add(Add("identity_add", channels, inputs=("identity", x)))
    add(affine(rng, "identity_shift", channels))
    add(prelu(rng, "identity_relu", channels))
    x = add(affine(rng, "identity_back", channels))
    # Half the size, twice the channels: averages through a real convolution, listed before the binary one.
    bits_ = add(sign(rng, "down_sign", channels, (x,)))
    add(AveragePool("down_mean", channels, (2, 2), (2, 2), (0, 0, side % 2, side % 2), False, inputs=(x,)))
    shortcut = add(real_conv(rng, "down_shortcut", shapes["down_mean"], 2 * channels))
    down = scaled_conv(
        rng, "down", shapes[x], 2 * channels, stride=(2, 2), padding=(1, 1), padding_value=0, inputs=(bits_,)
    )
    add(down)
    add(clip(rng, "down_clip", 2 * channels))
    x = add(Add("down_add", 2 * channels, inputs=("down_clip", shortcut)))
    # Two convolutions on one tensor of signs, side by side, and a dense growth.
    bits_ = add(sign(rng, "wide_sign", 2 * channels, (x,)))
    one = add(scaled_conv(rng, "wide_a", shapes[x], channels, padding_value=1, inputs=(bits_,)))
    two = add(scaled_conv(rng, "wide_b", shapes[x], 40, (1, 1), padding=(0, 0), inputs=(bits_,)))
    x = add(Concat("wide", count(one) + count(two) + count(x), inputs=(one, two, x)))
    # Shortcut A: every second pixel, and channels of zeros.
    bits_ = add(sign(rng, "pad_sign", count(x), (x,)))
    add(AveragePool("pad_pick", count(x), (1, 1), (2, 2), (0, 0), True, inputs=(x,)))
    shortcut = add(ChannelPad("pad_zeros", count(x) + 5, 2, 3))
    add(scaled_conv(rng, "pad", shapes[x], count(x) + 5, (3, 3), (2, 2), (1, 1), inputs=(bits_,)))
    x = add(Add("pad_add", count("pad"), inputs=("pad", shortcut)))
    # Blur pool, pooled bits, a plain layer, a sum of a signal with itself.
    blur = real_conv(rng, "blur", shapes[x], count(x), (3, 3), (1, 1), (1, 1), groups=count(x))
    add(blur)
    add(sign(rng, "plain_sign", count(x)))
    add(BinaryMaxPool("plain_pool", count(x), (3, 3), (2, 2), (1, 1)))
    add(binary_conv(rng, "plain", shapes["plain_pool"], 33, padding_value=0))
    add(scaled_conv(rng, "last", shapes["plain"], 66, (1, 1), padding=(0, 0)))
    add(Add("twice", 66, inputs=("last", "last")))
    size = shapes["twice"][:2]
    add(AveragePool("mean", 66, size, size, (0, 0), True))
    add(real_conv(rng, "output", shapes["mean"], classes))
    return make_model(InputSpec(side, side), layers)


def scaled_stem_model(
    rng: np.random.Generator, side: int = 16, classes: int = 5, channels: int = 32
) -> Model:
    """A small residual net of binary weights alone, as those that are trained here."""
    stem = scaled_input_conv(rng, "stem", (side, side, 3), channels, pool=Pool(2, 2))
    shape = stem.output_shape((side, side, 3))
    layers: list[Layer] = [stem, sign(rng, "sign1", channels)]
    layers.append(scaled_conv(rng, "conv1", shape, channels, inputs=("sign1",)))
    layers.append(prelu(rng, "relu1", channels))
    layers.append(affine(rng, "norm1", channels))
    layers.append(Add("add1", channels, inputs=("norm1", "stem")))
    layers.append(sign(rng, "sign2", channels))
    even = 1 - shape[0] % 2  # as many outputs as whole windows of 2x2
    layers.append(
        scaled_conv(rng, "conv2", shape, 2 * channels, stride=(2, 2), padding=(even, even), inputs=("sign2",))
    )
    layers.append(AveragePool("mean2", channels, (2, 2), (2, 2), (0, 0), True, inputs=("add1",)))
    layers.append(Concat("repeat2", 2 * channels, inputs=("mean2", "mean2")))
    layers.append(Add("add2", 2 * channels, inputs=("conv2", "repeat2")))
    layers.append(sign(rng, "sign3", 2 * channels))
    last = (shape[0] // 2, shape[1] // 2, 2 * channels)
    layers.append(output_dense(rng, "output", last, classes))
    return make_model(InputSpec(side, side), layers)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Kernel, stride, padding, pool and filters of a convolution."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return {
        "filters": draw(st.sampled_from(CHANNEL_COUNTS)),
        "kernel": kernel,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))),
        "pool": draw(st.sampled_from([None, Pool(2, 2), Pool(3, 2), Pool(2, 1), Pool(1, 2), Pool(3, 3)])),
    }


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Models of one input layer, up to two convolutions, up to one dense layer and the output."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape: Shape = (draw(st.integers(5, 13)), draw(st.integers(5, 13)), draw(st.sampled_from([1, 3])))
    spec = InputSpec(*shape, fit=draw(st.sampled_from(["crop", "stretch"])))
    layers: list[Layer] = []

    def add(layer: Layer) -> Shape:
        """Append the layer where its input is large enough for it; returns the shape that follows."""
        try:
            after = layer.output_shape(shape)
        except ModelError:
            return shape
        layers.append(layer)
        return after

    if draw(st.booleans()):
        shape = add(thermometer(rng, "levels", shape, draw(st.sampled_from([1, 3, 8, 11, 32]))))
    else:
        shape = add(input_conv(rng, "input", shape, signed=draw(st.booleans()), **draw(convolutions())))
        if not layers:
            shape = add(input_conv(rng, "input", shape, 33))
    for index in range(draw(st.integers(0, 2))):
        value = draw(st.sampled_from([-1, 0]))
        shape = add(binary_conv(rng, f"conv{index}", shape, padding_value=value, **draw(convolutions())))
    if draw(st.booleans()):
        shape = add(binary_dense(rng, "dense", shape, draw(st.sampled_from(CHANNEL_COUNTS))))
    output = draw(st.sampled_from([output_dense, output_bits]))
    add(output(rng, "output", shape, draw(st.sampled_from([1, 4, 33, 43]))))
    return make_model(spec, layers)


@st.composite
def residual_models(draw: st.DrawFn) -> Model:
    """Models with signals: a stem of any kind, then up to eight layers that take any signal or signs before them."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape: Shape = (draw(st.integers(5, 13)), draw(st.integers(5, 13)), draw(st.sampled_from([1, 3])))
    filters = draw(st.sampled_from(CHANNEL_COUNTS))
    stem: Layer
    kind = draw(st.sampled_from(["scaled", "real", "bits"]))
    if kind == "scaled":
        pool = draw(st.sampled_from([None, Pool(2, 1)]))
        stem = scaled_input_conv(rng, "stem", shape, filters, pool=pool, signed=draw(st.booleans()))
    elif kind == "real":
        groups = draw(st.sampled_from([1, shape[2]]))
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 4)]))
        padding = draw(st.sampled_from([(0, 0), (kernel[0] // 2, kernel[1] // 2), (0, 0, kernel[0] - 1, 0)]))
        count = filters * groups if filters < 65 else groups * (filters // groups)
        stem = real_input_conv(rng, "stem", shape, count, kernel, draw(strides()), padding, groups)
    else:
        stem = input_conv(rng, "stem", shape, filters)
    layers: list[Layer] = []
    shapes: dict[str, Shape] = {}
    gives: dict[str, str] = {}

    def add(layer: Layer) -> None:
        before = [shapes[name] for name in layer.inputs] or [shape]
        try:
            shapes[layer.name] = layer.output_shape(*before)
        except ModelError:  # too small for it
            return
        gives[layer.name] = layer.gives
        layers.append(layer)

    add(stem)
    for index in range(draw(st.integers(1, 8))):
        name = f"layer{index}"
        source = draw(st.sampled_from(list(shapes)))
        before, channels = shapes[source], shapes[source][2]
        taken = {"inputs": (source,)}
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3)]))
        padding = draw(
            st.sampled_from([(0, 0), (kernel[0] // 2, kernel[1] // 2), (0, kernel[1] - 1, kernel[0] - 1, 0)])
        )
        stride = draw(strides())
        if gives[source] == "bits":
            value = draw(st.sampled_from([-1, 0, 1]))
            if draw(st.integers(0, 3)) == 0:
                add(BinaryMaxPool(name, channels, kernel, stride, padding, **taken))
            else:
                count = draw(st.sampled_from([channels, *CHANNEL_COUNTS]))
                add(
                    scaled_conv(
                        rng, name, before, count, kernel, stride, padding, padding_value=value, **taken
                    )
                )
            continue
        same = [
            other
            for other, other_shape in shapes.items()
            if other_shape == before and gives[other] == "signal"
        ]
        choice = draw(
            st.sampled_from(
                [
                    "sign",
                    "sign",
                    "affine",
                    "prelu",
                    "clip",
                    "add",
                    "concat",
                    "pad",
                    "max",
                    "mean",
                    "real",
                    "depthwise",
                ]
            )
        )
        if choice == "sign":
            add(sign(rng, name, channels, (source,)))
        elif choice == "affine":
            add(affine(rng, name, channels, (source,)))
        elif choice == "prelu":
            add(prelu(rng, name, channels, (source,)))
        elif choice == "clip":
            add(clip(rng, name, channels, (source,)))
        elif choice == "add":
            add(Add(name, channels, inputs=(source, draw(st.sampled_from(same)))))
        elif choice == "concat":
            other = draw(st.sampled_from(same))
            add(Concat(name, 2 * channels, inputs=(source, other)))
        elif choice == "pad":
            ends = draw(st.tuples(st.integers(0, 3), st.integers(0, 40)))
            add(ChannelPad(name, channels + sum(ends), *ends, **taken))
        elif choice == "max":
            add(MaxPool(name, channels, kernel, stride, padding, **taken))
        elif choice == "mean":
            add(AveragePool(name, channels, kernel, stride, padding, draw(st.booleans()), **taken))
        elif choice == "real":
            count = draw(st.sampled_from([1, 31, 33, 64]))
            add(real_conv(rng, name, before, count, kernel, stride, padding, **taken))
        else:
            add(real_conv(rng, name, before, 2 * channels, kernel, stride, padding, groups=channels, **taken))
    # What nobody takes yet ends in the logits: signals as means of all pixels, bits by a matrix and a mean.
    classes = draw(st.sampled_from([1, 4, 33]))
    read = {name for layer in layers for name in layer.inputs}
    ends = []
    for end in [name for name in shapes if name not in read]:
        name = end
        if gives[name] == "bits":
            add(scaled_conv(rng, f"{name}_all", shapes[name], 3, (1, 1), padding=(0, 0), inputs=(name,)))
            name = f"{name}_all"
        add(
            AveragePool(
                f"{name}_mean",
                shapes[name][2],
                shapes[name][:2],
                shapes[name][:2],
                (0, 0),
                True,
                inputs=(name,),
            )
        )
        ends.append(f"{name}_mean")
    if len(ends) > 1:
        add(Concat("ends", sum(shapes[name][2] for name in ends), inputs=tuple(ends)))
    last = layers[-1].name
    if draw(st.booleans()):
        add(real_conv(rng, "output", shapes[last], classes, inputs=(last,)))
    else:
        add(sign(rng, "last_sign", shapes[last][2], (last,)))
        layers.append(output_dense(rng, "output", shapes[last], classes))
    spec = InputSpec(*shape)
    return make_model(spec, layers)


@st.composite
def strides(draw: st.DrawFn) -> tuple[int, int]:
    return draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))


def random_frame(rng: np.random.Generator, height: int, width: int, encoding: str = "rgb8") -> Frame:
    return Frame(
        rng.integers(0, 256, (height, width, ENCODINGS[encoding].channels), dtype=np.uint8), encoding
    )


def random_float_twin(rng: np.random.Generator, model: Model) -> bytes:
    """ONNX bytes of a float net with the topology of ``model``, which is a chain or one of :func:`scaled_stem_model`:
    convolution, ReLU, max pool, or ReLU, convolution, max pool, shortcut; skips without ``onnx``."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    tensor = before = result = "image"

    def add(
        op: str, name: str, weight_shape: tuple[int, ...] = (), others: Sequence[str] = (), **attributes: Any
    ) -> None:
        nonlocal tensor
        inputs = [tensor, *others]
        if weight_shape:
            fan_in = int(np.prod(weight_shape[1:]))
            weight = rng.normal(0, (2 / fan_in) ** 0.5, weight_shape).astype(np.float32)
            bias = rng.normal(0, 0.1, weight_shape[0]).astype(np.float32)
            for suffix, array in (("weight", weight), ("bias", bias)):
                constants.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
                inputs.append(f"{name}.{suffix}")
        tensor = f"{name}_out"
        nodes.append(helper.make_node(op, inputs, [tensor], name, **attributes))

    flat = after_sum = False
    for place in iter_layers(model):
        layer, shape = place.layer, place.before
        if isinstance(layer, (Conv2d, FullyConnected)) and after_sum:
            before = tensor
            add("Relu", f"{layer.name}_relu_before")
        if isinstance(layer, Conv2d):
            add(
                "Conv",
                layer.name,
                (layer.out_channels, layer.in_channels, *layer.kernel),
                kernel_shape=layer.kernel,
                strides=layer.stride,
                pads=pads(layer.padding),
            )
            if layer.gives == "bits":
                add("Relu", f"{layer.name}_relu")
            after_sum = layer.gives == "signal"
            if layer.pool is not None:
                pool = layer.pool
                add("MaxPool", f"{layer.name}_pool", kernel_shape=[pool.size] * 2, strides=[pool.stride] * 2)
            result = tensor
        elif isinstance(layer, AveragePool):  # of the signal before the last convolution's
            tensor = before
            add("AveragePool", layer.name, kernel_shape=layer.kernel, strides=layer.stride)
            before = tensor
        elif isinstance(layer, Concat):
            tensor = before
            add("Concat", layer.name, others=[tensor] * (len(place.sources) - 1), axis=1)
            before = tensor
        elif isinstance(layer, Add):
            tensor = before
            add("Add", layer.name, others=[result])
        elif isinstance(layer, FullyConnected):
            if not flat:
                add("Flatten", "flatten")
                flat = True
            add("Gemm", layer.name, (layer.out_features, int(np.prod(shape))), transB=1)
            after_sum = False
            if layer.gives == "bits":
                add("Relu", f"{layer.name}_relu")
    nodes[-1].output[0] = "logits"
    height, width, channels = model.input.shape
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, height, width])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(model.labels)])
    graph = helper.make_graph(nodes, "float_twin", [image], [logits], constants)
    twin = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(twin.SerializeToString())


#: The classes of :func:`colours_model`, red, green and blue.
PURE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def colours_model() -> Model:
    """A model of two layers that tells red, green and blue apart by the mean colour.

    Logits of a pure colour are 3 and twice -1: softmax 0.965 and 0.018.
    """
    one_hot = bits.pack(np.eye(3, dtype=bool))
    layers = (
        Thermometer("encode", channels=3, levels=1, thresholds=np.full((3, 1), 128, np.uint8)),
        OutputDense("logits", (1, 1, 3), 3, one_hot, np.ones(3, np.float32), np.zeros(3, np.float32)),
    )
    return Model("colours", tuple(PURE), InputSpec(1, 1), layers)
