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
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    FullyConnected,
    InputConv2d,
    InputResidualConv2d,
    Layer,
    OutputBits,
    OutputDense,
    Pool,
    ResidualConv2d,
    Shape,
    Thermometer,
)
from bnn_perception.net.model import InputSpec, Model

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


def random_multipliers(
    rng: np.random.Generator, filters: int, spread: float, activation: str
) -> dict[str, NDArray[Any]]:
    """Multipliers, of either sign, and offsets that take dot products of ``spread`` to residuals of about 2**14."""
    multiplier = np.round(rng.normal(0, (1 << 14) / spread, filters)).astype(np.int32)
    slopes = {"none": 1.0, "relu": 0.0, "prelu": rng.normal(0.25, 0.2, filters)}
    return {
        "multiplier": multiplier,
        "negative_multiplier": np.round(multiplier * slopes[activation]).astype(np.int32),
        "offset": np.round(rng.normal(0, 1 << 13, filters)).astype(np.int32),
    }


#: What stands between a convolution and its batch norm, as multipliers express it.
ACTIVATIONS = ("none", "relu", "prelu")


def input_residual_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    *,
    activation: str = "none",
    **options: Any,
) -> InputResidualConv2d:
    """The convolution of :func:`input_conv` with a residual."""
    plain = input_conv(rng, name, shape, filters, **options)
    return InputResidualConv2d(
        **{
            **vars(plain),
            **random_thresholds(rng, filters, 1 << 14),
            **random_multipliers(rng, filters, 100 * plain.fan_in**0.5, activation),
        }
    )


def residual_conv(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    filters: int,
    *args: Any,
    shortcut: str = "identity",
    activation: str = "none",
    **options: Any,
) -> ResidualConv2d:
    """The convolution of :func:`binary_conv` with a residual and a shortcut."""
    plain = binary_conv(rng, name, shape, filters, *args, **options)
    return ResidualConv2d(
        **{
            **vars(plain),
            **random_thresholds(rng, filters, 1 << 15),
            **random_multipliers(rng, filters, plain.fan_in**0.5, activation),
        },
        shortcut=shortcut,
    )


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
    """A small net with every kind of shortcut and activation, growing channels, 1x1 and strided convolutions."""
    shape: Shape = (side, side, 3)
    layers: list[Layer] = [input_residual_conv(rng, "stem", shape, channels)]

    def add(name: str, filters: int, *args: Any, **options: Any) -> None:
        nonlocal shape
        shape = layers[-1].output_shape(shape)
        layers.append(residual_conv(rng, name, shape, filters, *args, **options))

    add("identity", channels, activation="relu")
    odd = side % 2
    add(
        "down",
        2 * channels,
        stride=(2, 2),
        padding=(1 - odd, 1 - odd),
        shortcut="average_pool",
        activation="prelu",
    )
    add("point", 2 * channels, (1, 1), padding=(0, 0), padding_value=0, activation="prelu")
    add("zero", 2 * channels, padding_value=0, shortcut="identity")
    add("alone", 40, shortcut="none", stride=(2, 1), activation="relu")
    add("pooled", 80, pool=Pool(2, 2), shortcut="average_pool")
    shape = layers[-1].output_shape(shape)
    layers.append(binary_dense(rng, "dense", shape, 33))
    layers.append(output_dense(rng, "output", (1, 1, 33), classes))
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
    """Models of a stem and up to three convolutions, with residuals and shortcuts or without, and the output."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape: Shape = (draw(st.integers(5, 13)), draw(st.integers(5, 13)), draw(st.sampled_from([1, 3])))
    spec = InputSpec(*shape)
    filters = draw(st.sampled_from(CHANNEL_COUNTS))
    stem = draw(st.sampled_from([input_conv, input_residual_conv]))
    options: dict[str, Any] = {
        "signed": draw(st.booleans()),
        "pool": draw(st.sampled_from([None, Pool(2, 1)])),
    }
    if stem is input_residual_conv:
        options["activation"] = draw(st.sampled_from(ACTIVATIONS))
    layers: list[Layer] = [stem(rng, "stem", shape, filters, **options)]
    shape = layers[-1].output_shape(shape)
    for index in range(draw(st.integers(1, 3))):
        name, activation = f"conv{index}", draw(st.sampled_from(ACTIVATIONS))
        after_residual = layers[-1].has_residual
        shortcut = draw(st.sampled_from(["identity", "average_pool", "none"] if after_residual else ["none"]))
        value = draw(st.sampled_from([-1, 0]))
        if shortcut == "none":
            options = draw(convolutions())
        else:  # kernels, strides and pools that give the size of the shortcut
            kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 3)]))
            padding = (kernel[0] // 2, kernel[1] // 2)
            options = {"filters": shape[2] * draw(st.integers(1, 3)), "kernel": kernel, "padding": padding}
            if shortcut == "average_pool":
                options["pool"] = Pool(2, 2)
                if not (shape[0] % 2 or shape[1] % 2) and draw(st.booleans()):
                    options.update(pool=None, stride=(2, 2))
            elif draw(st.booleans()):
                options.update(
                    kernel=(kernel[0] + 1, kernel[1] + 1),
                    pool=Pool(2, 1),
                    padding=(padding[0] + 1, padding[1] + 1),
                )
        try:
            layer = residual_conv(
                rng, name, shape, shortcut=shortcut, activation=activation, padding_value=value, **options
            )
            shape = layer.output_shape(shape)
        except ModelError:
            continue
        layers.append(layer)
    output = draw(st.sampled_from([output_dense, output_bits]))
    layers.append(output(rng, "output", shape, draw(st.sampled_from([1, 4, 33]))))
    return make_model(spec, layers)


def random_frame(rng: np.random.Generator, height: int, width: int, encoding: str = "rgb8") -> Frame:
    return Frame(
        rng.integers(0, 256, (height, width, ENCODINGS[encoding].channels), dtype=np.uint8), encoding
    )


def random_float_twin(rng: np.random.Generator, model: Model) -> bytes:
    """ONNX bytes of a float net with the topology of ``model``: convolution, ReLU, max pool, or ReLU, convolution, max
    pool, shortcut; skips without ``onnx``."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    tensor = "image"

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

    flat = after_residual = False
    for layer, shape in zip(model.layers, model.shapes()):
        before = tensor
        if after_residual:
            add("Relu", f"{layer.name}_relu_before")
        after_residual = layer.has_residual
        if isinstance(layer, Conv2d):
            add(
                "Conv",
                layer.name,
                (layer.out_channels, layer.in_channels, *layer.kernel),
                kernel_shape=layer.kernel,
                strides=layer.stride,
                pads=[*layer.padding, *layer.padding],
            )
            if not after_residual:
                add("Relu", f"{layer.name}_relu")
            if layer.pool is not None:
                pool = layer.pool
                add("MaxPool", f"{layer.name}_pool", kernel_shape=[pool.size] * 2, strides=[pool.stride] * 2)
            if layer.reads_residual:
                result, tensor = tensor, before
                if layer.added_shortcut == "average_pool":
                    add("AveragePool", f"{layer.name}_average", kernel_shape=[2, 2], strides=[2, 2])
                copies = [tensor] * (layer.out_channels // layer.in_channels - 1)
                if copies:
                    add("Concat", f"{layer.name}_repeat", others=copies, axis=1)
                add("Add", f"{layer.name}_add", others=[result])
        elif isinstance(layer, FullyConnected):
            if not flat:
                add("Flatten", "flatten")
                flat = True
            add("Gemm", layer.name, (layer.out_features, int(np.prod(shape))), transB=1)
            if layer.gives == "bits":
                add("Relu", f"{layer.name}_relu")
    nodes[-1].output[0] = "logits"
    height, width, channels = model.input.shape
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, height, width])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(model.labels)])
    graph = helper.make_graph(nodes, "float_twin", [image], [logits], constants)
    twin = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(twin.SerializeToString())
