"""The nets that the GPU benchmark measures, with random weights: time does not depend on their values.

Each comes as a binary model and as a float twin of the same topology.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net import bits
from bnn_perception.net.folder import save_model
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.layers import BinaryConv2d, BinaryDense, Conv2d, InputConv2d, OutputDense, SignConv2d
from bnn_perception.net.model import InputSpec, Model


@dataclass(frozen=True)
class Convolutions:
    """``channels`` convolutions one after the other, each with a square kernel, half padding and a 2x2 max pool."""

    channels: tuple[int, ...]
    kernel: int


@dataclass(frozen=True)
class Topology:
    """Convolutions and fully connected layers; the last one gives the logits."""

    name: str
    side: int
    convolutions: Convolutions
    dense: tuple[int, ...]


#: The net of arXiv 1808.00209, section 3.
PAPER = Topology("khan2018", 96, Convolutions((32, 32), 5), (100, 100, 4))
#: Binary convolutions as residual nets have them, of 3x3 with as many filters as channels: (side, channels).
SQUARES = ((56, 64), (28, 128), (14, 256))
#: The net of config/train/road_signs.yaml.
ROAD_SIGNS = Topology("road_signs", 32, Convolutions((64, 128, 256), 3), (512, 43))


def benchmark_model(topology: Topology, rng: np.random.Generator) -> Model:
    """A binary model with random weights; thresholds are such that about half of all bits are set."""
    spec = InputSpec(topology.side, topology.side)
    kernel = topology.convolutions.kernel
    layers: list[Layer] = []
    shape: Shape = spec.shape
    for index, channels in enumerate(topology.convolutions.channels):
        fan_in = kernel * kernel * shape[2]
        # Sums of pixels times signs scatter by 148 sqrt(fan_in) (the root mean square of 0..255), sums of signs by
        # sqrt(fan_in); the largest of a 2x2 window lies about one such deviation above the mean.
        deviation = np.sqrt(fan_in) * (148.0 if index == 0 else 1.0)
        cls: type[SignConv2d] = InputConv2d if index == 0 else BinaryConv2d
        layer = cls(
            name=f"conv{index + 1}",
            in_channels=shape[2],
            out_channels=channels,
            kernel=(kernel, kernel),
            stride=(1, 1),
            padding=(kernel // 2, kernel // 2),
            pool=Pool(2, 2),
            weights=bits.pack(_random_bits((channels, kernel, kernel, shape[2]), rng)),
            threshold=_thresholds(channels, deviation, deviation, rng),
            flip=_random_bits((channels,), rng),
        )
        layers.append(layer)  # type: ignore[arg-type]  # the common base of two kinds of Layer
        shape = layer.output_shape(shape)
    for index, features in enumerate(topology.dense):
        name = f"dense{index + 1}"
        weights = bits.pack(_random_bits((features, *shape), rng)).reshape(features, -1)
        deviation = float(np.sqrt(np.prod(shape)))
        if index + 1 < len(topology.dense):
            threshold = _thresholds(features, 0.0, deviation, rng)
            layers.append(
                BinaryDense(name, shape, features, weights, threshold, _random_bits((features,), rng))
            )
        else:
            scale = rng.uniform(0.5, 1.5, features).astype(np.float32) / np.float32(deviation)
            bias = rng.normal(0.0, 0.1, features).astype(np.float32)
            layers.append(OutputDense(name, shape, features, weights, scale, bias))
        shape = (1, 1, features)
    labels = tuple(f"class {index}" for index in range(topology.dense[-1]))
    return Model(name=topology.name, labels=labels, input=spec, layers=tuple(layers))


def square_convolutions(rng: np.random.Generator) -> Iterator[tuple[BinaryConv2d, Shape]]:
    """The convolutions of :data:`SQUARES` with random weights, and the shape of each one's input."""
    for side, channels in SQUARES:
        layer = BinaryConv2d(
            name=f"conv{side}",
            in_channels=channels,
            out_channels=channels,
            kernel=(3, 3),
            stride=(1, 1),
            padding=(1, 1),
            pool=None,
            weights=bits.pack(_random_bits((channels, 3, 3, channels), rng)),
            threshold=_thresholds(channels, 0.0, np.sqrt(9 * channels), rng),
            flip=_random_bits((channels,), rng),
        )
        yield layer, (side, side, channels)


def _random_bits(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.integers(0, 2, shape, dtype=np.uint8).astype(bool)


def _thresholds(count: int, mean: float, deviation: float, rng: np.random.Generator) -> NDArray[np.int32]:
    return np.rint(rng.normal(mean, 0.5 * deviation, count)).astype(np.int32)


def benchmark_float_twin(model: Model, rng: np.random.Generator) -> bytes:
    """A float twin of ``model``'s topology as an ONNX file: Conv -> MaxPool -> BatchNormalization -> Relu, Gemm.

    The same operators as the twins that this package trains and exports.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    tensors: list[Any] = []
    current = "image"

    def constant(name: str, value: NDArray[Any]) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def node(op: str, name: str, inputs: Sequence[str], **attributes: Any) -> None:
        nonlocal current
        nodes.append(helper.make_node(op, [current, *inputs], [name], name=name, **attributes))
        current = name

    def norm(name: str, channels: int) -> None:
        values = {
            "gamma": rng.uniform(0.5, 1.5, channels),
            "beta": rng.normal(0.0, 0.2, channels),
            "mean": rng.normal(0.0, 0.2, channels),
            "variance": rng.uniform(0.5, 1.5, channels),
        }
        node(
            "BatchNormalization",
            f"{name}_norm",
            [constant(f"{name}.{key}", value) for key, value in values.items()],
        )
        node("Relu", f"{name}_relu", [])

    flat = False
    for layer in model.layers:
        name = layer.name
        if isinstance(layer, Conv2d):
            size = (layer.out_channels, layer.in_channels, *layer.kernel)
            weights = constant(f"{name}.weight", rng.normal(0.0, np.sqrt(2.0 / layer.fan_in), size))
            pads = [*layer.padding, *layer.padding]
            node(
                "Conv",
                name,
                [weights],
                kernel_shape=list(layer.kernel),
                strides=list(layer.stride),
                pads=pads,
            )
            if layer.pool is not None:
                size_yx, stride_yx = [layer.pool.size] * 2, [layer.pool.stride] * 2
                node("MaxPool", f"{name}_pool", [], kernel_shape=size_yx, strides=stride_yx)
            norm(name, layer.out_channels)
            continue
        if isinstance(layer, (BinaryDense, OutputDense)):
            if not flat:
                node("Flatten", "flatten", [], axis=1)
                flat = True
            matrix = rng.normal(0.0, np.sqrt(2.0 / layer.fan_in), (layer.out_features, layer.fan_in))
            weights = constant(f"{name}.weight", matrix)
            if isinstance(layer, BinaryDense):
                node("Gemm", name, [weights], transB=1)
                norm(name, layer.out_features)
            else:
                node("Gemm", name, [weights, constant(f"{name}.bias", layer.bias)], transB=1)
            continue
        raise ValueError(f"{name}: a {layer.kind} has no counterpart here")
    height, width, channels = model.input.shape
    graph = helper.make_graph(
        nodes,
        "float_twin",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, height, width])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", len(model.labels)])],
        tensors,
    )
    # Opset 17 and IR 8: what ONNX Runtime 1.16 reads.
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(file)
    return bytes(file.SerializeToString())


def random_net(topology: Topology, folder: Path, seed: int = 0) -> Model:
    """Both precisions of a net with random weights, saved to and loaded from ``folder``; no twin without onnx."""
    rng = np.random.default_rng(seed)
    model = benchmark_model(topology, rng)
    twin = benchmark_float_twin(model, rng) if importlib.util.find_spec("onnx") else None
    return save_model(model, folder, twin)
