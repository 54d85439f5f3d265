"""The QONNX importer against the graph itself, evaluated in float by ``onnx.reference``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.cli import execute, import_
from bnn_perception.cli.parity import Parity, compare
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import ImporterError, import_model
from bnn_perception.importers.fold.builder import UNIT, PixelRange
from bnn_perception.importers.onnx import file
from bnn_perception.importers.onnx.evaluate import evaluator
from bnn_perception.importers.onnx.quantizers import quantize
from bnn_perception.importers.onnx.read import read
from bnn_perception.net import bits
from bnn_perception.net.folder import load_model
from bnn_perception.net.layer import Pool
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.model import Model
from bnn_perception.net.signals import PRelu, ScaledBinaryConv2d

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")

ONNX_VERSION = tuple(int(part) for part in onnx.__version__.split(".")[:2])

DOMAIN = "qonnx.custom_op.general"


class Graph:
    """Writes a small QONNX graph, one node after the other; random numbers come from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.input_shape: Sequence[int | str] = ["N", 3, 8, 10]
        self.tensor = "image"
        self.unit = 255  # of a pixel: 255 where the graph takes [0, 1], 1 where it takes 0..255
        self.input_type = onnx.TensorProto.FLOAT
        self.opset = 13

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any) -> Graph:
        output = f"t{len(self.nodes)}"
        self.nodes.append(
            onnx.helper.make_node(
                op, [self.tensor, *inputs], [output], name or f"n{len(self.nodes)}_{op}", **attributes
            )
        )
        self.nodes[-1].domain = domain
        self.tensor = output
        return self

    def weights(self, *shape: int, scale: Any = 1.0) -> str:
        """Latent weights behind a BipolarQuant, as Brevitas writes them."""
        latent = self.constant(self.rng.normal(size=shape))
        name = f"w{len(self.nodes)}"
        node = onnx.helper.make_node("BipolarQuant", [latent, self.constant(scale)], [name], domain=DOMAIN)
        self.nodes.append(node)
        return name

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        pads: int = 0,
        stride: int = 1,
        scale: Any = 1.0,
        bias: bool = False,
    ) -> Graph:
        weights = self.weights(outputs, inputs, kernel, kernel, scale=scale)
        more = [self.constant(self.rng.normal(size=outputs))] if bias else []
        return self.node(
            "Conv", weights, *more, pads=[pads] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2
        )

    def dilated(self) -> Graph:
        return self.node("Conv", self.weights(5, 5, 2, 2), dilations=[2, 2])

    def pad(self, width: int, value: float) -> Graph:
        return self.node(
            "Pad", self.constant([0, 0, width, width, 0, 0, width, width], np.int64), self.constant(value)
        )

    def norm(self, channels: int) -> Graph:
        """Batch norm about the statistics of the test images, so that bits vary; gammas of both signs and zero."""
        gamma = self.rng.normal(size=channels)
        gamma[0] = 0.0
        output = onnx.helper.make_empty_tensor_value_info(self.tensor)
        reference = evaluator(self.model(output))
        batch = np.concatenate([reference.run(None, {"image": image})[0] for image in self.images()])
        axes = (0, 2, 3) if batch.ndim == 4 else (0,)
        mean, deviation = batch.mean(axis=axes), batch.std(axis=axes) + 0.1
        mean += deviation * self.rng.normal(size=channels) / 4
        values = (gamma, self.rng.normal(size=channels) / 4, mean, deviation**2)
        return self.node("BatchNormalization", *map(self.constant, values), epsilon=1e-5)

    def images(self) -> list[NDArray[np.float32]]:
        """The test images as the graph takes them."""
        axes = (2, 0, 1) if self.input_shape[1] in (1, 3) else (0, 1, 2)
        return [frame.pixels.transpose(axes)[None].astype(np.float32) / self.unit for frame in frames(8, 10)]

    def bipolar(self, scale: Any = 1.0) -> Graph:
        return self.node("BipolarQuant", self.constant(scale), domain=DOMAIN)

    def pool(self, size: int = 2, **attributes: Any) -> Graph:
        return self.node("MaxPool", kernel_shape=[size] * 2, strides=[size] * 2, **attributes)

    def matmul(self, inputs: int, outputs: int) -> Graph:
        return self.node("MatMul", self.weights(inputs, outputs))

    def model(self, output: Any) -> Any:
        image = onnx.helper.make_tensor_value_info("image", self.input_type, self.input_shape)
        graph = onnx.helper.make_graph(self.nodes, "net", [image], [output], self.constants)
        opsets = [onnx.helper.make_opsetid("", self.opset), onnx.helper.make_opsetid(DOMAIN, 1)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def save(self, path: Path, **metadata: str) -> Path:
        model = self.model(onnx.helper.make_empty_tensor_value_info(self.tensor))
        onnx.helper.set_model_props(
            model, {f"bnn_perception.{key}": value for key, value in metadata.items()}
        )
        onnx.save(model, str(path))
        return path


def frames(height: int, width: int, count: int = 4) -> list[Frame]:
    rng = np.random.default_rng(1)
    lows = np.linspace(0, 150, count)
    return [Frame(rng.integers(low, low + 100, (height, width, 3), dtype=np.uint8)) for low in lows]


def check(graph: Graph, tmp_path: Path) -> Model:
    """Import a graph and compare all logits with the source.

    A wrong bit changes a logit by 2 times its scale, which is at least 0.01 in these nets; 1e-3 is far below that
    and far above what float32 loses in the source graph (1e-5).
    """
    path = graph.save(tmp_path / "net.onnx")
    model = import_model(path, tmp_path / "model")
    parity = compare(path, model, frames(8, 10))
    assert parity.same_class == parity.images == 4
    assert parity.difference < 1e-3, parity
    logits = ReferenceBackend(model).logits(frames(8, 10))
    assert np.ptp(logits, axis=0).max() > 0.1  # or nothing would be compared
    return model


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pool_after_sign", [False, True])
def test_conv_pool_norm_sign(tmp_path: Path, seed: int, pool_after_sign: bool) -> None:
    g = Graph(seed)
    g.conv(3, 5, pads=1)
    if pool_after_sign:
        g.norm(5).bipolar().pool()
    else:
        g.pool().norm(5).bipolar()
    g.pad(1, -1.0).conv(5, 33)
    if pool_after_sign:
        g.norm(33).bipolar().pool()
    else:
        g.pool().norm(33).bipolar()
    g.node("Flatten", axis=1).matmul(33 * 2 * 2, 7).norm(7).bipolar()
    g.matmul(7, 4).norm(4)
    model = check(g, tmp_path)
    assert [type(layer) for layer in model.layers] == [InputConv2d, BinaryConv2d, BinaryDense, OutputDense]
    assert model.layers[1].padding_value == -1  # type: ignore[union-attr]
    assert model.labels == ("class_0", "class_1", "class_2", "class_3")


def test_pool_before_norm_of_negative_gamma_takes_the_largest_sum(tmp_path: Path) -> None:
    """The format pools sums; a graph that pools after a negative scale needs its weights negated."""
    g = Graph().conv(3, 4)
    g.node("Mul", g.constant(np.asarray([-1.0, 2.0, -0.5, 0.25]).reshape(1, 4, 1, 1))).pool()
    g.node("Add", g.constant(np.asarray([0.3, -2.0, 0.1, 0.2]).reshape(4, 1, 1))).bipolar()
    g.node("Flatten").matmul(4 * 3 * 4, 3)
    model = check(g, tmp_path)
    assert not np.any(model.layers[0].flip)  # type: ignore[union-attr]


def test_zero_padding_of_signs(tmp_path: Path) -> None:
    g = Graph().conv(3, 6, pads=1).norm(6).bipolar()
    g.conv(6, 9, kernel=5, pads=2, stride=2).norm(9).bipolar()
    g.node("Flatten").matmul(9 * 4 * 5, 3)
    model = check(g, tmp_path)
    assert model.layers[1].padding_value == 0  # type: ignore[union-attr]


def test_scales_and_biases_fold(tmp_path: Path) -> None:
    g = Graph()
    g.conv(3, 5, scale=np.linspace(0.1, 0.5, 5).reshape(5, 1, 1, 1), bias=True).norm(5).bipolar(0.25)
    g.node("Div", g.constant(0.5)).conv(5, 6, scale=0.3, bias=True)
    g.node("Sub", g.constant(np.linspace(-1, 1, 6).reshape(6, 1, 1))).node("Neg").bipolar()
    g.node("Flatten")
    g.node(
        "Gemm",
        g.weights(4, 6 * 4 * 6, scale=0.05),
        g.constant(g.rng.normal(size=4)),
        transB=1,
        alpha=0.5,
        beta=2.0,
    )
    check(g, tmp_path)


def takes_up_to(model: Model) -> float:
    """What the net that a model came from takes for a pixel of 255, and for 0 one of 0."""
    if not model.input.std:
        return 1.0
    assert not any(model.input.mean)
    (value,) = {1 / std for std in model.input.std}
    return value


@pytest.mark.parametrize("steps", ["div255", "twice_minus_one", "mean_std"])
def test_input_scaling(tmp_path: Path, steps: str) -> None:
    g = Graph()
    if steps == "div255":
        g.unit = 1
        g.node("Div", g.constant(255.0)).conv(3, 5, pads=1)
    elif steps == "twice_minus_one":
        g.node("Mul", g.constant(2.0)).node("Sub", g.constant(1.0)).conv(3, 5)
    else:
        g.node("Sub", g.constant(np.asarray([0.4, 0.5, 0.3]).reshape(1, 3, 1, 1))).node(
            "Div", g.constant(0.25)
        ).conv(3, 5)
    g.norm(5).bipolar().node("Flatten")
    g.matmul(5 * (80 if steps == "div255" else 48), 3)
    model = check(g, tmp_path)
    assert takes_up_to(model) == (255.0 if steps == "div255" else 1.0)
    assert model.info["source"].get("pixel_range") == (None if steps == "div255" else "assumed")


def levels_then(*steps: tuple[str, Any]) -> Callable[[Graph], Graph]:
    """What a graph that takes pixels in 0..255 does first: nodes with one constant each, or with none."""

    def build(g: Graph) -> Graph:
        for op, value in steps:
            g = g.node(op) if value is None else with_constant(g, op, value)
        return g

    return build


def divided_by_a_constant_node(g: Graph) -> Graph:
    value = onnx.numpy_helper.from_array(np.float32(255))
    g.nodes.append(onnx.helper.make_node("Constant", [], ["hundreds"], value=value))
    return g.node("Div", "hundreds")


def cast_from_bytes(g: Graph) -> Graph:
    g.input_type = onnx.TensorProto.UINT8
    return g.node("Cast", to=onnx.TensorProto.FLOAT)


def normalized_levels(g: Graph) -> Graph:
    return g.node("BatchNormalization", *(g.constant([value] * 3) for value in (1.0, 0.0, 120.0, 3600.0)))


def quantized_levels(g: Graph) -> Graph:
    return g.node("Quant", *map(g.constant, (1.0, 0.0, 8.0)), domain=DOMAIN, signed=0, narrow=0)


LEVELS: dict[str, Callable[[Graph], Graph]] = {
    "behind Identity": levels_then(("Identity", None), ("Div", 255.0)),
    "product": levels_then(("Mul", 1 / 255)),
    "-1..1": levels_then(("Sub", 127.5), ("Div", 127.5)),
    "-1..1, scaled first": levels_then(("Div", 127.5), ("Sub", 1.0)),
    "only centred": levels_then(("Sub", 128.0)),
    "a constant from a node": divided_by_a_constant_node,
    "bytes": cast_from_bytes,
    "batch norm": normalized_levels,
    "quantized": quantized_levels,
}


@pytest.mark.parametrize("case", LEVELS)
def test_graphs_that_take_pixels_up_to_255(tmp_path: Path, case: str) -> None:
    g = Graph()
    g.unit = 1
    # The bias keeps sums from being 0, about which float32 and the exact sum may differ.
    LEVELS[case](g).conv(3, 5, bias=True).bipolar().node("Flatten").matmul(5 * 48, 3)
    path = g.save(tmp_path / "net.onnx")
    model = read(path)
    assert takes_up_to(model) == 255.0
    assert "pixel_range" not in model.info["source"]
    assert compare(path, model, frames(8, 10)).difference < 1e-3
    assert takes_up_to(read(path, PixelRange.of(0.0, 2.0))) == 2.0


def test_a_threshold_among_levels_says_that_pixels_go_up_to_255(tmp_path: Path) -> None:
    g = Graph()
    g.unit = 1
    with_constant(g, "Sub", 99.5).bipolar().conv(3, 5).norm(5).bipolar().node("Flatten").matmul(5 * 48, 3)
    model = check(g, tmp_path)
    np.testing.assert_array_equal(model.layers[0].thresholds, [[100]] * 3)  # type: ignore[union-attr]


def test_image_annotated_as_bytes(tmp_path: Path) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    net = onnx.load(str(path))
    annotation = net.graph.quantization_annotation.add(tensor_name="image")
    annotation.quant_parameter_tensor_names.add(key="finn_datatype", value="UINT8")
    onnx.save(net, str(path))
    assert takes_up_to(read(path)) == 255.0


def test_image_quantized_as_cnv_does(tmp_path: Path) -> None:
    """2x - 1, then 8 bits of step 1/128; a pixel of level 0 pads."""
    graph = Graph()
    graph.node("Mul", graph.constant(2.0)).node("Sub", graph.constant(1.0))
    graph.node(
        "Quant",
        graph.constant(1 / 128),
        graph.constant(0.0),
        graph.constant(8.0),
        domain=DOMAIN,
        signed=1,
        narrow=0,
    )
    graph.conv(3, 5, pads=1).norm(5).bipolar().node("Flatten").matmul(5 * 80, 3)
    model = check(graph, tmp_path)
    levels = model.layers[0].levels  # type: ignore[union-attr]
    expected = np.clip(np.rint(128 * (2 * np.arange(256) / 255 - 1)), -128, 127)
    np.testing.assert_array_equal(levels, expected)


def test_thermometer(tmp_path: Path) -> None:
    g = Graph()
    g.node("Unsqueeze", g.constant([2], np.int64))
    offsets = (np.asarray([40, 128, 200]) - 0.5) / 255
    g.node("Sub", g.constant(offsets.reshape(1, 1, 3, 1, 1))).bipolar()
    g.node("Reshape", g.constant([1, -1, 8, 10], np.int64)).pad(1, -1.0)
    g.conv(9, 5).norm(5).bipolar().node("Flatten").matmul(5 * 80, 3)
    model = check(g, tmp_path)
    thermometer = model.layers[0]
    assert isinstance(thermometer, Thermometer)
    np.testing.assert_array_equal(thermometer.thresholds, np.tile([40, 128, 200], (3, 1)))


def test_one_threshold_a_channel(tmp_path: Path) -> None:
    graph = Graph()
    graph.node("Sub", graph.constant(np.asarray([0.3, 0.5, 0.7]).reshape(3, 1, 1))).bipolar()
    graph.conv(3, 5).norm(5).bipolar().node("Flatten").matmul(5 * 48, 3)
    model = check(graph, tmp_path)
    # 0.3 * 255 = 76.5, 0.5 * 255 = 127.5, 0.7 * 255 = 178.5: the next whole pixel reaches it
    np.testing.assert_array_equal(model.layers[0].thresholds, [[77], [128], [179]])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "kind", ["multi_threshold", "multi_threshold_01", "quant_unsigned", "quant_signed", "quant_narrow"]
)
def test_other_ways_to_write_a_threshold(tmp_path: Path, kind: str) -> None:
    g = Graph().conv(3, 6, pads=1).norm(6)
    one_bit = [g.constant(0.5), g.constant(0.0), g.constant(1.0)]
    if kind == "multi_threshold":
        thresholds = g.constant(g.rng.normal(size=(6, 1)) / 2)
        g.node("MultiThreshold", thresholds, domain=DOMAIN, out_scale=2.0, out_bias=-1.0)
    elif kind == "multi_threshold_01":
        g.node("MultiThreshold", g.constant(g.rng.normal(size=(6, 1)) / 2), domain=DOMAIN)
    else:
        signed, narrow = int(kind != "quant_unsigned"), int(kind == "quant_narrow")
        g.node("Quant", *one_bit, domain=DOMAIN, signed=signed, narrow=narrow)
    g.conv(6, 7, pads=1).norm(7).bipolar().pool().node("Flatten").matmul(7 * 20, 3)
    model = check(g, tmp_path)
    # 0 and 1 padded with 0 is a sign of -1.
    expected = -1 if kind in ("multi_threshold_01", "quant_unsigned") else 0
    assert model.layers[1].padding_value == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["hardtanh", "pooled", "scaled by -2", "upper limit only", "opset 10"])
def test_hardtanh_before_a_sign_changes_nothing(tmp_path: Path, case: str) -> None:
    g = Graph()
    if case == "opset 10":
        g.opset = 10
        g.conv(3, 6, pads=1).norm(6).node("Clip", min=-1.0, max=1.0).bipolar()
    else:
        clipped(g, 0.0, 1.0).conv(3, 6, pads=1).norm(6)  # pixels are in 0..1
        if case == "upper limit only":
            g.node("Clip", "", g.constant(0.5))
        else:
            clipped(g, -1.0, 0.5)
        if case == "pooled":
            g.pool()
        if case == "scaled by -2":  # values from -1 to 2, of which those from 0.3 on become +1
            g.node("Mul", g.constant(-2.0)).node("Sub", g.constant(0.3))
        clipped(g.bipolar(), -1.0, 1.0)
    pixels = 4 * 5 if case == "pooled" else 8 * 10
    g.conv(6, 7, pads=1).norm(7).bipolar().node("Flatten").matmul(7 * pixels, 3)
    check(g, tmp_path)


ZERO = {"one": 0.0, "a channel": np.asarray([-1, 3, 1, -3, 0.5, 100]).reshape(6, 1, 1)}
SIGNS: dict[str, tuple[str, bool, float, float]] = {
    "x >= t": ("GreaterOrEqual", False, 1.0, -1.0),
    "x > t": ("Greater", False, 1.0, -1.0),
    "x < t": ("Less", False, -1.0, 1.0),
    "x <= t": ("LessOrEqual", False, -1.0, 1.0),
    "t <= x": ("LessOrEqual", True, 1.0, -1.0),
    "t > x": ("Greater", True, -0.5, 0.5),
    "falls": ("GreaterOrEqual", False, -1.0, 1.0),
    "0 or 1": ("Greater", False, 1.0, 0.0),
}


def whole_sums() -> Graph:
    """Six channels of -3, -1, 1 and 3, which meet whole thresholds exactly."""
    return with_constant(Graph(), "Sub", 0.5).bipolar().conv(3, 6, kernel=1)


def compared(g: Graph, op: str, at: Any, is_second: bool = False) -> Graph:
    return turned(g, op, at) if is_second else with_constant(g, op, at)


def chosen(g: Graph, true: Any, false: Any) -> Graph:
    return g.node("Where", g.constant(true), g.constant(false))


@pytest.mark.parametrize("at", ZERO)
@pytest.mark.parametrize("case", SIGNS)
def test_signs_written_as_comparisons(tmp_path: Path, case: str, at: str) -> None:
    """The sums of this net are whole, so that they meet their thresholds: strict or not is told apart."""
    op, is_second, true, false = SIGNS[case]
    g = chosen(compared(whole_sums(), op, ZERO[at], is_second), true, false)
    path = g.node("Flatten").matmul(6 * 80, 3).save(tmp_path / "net.onnx")
    assert compare(path, import_model(path, tmp_path / "model"), frames(8, 10)).difference == 0


CASTS: dict[str, Callable[[Graph], Graph]] = {
    "floats": lambda g: with_constant(with_constant(g.node("Cast", to=1), "Mul", 2.0), "Sub", 1.0),
    "integers": lambda g: (
        g.node("Cast", to=7)
        .node("Mul", g.constant(2, np.int64))
        .node("Sub", g.constant(1, np.int64))
        .node("Cast", to=1)
    ),
    "not": lambda g: chosen(g.node("Not"), -1.0, 1.0),
    "written out": lambda g: chosen(g, np.ones((1, 6, 8, 10)), -np.ones((1, 6, 8, 10))),
}


@pytest.mark.parametrize("case", CASTS)
def test_truth_values_become_signs(tmp_path: Path, case: str) -> None:
    g = CASTS[case](with_constant(whole_sums(), "Greater", -1.0))
    path = g.node("Flatten").matmul(6 * 80, 3).save(tmp_path / "net.onnx")
    assert compare(path, import_model(path, tmp_path / "model"), frames(8, 10)).difference == 0


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("flatten", [False, True])
def test_a_convolution_of_the_whole_map_is_a_matrix(tmp_path: Path, hidden: bool, flatten: bool) -> None:
    g = signs()
    if hidden:
        g.node("Conv", g.weights(7, 5, 6, 8)).norm(7).bipolar()
    g.node("Conv", g.weights(3, 7, 1, 1) if hidden else g.weights(3, 5, 6, 8), g.constant([0.5, 0.0, -0.5]))
    model = check(g.node("Flatten") if flatten else g, tmp_path)
    assert [type(layer) for layer in model.layers] == [InputConv2d, *[BinaryDense] * hidden, OutputDense]


def test_a_convolution_that_leaves_pixels_out_is_no_matrix(tmp_path: Path) -> None:
    g = signs()  # 6x8
    g.node("Conv", g.weights(3, 5, 5, 5), strides=[4, 4])
    model = check(g, tmp_path)
    assert [layer.kind for layer in model.layers] == ["input_conv2d", "scaled_binary_conv2d"]


@pytest.mark.parametrize("steps", ["compared", "subtracted", "doubled"])
@pytest.mark.parametrize("op", ["Greater", "GreaterOrEqual"])
def test_a_threshold_that_is_a_pixel_is_compared_as_float32_does(tmp_path: Path, op: str, steps: str) -> None:
    """float32(51 / 255) is not 51 / 255, but a pixel of 51 reaches it; about half of all levels are rounded up."""
    pixels = np.arange(256, dtype=np.float32) / np.float32(255)
    for level in range(10, 250, 7):
        at, g = pixels[level], Graph()
        if steps == "subtracted":
            with_constant(g, "Sub", at)
        elif steps == "doubled":
            with_constant(g, "Mul", 2.0)
        chosen(with_constant(g, op, {"compared": at, "subtracted": 0.0, "doubled": 2 * at}[steps]), 1.0, -1.0)
        path = g.node("Flatten").matmul(240, 3).save(tmp_path / "net.onnx")
        first = level + (op == "Greater")
        np.testing.assert_array_equal(read(path, UNIT).layers[0].thresholds, [[first]] * 3)  # type: ignore[union-attr]


def test_a_threshold_that_is_a_pixel_rounded_twice_is_refused(tmp_path: Path) -> None:
    g = with_constant(Graph(), "Mul", 1 / 3)
    with_constant(g, "GreaterOrEqual", np.float32(51 / 255 / 3))
    path = chosen(g, 1.0, -1.0).node("Flatten").matmul(240, 3).save(tmp_path / "net.onnx")
    with pytest.raises(ImporterError, match=r"\(GreaterOrEqual\): a pixel of level 51 lies on its threshold"):
        read(path)


@pytest.mark.parametrize("axis", [2, 3])
def test_pad_of_one_axis(tmp_path: Path, axis: int) -> None:
    g = signs()  # 6x8
    g.opset = 18
    g.node("Pad", g.constant([1, 1], np.int64), g.constant(-1.0), g.constant([axis], np.int64))
    rows, columns = (6, 6) if axis == 2 else (4, 8)
    g.conv(5, 6).norm(6).bipolar().node("Flatten").matmul(6 * rows * columns, 3)
    assert check(g, tmp_path).layers[1].padding == ((1, 0) if axis == 2 else (0, 1))  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_pads_that_differ_on_both_sides(tmp_path: Path, value: float) -> None:
    """As TensorFlow pads strided windows: more below and on the right."""
    g = signs()  # 6x8 -> 9x9
    g.node("Pad", g.constant([0, 0, 1, 0, 0, 0, 2, 1], np.int64), g.constant(value))
    g.conv(5, 6).norm(6).bipolar().node("Flatten").matmul(6 * 7 * 7, 3)
    layer = check(g, tmp_path).layers[1]
    assert isinstance(layer, BinaryConv2d)
    assert (layer.padding, layer.padding_value) == ((1, 0, 2, 1), value)


@pytest.mark.parametrize("axes", [None, [2, 3], [-1, -2]])
@pytest.mark.parametrize("value", [None, -1.0])
def test_pad_of_some_axes(tmp_path: Path, axes: list[int] | None, value: float | None) -> None:
    g = signs()
    g.opset = 18
    pads = [1, 2] * 2 if axes == [2, 3] else [2, 1] * 2 if axes else [0, 0, 1, 2] * 2
    inputs = [g.constant(pads, np.int64), "" if value is None else g.constant(value)]
    g.node("Pad", *inputs, *([] if axes is None else [g.constant(axes, np.int64)]))
    g.conv(5, 6).norm(6).bipolar().node("Flatten").matmul(6 * 6 * 10, 3)
    model = check(g, tmp_path)
    assert model.layers[1].padding == (1, 2)  # type: ignore[union-attr]
    assert model.layers[1].padding_value == (0 if value is None else -1)  # type: ignore[union-attr]


@pytest.mark.parametrize("at", [0.0, 0.5])
@pytest.mark.parametrize("case", ["x > t", "x >= t"])
def test_relu_between_batch_norm_and_sign(tmp_path: Path, case: str, at: float) -> None:
    """One threshold a channel; constant channels where the ReLU has decided the comparison."""
    op, is_second, true, false = SIGNS[case]
    g = Graph().conv(3, 6).norm(6).node("Relu")
    with_constant(g, "Sub", np.asarray([-0.1, 0.0, 0.1, 0.2, 0.0, 0.3]).reshape(6, 1, 1))
    g = chosen(compared(g, op, at, is_second), true, false)
    check(g.node("Flatten").matmul(6 * 48, 3), tmp_path)


def test_sign_behind_relu_gives_0_and_1(tmp_path: Path) -> None:
    check(first().norm(5).node("Relu").node("Sign").node("Flatten").matmul(5 * 48, 3), tmp_path)


def clipped(g: Graph, low: float, high: float) -> Graph:
    return g.node("Clip", g.constant(low), g.constant(high))


def test_signed_quant_of_one_bit_gives_signs() -> None:
    """As qonnx 1.0.0 executes it, narrow or not; by its integer bounds alone it would give -1 and 0, or only 0."""
    x = np.asarray([-3.0, -0.1, 0.0, 0.1, 3.0], dtype=np.float32)
    for narrow in (0, 1):
        np.testing.assert_array_equal(
            quantize(x, 0.5, 0.0, 1.0, 1, narrow, "ROUND"), [-0.5, -0.5, 0.5, 0.5, 0.5]
        )


def test_weights_of_a_quant_of_one_bit(tmp_path: Path) -> None:
    g = Graph()
    latent, one_bit = g.constant(g.rng.normal(size=(5, 3, 3, 3))), [g.constant(v) for v in (0.3, 0.0, 1.0)]
    g.nodes.append(
        onnx.helper.make_node("Quant", [latent, *one_bit], ["w"], domain=DOMAIN, signed=1, narrow=1)
    )
    g.node("Conv", "w").norm(5).bipolar().node("Flatten").matmul(5 * 48, 3)
    check(g, tmp_path)


def test_unsigned_quant_rounds_a_half_to_even(tmp_path: Path) -> None:
    """x = 0.5 quantizes to 0: the comparison is strict. All sums of this net are whole, so that halves occur."""
    graph = Graph()
    graph.node("Sub", graph.constant(0.5)).bipolar().conv(3, 8, kernel=1)  # sums -3, -1, 1, 3
    graph.node("Mul", graph.constant(np.asarray([0.5, -0.5] * 4).reshape(8, 1, 1)))
    graph.node(
        "Quant",
        graph.constant(1.0),
        graph.constant(0.0),
        graph.constant(1.0),
        domain=DOMAIN,
        signed=0,
        narrow=0,
    )
    graph.node("Flatten").matmul(8 * 80, 3)
    check(graph, tmp_path)


def test_channels_last_and_flatten_orders(tmp_path: Path) -> None:
    g = Graph()
    g.input_shape = ["N", 8, 10, 3]
    g.node("Transpose", perm=[0, 3, 1, 2]).conv(3, 5).norm(5).bipolar()
    g.node("Transpose", perm=[0, 2, 3, 1]).node("Reshape", g.constant([1, -1], np.int64)).matmul(5 * 48, 3)
    check(g, tmp_path)


def test_softmax_and_output_bits(tmp_path: Path) -> None:
    g = Graph().conv(3, 5).norm(5).bipolar().node("Flatten").matmul(5 * 48, 3).norm(3).bipolar(0.5)
    assert isinstance(check(g, tmp_path).layers[-1], OutputBits)


def top_of(g: Graph) -> Graph:
    g.node("TopK", g.constant([1], np.int64))
    g.nodes[-1].output.append("place")
    g.tensor = "place"
    return g


TAILS: dict[str, Callable[[Graph], Graph]] = {
    "Softmax": lambda g: g.node("Softmax", axis=1).node("Identity"),
    "LogSoftmax": lambda g: g.node("LogSoftmax", axis=-1),
    "Sigmoid": lambda g: g.node("Sigmoid"),
    "ArgMax": lambda g: g.node("Softmax").node("ArgMax", axis=1, keepdims=0),
    "TopK": top_of,
}


@pytest.mark.parametrize("case", TAILS)
def test_what_follows_the_logits_is_left_out(tmp_path: Path, case: str) -> None:
    """The parity report compares logits, not the scores or the class."""
    g = TAILS[case](signs().node("Flatten").matmul(5 * 48, 3).norm(3))
    assert isinstance(check(g, tmp_path).layers[-1], OutputDense)


def test_softmax_had_another_axis_before_opset_13(tmp_path: Path) -> None:
    """Of (N, classes, 1, 1) that is the axis of the classes, and since then the last."""
    check(of_opset(12, whole_map()).node("Softmax"), tmp_path)
    path = whole_map().node("Softmax").save(tmp_path / "since.onnx")
    with pytest.raises(ImporterError, match="is taken for that of the classes"):
        read(path)


def test_nodes_that_the_logits_do_not_need(tmp_path: Path) -> None:
    g = first().norm(5)
    kept = g.tensor
    g.node("Tanh")
    g.tensor = kept
    g.bipolar()
    kept = g.tensor
    g.conv(5, 5).norm(5)
    g.tensor = kept
    check(g.pool().node("Flatten").matmul(5 * 12, 3), tmp_path)


def test_squeeze_of_a_map_of_one_pixel(tmp_path: Path) -> None:
    g = signs()
    g.node("Conv", g.weights(6, 5, 6, 8)).norm(6).bipolar()
    check(g.node("Squeeze", g.constant([2, -1], np.int64)).matmul(6, 3), tmp_path)


def one_pixel(g: Graph, order: str) -> Graph:
    """The flattened map of 240 features as the channels of one pixel, by the operator that the order names."""
    if order == "Unsqueeze":
        return axes_of(g.node("Flatten"), "Unsqueeze", 2, 3)
    if order == "HWC":
        g.node("Transpose", perm=[0, 2, 3, 1])
        return axes_of(g, "Reshape", 1, 1, 1, 240).node("Transpose", perm=[0, 3, 1, 2])
    return axes_of(g, "Reshape", 1, -1, 1, 1)


@pytest.mark.parametrize("order", ["CHW", "HWC", "Unsqueeze"])
@pytest.mark.parametrize("before", [True, False])
def test_convolutions_of_one_pixel_as_dense_layers(tmp_path: Path, order: str, before: bool) -> None:
    """As converters write fully connected layers (Larq's), and people; signs before the reshape or behind."""
    g = first().norm(5)
    g = one_pixel(g.bipolar(), order) if before else one_pixel(g, order).bipolar()
    g.node("Conv", g.weights(6, 240, 1, 1)).norm(6).bipolar().node("Conv", g.weights(3, 6, 1, 1))
    model = check(g.node("Flatten"), tmp_path)
    assert [layer.kind for layer in model.layers][-2:] == ["binary_dense", "output_dense"]


@pytest.mark.parametrize("shape", [[2, -1], [0, -1], [2, 240]])
def test_graph_for_a_fixed_batch(tmp_path: Path, shape: list[int]) -> None:
    g = signs()
    g.input_shape = [2, 3, 8, 10]
    check(g.node("Reshape", g.constant(shape, np.int64)).matmul(240, 3), tmp_path)


def test_reshape_that_takes_0_at_its_word(tmp_path: Path) -> None:
    g = signs()
    g.opset = 14
    check(g.node("Reshape", g.constant([1, -1], np.int64), allowzero=1).matmul(240, 3), tmp_path)


def test_batch_size_from_a_shape_with_bounds(tmp_path: Path) -> None:
    """``x.view(x.shape[0], -1)`` as PyTorch writes it from opset 15 on."""
    g = signs()
    g.opset = 15
    kept = g.tensor
    g.node("Shape", start=0, end=1).node("Concat", g.constant([-1], np.int64), axis=0)
    shape, g.tensor = g.tensor, kept
    check(g.node("Reshape", shape).matmul(240, 3), tmp_path)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(tmp_path: Path, auto_pad: str) -> None:
    g = signs()
    g.node("Conv", g.weights(6, 5, 3, 3), auto_pad=auto_pad).norm(6).bipolar()
    model = check(g.node("Flatten").matmul(6 * (24 if auto_pad == "VALID" else 48), 3), tmp_path)
    assert model.layers[1].padding == ((0, 0) if auto_pad == "VALID" else (1, 1))  # type: ignore[union-attr]


def around(g: Graph, value: float, *pads: int) -> Graph:
    """Pads above, left, below, right."""
    top, left, bottom, right = pads
    return g.node("Pad", g.constant([0, 0, top, left, 0, 0, bottom, right], np.int64), g.constant(value))


#: What stands before a Pad, its value and pads, what follows, and the layers that this makes of the padding.
PADDED: dict[str, tuple[Callable[[Graph], Graph], float, tuple[int, ...], Callable[[Graph], Graph], list[str]]] = {
    "zeros before a max pool of any values": (
        lambda g: g.norm(6), 0.0, (1, 0, 1, 2), lambda g: g.pool(3), ["real_conv2d", "max_pool"],
    ),
    "zeros before a max pool of what no value is below": (
        lambda g: g.norm(6).node("Relu"), 0.0, (1, 1, 1, 1), lambda g: g.pool(3).norm(6), ["max_pool"],
    ),
    "the lowest before a max pool": (
        lambda g: g.norm(6), -np.inf, (0, 0, 1, 1), lambda g: g.pool(3, pads=[1, 1, 0, 0]), ["max_pool"],
    ),
    "more zeros than a window": (
        lambda g: g.node("Relu"), 0.0, (2, 2, 2, 2), lambda g: g.pool(2).norm(6), ["real_conv2d", "max_pool"],
    ),
    "a limit below the padding": (
        lambda g: clipped(g.norm(6), -0.5, 0.5), -0.25, (1, 1, 1, 1), lambda g: g.pool(3), ["refused"],
    ),
    "a limit of the padding": (
        lambda g: clipped(g.norm(6), -0.5, 0.5), -0.5, (1, 1, 1, 1), lambda g: g.pool(3), ["max_pool"],
    ),
    "zeros before a mean": (
        lambda g: g.norm(6), 0.0, (1, 1, 0, 1), lambda g: g.node("AveragePool", kernel_shape=[3, 3]), ["average_pool"],
    ),
    "zeros before a mean that counts its own": (
        lambda g: g.norm(6), 0.0, (1, 1, 0, 0),
        lambda g: g.node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), ["average_pool"],
    ),
    "zeros before a mean that does not count its own": (
        lambda g: g.norm(6), 0.0, (1, 1, 0, 0),
        lambda g: g.node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), ["real_conv2d", "average_pool"],
    ),
    "zeros before a batch norm": (
        lambda g: g.norm(6), 0.0, (0, 1, 2, 0), lambda g: g.norm(6), ["real_conv2d"],
    ),
    "zeros before a mean of all": (
        lambda g: g.norm(6), 0.0, (0, 3, 2, 0), lambda g: g.node("GlobalAveragePool"), ["real_conv2d", "average_pool"],
    ),
    "-1 before a max pool of signs": (
        lambda g: g.norm(6).bipolar(), -1.0, (1, 1, 1, 1), lambda g: g.pool(3), ["binary_max_pool"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PADDED)
def test_a_pad_whatever_follows(tmp_path: Path, case: str) -> None:
    before, value, pads, behind, kinds = PADDED[case]
    g = behind(around(before(stem()), value, *pads))
    features = int(np.prod(evaluator(g.model(onnx.helper.make_empty_tensor_value_info(g.tensor))).run(
        None, {"image": g.images()[0]}
    )[0].shape))  # fmt: skip
    if kinds == ["refused"]:
        with pytest.raises(
            ImporterError, match=r"\(MaxPool\): takes values padded with -0.25; only a convolution"
        ):
            read(g.save(tmp_path / "net.onnx"))
        return
    binary = "signs" in case
    model = check(g.node("Flatten").matmul(features, 3) if binary else head(g, features), tmp_path)
    found = [layer.kind for layer in model.layers]
    last = [
        kind
        for kind in found
        if kind in {"real_conv2d", "max_pool", "average_pool", "binary_max_pool", "affine"}
    ]
    assert last[-len(kinds) :] == kinds
    assert last.count("real_conv2d") == kinds.count("real_conv2d")


def test_pad_before_opset_11(tmp_path: Path) -> None:
    g = signs()
    g.opset = 10
    g.node("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=-1.0).conv(5, 6).norm(6).bipolar()
    model = check(g.node("Flatten").matmul(6 * 48, 3), tmp_path)
    assert model.layers[1].padding_value == -1  # type: ignore[union-attr]


def test_constants_in_a_file_beside_the_graph(tmp_path: Path) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    expected = read(path)
    onnx.save(
        onnx.load(str(path)), str(path), save_as_external_data=True, location="net.data", size_threshold=0
    )
    model = import_model(path, tmp_path / "model")
    for layer, other in zip(model.layers, expected.layers):
        np.testing.assert_array_equal(layer.weights, other.weights)  # type: ignore[union-attr]
    assert compare(path, model, frames(8, 10)).difference < 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "missing.data"),
        ("location", "."),
        ("location", "../net.data"),
        ("location", "x" * 5000),
        ("location", "net\0.data"),
        ("offset", "-4"),
        ("offset", "1000000"),
        ("length", "0"),
        ("length", "-4"),
        ("length", "1000000"),
        ("length", str((1 << 30) + 4)),
        ("length", "many"),
    ],
)
def test_constants_that_are_not_beside_the_graph_as_it_says(tmp_path: Path, key: str, value: str) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    onnx.save(
        onnx.load(str(path)), str(path), save_as_external_data=True, location="net.data", size_threshold=0
    )
    net = onnx.load(str(path), load_external_data=False)
    (entry,) = [entry for entry in net.graph.initializer[0].external_data if entry.key == key]
    entry.value = value
    onnx.save(net, str(path))
    with pytest.raises(ImporterError, match="the data of 'c0', in another file, cannot be read") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_labels_and_name_come_from_metadata_or_the_caller(tmp_path: Path) -> None:
    g = Graph().conv(3, 5).norm(5).bipolar().node("Flatten").matmul(5 * 48, 2)
    path = g.save(tmp_path / "net.onnx", labels="left\nstraße", name="arrows", fit="stretch")
    model = read(path)
    assert (model.labels, model.name, model.input.fit) == (("left", "straße"), "arrows", "stretch")
    model = import_model(path, tmp_path / "model", labels=["a", "b"], name="ab")
    assert (model.labels, model.name) == (("a", "b"), "ab")
    with pytest.raises(ImporterError, match=r"net\.onnx: labels: 3 of them"):
        import_model(path, tmp_path / "model", labels=["a", "b", "c"])


def test_spare_bits_are_zero(tmp_path: Path) -> None:
    g = (
        Graph()
        .conv(3, 33)
        .norm(33)
        .bipolar()
        .pool()
        .conv(33, 65)
        .norm(65)
        .bipolar()
        .node("Flatten")
        .matmul(130, 3)
    )
    for layer in check(g, tmp_path).layers:
        channels = layer.in_channels if isinstance(layer, Conv2d) else layer.in_shape[2]  # type: ignore[union-attr]
        words = layer.weights.reshape(-1, bits.words_for(channels))  # type: ignore[union-attr]
        assert not np.any(words & ~bits.spare_mask(channels))


# -- residual nets


def stem(seed: int = 0, channels: int = 6) -> Graph:
    """Pixels to the first stream, (N, channels, 8, 10)."""
    return Graph(seed).conv(3, channels, pads=1).norm(channels)


def column(g: Graph, channels: int, spread: float = 0.3) -> str:
    """A random number a channel."""
    return g.constant(spread * g.rng.normal(size=(channels, 1, 1)))


def body(g: Graph, channels: int, more: int = 0, stride: int = 1, **options: Any) -> tuple[str, str]:
    """RSign, convolution and batch norm; what they give, and the stream that they began with."""
    before = g.tensor
    more = more or channels
    g.node("Sub", column(g, channels)).bipolar().pad(1, -1.0)
    g.conv(channels, more, stride=stride, **options).norm(more)
    return g.tensor, before


def join(g: Graph, first: str, second: str, name: str = "") -> Graph:
    g.tensor = first
    return g.node("Add", second, name=name)


def head(g: Graph, features: int) -> Graph:
    return g.bipolar().node("Flatten").matmul(features, 4).norm(4)


def halved(g: Graph, stream: str, channels: int, tile: bool = False) -> str:
    """The shortcut of a block that halves the size and doubles the channels."""
    g.tensor = stream
    g.node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    if tile:
        g.node("Tile", g.constant([1, 2, 1, 1], np.int64))
    else:
        g.node("Concat", g.tensor, axis=1)
    return g.tensor


@pytest.mark.parametrize("seed", range(3))
def test_residual_net_of_bi_real_style(tmp_path: Path, seed: int) -> None:
    """Plain signs, zero padding, batch norm, either order of the operands."""
    g = stem(seed)
    before = g.tensor
    g.node("Sign").conv(6, 6, pads=1).norm(6)
    join(g, before, g.tensor)
    before = g.tensor
    g.node("Sign").conv(6, 12, pads=1, stride=2).norm(12)
    result = g.tensor
    head(join(g, result, halved(g, before, 6)), 12 * 4 * 5)
    model = check(g, tmp_path)
    assert [layer.kind for layer in model.layers] == [
        *("scaled_input_conv2d", "sign", "scaled_binary_conv2d", "add"),
        *("sign", "average_pool", "concat", "scaled_binary_conv2d", "add", "sign", "output_dense"),
    ]
    convs = [layer for layer in model.layers if isinstance(layer, ScaledBinaryConv2d)]
    assert [layer.padding_value for layer in convs] == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_residual_net_of_quicknet_style(tmp_path: Path, seed: int) -> None:
    """ReLU between convolution and batch norm; scales of the weights that differ; an odd row that is left out."""
    g = Graph(seed).conv(3, 4, pads=2).pool().norm(4)  # 5x6
    scale = np.linspace(0.05, 0.2, 4).reshape(4, 1, 1, 1)
    before = g.tensor
    g.bipolar().pad(1, -1.0).conv(4, 4, scale=scale).node("Relu").norm(4)
    before = join(g, g.tensor, before).tensor
    g.bipolar().conv(4, 8, kernel=2, stride=2).node("Relu").norm(8)
    result = g.tensor
    head(join(g, result, halved(g, before, 4, tile=True)), 8 * 2 * 3)
    model = check(g, tmp_path)
    # The norm behind ReLU goes before it: a limit that it scales and shifts as well.
    assert [layer.kind for layer in model.layers[:5]] == [
        *("scaled_input_conv2d", "sign", "scaled_binary_conv2d", "clip", "add"),
    ]


@pytest.mark.parametrize("activation", ["PRelu", "LeakyRelu"])
@pytest.mark.parametrize("seed", range(2))
def test_residual_net_of_reactnet_style(tmp_path: Path, seed: int, activation: str) -> None:
    """RSign as MultiThreshold, a slope a channel, scales and biases instead of batch norm, a dense layer behind."""
    g = stem(seed)
    for _ in range(2):
        before = g.tensor
        thresholds = g.constant(0.3 * g.rng.normal(size=(6, 1)))
        g.node("MultiThreshold", thresholds, domain=DOMAIN, out_scale=2.0, out_bias=-1.0).pad(1, -1.0).conv(
            6, 6
        )
        if activation == "PRelu":
            g.node("PRelu", column(g, 6, 1.0))
        else:
            g.node("LeakyRelu", alpha=0.2)
        g.node("Mul", column(g, 6, 0.05)).node("Add", column(g, 6))
        join(g, before, g.tensor)
    g.node("Sub", column(g, 6)).bipolar().node("Flatten").matmul(6 * 8 * 10, 7).norm(7)
    head(g, 7)
    block = ("sign", "scaled_binary_conv2d", "prelu", "affine", "add")
    assert [layer.kind for layer in check(g, tmp_path).layers] == [
        *("scaled_input_conv2d", *block, *block, "sign", "binary_dense", "output_dense"),
    ]


def test_attributes_that_a_node_leaves_out_are_those_of_the_standard(tmp_path: Path) -> None:
    """ONNX: epsilon of BatchNormalization is 1e-5, alpha of LeakyRelu 0.01."""
    g = stem()
    before = g.tensor
    g.bipolar().pad(1, -1.0).conv(6, 6).node("LeakyRelu")
    join(g, before, g.tensor).bipolar().node("Flatten").matmul(6 * 8 * 10, 4)
    variance = np.array([0.0, 1e-5, 1e-3, 1.0])
    g.node("BatchNormalization", *map(g.constant, (np.ones(4), np.zeros(4), np.zeros(4), variance)))
    model = import_model(g.save(tmp_path / "net.onnx"), tmp_path / "model")
    # One over the root of variance and epsilon, within two roundings of float32.
    np.testing.assert_allclose(model.layers[-1].scale, (variance + 1e-5) ** -0.5, rtol=2**-22)  # type: ignore[union-attr]
    (bent,) = [layer for layer in model.layers if isinstance(layer, PRelu)]
    assert np.all(bent.slope == np.float32(0.01))


def test_a_bend_of_scales_of_both_signs(tmp_path: Path) -> None:
    """Where the scale is negative, values fall below 0 where the sum rises above it."""
    scales = np.array([-3, -1, -0.5, 0.5, 1, 3]).reshape(6, 1, 1) / 20
    g = stem()
    before = g.tensor
    g.bipolar().pad(1, -1.0).conv(6, 6).node("Mul", g.constant(scales))
    g.node("PRelu", g.constant(np.full((6, 1, 1), 0.25)))
    model = check(head(join(g, before, g.tensor), 6 * 8 * 10), tmp_path)
    convolution, bent = model.layers[2:4]
    assert isinstance(convolution, ScaledBinaryConv2d)
    assert isinstance(bent, PRelu)
    np.testing.assert_array_equal(np.sign(convolution.scale), np.sign(scales.reshape(-1)))
    assert np.all(bent.slope == 0.25)


def test_negated_signs_of_a_residual(tmp_path: Path) -> None:
    g = stem()
    before = g.tensor
    g.bipolar().node("Neg").pad(1, -1.0).conv(6, 6).norm(6)
    check(head(join(g, before, g.tensor), 6 * 8 * 10), tmp_path)


@pytest.mark.parametrize("case", ["opposites", "negated twice", "pooled"])
def test_what_is_made_of_signs_changes_them_for_nobody_else(tmp_path: Path, case: str) -> None:
    """Two convolutions take one tensor of signs; it was negated, or pooled, for both where one of them asked for it."""
    g = first().norm(5).bipolar().conv(5, 7).norm(7).bipolar()
    taken = [g.tensor] * 2
    if case != "pooled":
        taken[1] = g.node("Neg").tensor
        taken[0] = taken[1] if case == "negated twice" else taken[0]
    else:
        taken[1] = g.node("Identity").pool().tensor
    logits = []
    for tensor, pixels in zip(taken, (4 * 6, 2 * 3 if case == "pooled" else 4 * 6)):
        g.tensor = tensor
        g.conv(7, 9, kernel=1).norm(9).bipolar()
        logits.append(g.node("Flatten").matmul(9 * pixels, 3).tensor)
    join(g, *logits)
    check(g, tmp_path)


def reshaped_to_its_shape(g: Graph) -> Graph:
    kept = g.tensor
    shape = g.node("Shape").tensor
    g.tensor = kept
    return g.node("Reshape", shape)


UNCHANGED: dict[str, Callable[[Graph], Graph]] = {
    "Dropout": lambda g: g.node("Dropout"),
    "Pad of nothing": lambda g: pads_of(g, *[0] * 8),
    "Reshape to its own shape": lambda g: axes_of(g, "Reshape", 1, 5, 6, 8),
    "Reshape to its Shape": reshaped_to_its_shape,
    "signs of signs": lambda g: with_constant(g, "Mul", 3.0).bipolar(),
    "signs of signs and a half": lambda g: with_constant(g, "Add", 0.5).bipolar(),
    "integers and back": lambda g: g.node("Cast", to=7).node("Cast", to=1),
    "negated twice": lambda g: turned(turned(g, "Sub", 1.0), "Sub", 1.0),
    "turned and back": lambda g: g.node("Transpose", perm=[0, 3, 1, 2]).node("Transpose", perm=[0, 2, 3, 1]),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_nodes_that_change_nothing(tmp_path: Path, case: str) -> None:
    before = import_model(signs().node("Flatten").matmul(240, 3).save(tmp_path / "a.onnx"), tmp_path / "a")
    after = check(UNCHANGED[case](signs()).node("Flatten", axis=-3).matmul(240, 3), tmp_path)
    for layer, other in zip(before.layers, after.layers):
        np.testing.assert_array_equal(layer.weights, other.weights)  # type: ignore[union-attr]


def test_signs_of_pixels_whatever_writes_them(tmp_path: Path) -> None:
    """One channel has a scale of 0, and is +1 because its offset is positive."""
    scale, offset = (np.asarray(v).reshape(3, 1, 1) for v in ([1.0, 0.0, 2.0], [-0.3, 0.25, -0.9]))
    g = with_constant(with_constant(Graph(), "Mul", scale), "Add", offset).node("Sign")
    model = check(g.conv(3, 5).norm(5).bipolar().node("Flatten").matmul(5 * 48, 3), tmp_path)
    # 0.3 * 255 = 76.5, 0.45 * 255 = 114.75
    np.testing.assert_array_equal(model.layers[0].thresholds, [[77], [0], [115]])  # type: ignore[union-attr]


def test_max_pool_of_bent_sums(tmp_path: Path) -> None:
    """Before and behind the activation: as long as values rise with the sum, or fall with it, both are the same."""
    for order in (("MaxPool", "PRelu"), ("PRelu", "Mul", "MaxPool")):
        g = stem()
        before = g.tensor
        g.bipolar().pad(1, -1.0).conv(6, 6)
        for op in order:
            if op == "MaxPool":
                g.pool()
            elif op == "PRelu":
                g.node("PRelu", g.constant(np.linspace(0, 0.5, 6).reshape(6, 1, 1)))
            else:  # both signs
                g.node("Mul", g.constant(np.linspace(-1, 1, 6).reshape(6, 1, 1)))
        g.norm(6)
        result = g.tensor
        g.tensor = before
        g.node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
        head(join(g, result, g.tensor), 6 * 4 * 5)
        model = check(g, tmp_path)
        fused = [layer.pool for layer in model.layers if isinstance(layer, ScaledBinaryConv2d)]
        pools = [layer.kind for layer in model.layers if layer.kind == "max_pool"]
        assert (fused, pools) == (([Pool(2, 2)], []) if order[0] == "MaxPool" else ([None], ["max_pool"]))


def test_activation_without_a_shortcut(tmp_path: Path) -> None:
    """Behind a PReLU of negative slope both large and small sums reach a threshold."""
    g = Graph().conv(3, 5).norm(5).bipolar().conv(5, 6)
    g.node("PRelu", g.constant(np.linspace(-1, 1, 6).reshape(6, 1, 1))).norm(6)
    head(g, 6 * 4 * 6)
    model = check(g, tmp_path)
    assert [layer.kind for layer in model.layers] == [
        *("input_conv2d", "scaled_binary_conv2d", "prelu", "sign", "output_dense"),
    ]


def test_offset_of_a_shortcut_is_added(tmp_path: Path) -> None:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("Add", column(g, 6, 1.0))
    head(join(g, result, g.tensor), 6 * 8 * 10)
    check(g, tmp_path)


def test_values_may_be_large_and_too_large_ones_are_refused(tmp_path: Path) -> None:
    def net(factor: float) -> Path:
        g = stem()
        g.node("Mul", g.constant(factor))
        before = g.tensor
        g.bipolar().pad(1, -1.0).conv(6, 6)
        head(join(g, before, g.tensor), 6 * 8 * 10)
        return g.save(tmp_path / "net.onnx")

    for factor in (1e-6, 1e7):
        assert [layer.kind for layer in read(net(factor)).layers][:3] == [
            *("scaled_input_conv2d", "sign", "scaled_binary_conv2d"),
        ]
    with pytest.raises(ImporterError, match="conv1: channel . of its signal can reach .*; float32 holds 1e"):
        read(net(1e37))


def first() -> Graph:
    return Graph().conv(3, 5)


def signs() -> Graph:
    return first().norm(5).bipolar()


def with_constant(g: Graph, op: str, value: Any, name: str = "", **attributes: Any) -> Graph:
    return g.node(op, g.constant(value), name=name, **attributes)


def ternary() -> Graph:
    g = Graph()
    return with_constant(g, "Conv", np.sign(np.round(g.rng.normal(size=(5, 3, 3, 3)))), name="first")


def shortcut() -> Graph:
    g = signs()
    before = g.tensor
    g.pad(1, -1.0).conv(5, 5).norm(5).bipolar()
    return g.node("Add", before, name="shortcut")


def grouped() -> Graph:
    g = Graph().conv(3, 4).norm(4).bipolar()
    return g.node("Conv", g.weights(4, 2, 3, 3), group=2, name="grouped")


def four_bits() -> Graph:
    g = first()
    return g.node("Quant", g.constant(0.5), g.constant(0.0), g.constant(4.0), domain=DOMAIN)


def padded_after_offset() -> Graph:
    return with_constant(with_constant(Graph(), "Mul", 2.0), "Sub", 1.0).conv(3, 5, pads=1)


def sign_of_even_sums() -> Graph:
    return with_constant(Graph(), "Sub", 0.5).bipolar().conv(3, 5, kernel=2).node("Sign")


def skips_two() -> Graph:
    g = stem()
    result, before = body(g, 6)
    join(g, result, before)
    body(g, 6)
    return join(g, g.tensor, before, "skip")


def scaled_shortcut() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("Mul", column(g, 6))
    return join(g, result, g.tensor, "skip")


def two_streams() -> Graph:
    g = stem()
    result, before = body(g, 6)
    join(g, result, before)
    return join(g, g.tensor, before, "skip")


def two_convolutions() -> Graph:
    g = signs()
    before = g.tensor
    g.pad(1, -1.0).conv(5, 5).norm(5)
    result = g.tensor
    g.tensor = before
    g.node("Conv", g.weights(5, 5, 1, 1), name="second")
    return join(g, result, g.tensor)


def two_signs() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("Sub", column(g, 6)).node("BipolarQuant", g.constant(1.0), domain=DOMAIN, name="second")
    return join(g, result, g.tensor)


def bent_after_norm() -> Graph:
    g = stem()
    body(g, 6)
    return g.node("Relu", name="bend")


def bent_stream() -> Graph:
    g = stem()
    join(g, *body(g, 6))
    return g.node("PRelu", column(g, 6), name="bend")


def folded_pool() -> Graph:
    g = stem().bipolar().conv(6, 6)
    return g.node("PRelu", g.constant(np.full((6, 1, 1), -0.5))).pool()


def joined_streams() -> Graph:
    g = stem()
    result, before = body(g, 6)
    join(g, result, before)
    return g.node("Concat", before, axis=1, name="join")


def divided(sizes: Sequence[int], at: int = 0, axis: int = 1, whole: int = 0) -> Graph:
    """Parts of the channels, of which the one at ``at`` goes on beside the last one."""
    g = stem()
    channels = whole or sum(sizes)
    g.conv(6, channels).norm(channels)
    parts = [f"part{index}" for index in range(len(sizes))]
    more = [g.constant(sizes, np.int64)] if len(set(sizes)) > 1 else []
    g.nodes.append(onnx.helper.make_node("Split", [g.tensor, *more], parts, "split", axis=axis))
    g.tensor = parts[at]
    return g.node("Concat", parts[-1], axis=1)


def sliced_channels_last() -> Graph:
    g = stem().conv(6, 8).norm(8).node("Transpose", perm=[0, 2, 3, 1])
    begin, end, axes, step = ([0, 0, 2], [99, 99, 7], [1, 2, 3], [2, 2, 1])
    g.node("Slice", *(g.constant(values, np.int64) for values in (begin, end, axes, step)))
    return g.node("Transpose", perm=[0, 3, 1, 2])


def tiled() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("Tile", g.constant([1, 10**12, 1, 1], np.int64), name="tile")
    return join(g, result, g.tensor)


def averaged_signs() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("AveragePool", kernel_shape=[2, 2], strides=[2, 2]).bipolar()
    return join(g, result, g.tensor)


def large_average() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], name="mean")
    return join(g, result, g.tensor)


def pooled_branch() -> Graph:
    g = signs()
    before = g.tensor
    g.pool()
    return join(g, g.tensor, before)


def whole_stream() -> Graph:
    """All sums with weight 1 and no batch norm: the stream can be 0."""
    g = Graph().conv(3, 6).norm(6).bipolar().conv(6, 6)
    before = g.tensor
    g.bipolar().pad(1, -1.0).conv(6, 6)
    return join(g, before, g.tensor).node("Sign", name="sign")


def dropping() -> Graph:
    g = signs()
    return g.node("Dropout", g.constant(0.5), g.constant(True, np.bool_))


def given_twice() -> Graph:
    g = first()
    g.node("Identity", name="again")
    g.tensor = g.nodes[-1].output[0] = g.nodes[-1].input[0]
    return g


def only_zeros() -> Graph:
    g = first()
    return g.node("Quant", *map(g.constant, (1.0, 0.0, 1.0)), domain=DOMAIN, signed=0, narrow=1)


def same_of_even_size() -> Graph:
    g = signs()
    return g.node("Conv", g.weights(6, 5, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])


def bytes_image() -> Graph:
    g = Graph()
    g.input_type = onnx.TensorProto.UINT8
    return g


def wrapping() -> Graph:
    g = bytes_image()
    return g.node("Sub", g.constant(128, np.uint8))


def of_opset_11() -> Graph:
    g = first()
    g.opset = 11
    return with_constant(g, "GreaterOrEqual", 0.0)


def swapped() -> Graph:
    g = signs().node("Flatten").matmul(240, 3)
    inputs = g.nodes[-1].input
    inputs[0], inputs[1] = inputs[1], inputs[0]
    return g


def biased(g: Graph) -> Graph:
    return g.node("Conv", g.weights(6, 5, 3, 3), g.constant([0.5]))


def random_weights() -> Graph:
    g = signs()
    g.nodes.append(onnx.helper.make_node("RandomNormal", [], ["noise"], "noise", shape=[5, 5, 3, 3]))
    return g.node("Conv", "noise")


def without_numbers() -> Graph:
    g = signs()
    g.opset = 14
    return g.node("Reshape", g.constant([0, 240], np.int64), allowzero=1)


def whole_map() -> Graph:
    g = signs()
    return g.node("Conv", g.weights(3, 5, 6, 8))


def turned(g: Graph, op: str, value: Any) -> Graph:
    """A node whose first input is the constant."""
    g.node(op, g.constant(value))
    inputs = g.nodes[-1].input
    inputs[0], inputs[1] = inputs[1], inputs[0]
    return g


def with_constants(g: Graph, op: str, *values: Any, **attributes: Any) -> Graph:
    return g.node(op, *map(g.constant, values), **attributes)


def pads_of(g: Graph, *pads: int, **attributes: Any) -> Graph:
    return g.node("Pad", g.constant(pads, np.int64), **attributes)


def axes_of(g: Graph, op: str, *axes: int) -> Graph:
    return g.node(op, g.constant(axes, np.int64))


def of_opset(opset: int, g: Graph) -> Graph:
    g.opset = opset
    return g


def shortcut_of(op: str, *constants: Any, **attributes: Any) -> Graph:
    """A residual whose shortcut has one node more."""
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node(op, *(g.constant(value, np.int64) for value in constants), **attributes)
    return join(g, result, g.tensor)


def wider() -> Graph:
    g = stem()
    return join(g, *body(g, 6, more=12))


def averaged_twice() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    for _ in range(2):
        g.node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    return join(g, result, g.tensor)


def limited_twice() -> Graph:
    g = clipped(first().norm(5), -1.0, 1.0)
    before = g.tensor
    return join(g, g.bipolar().tensor, before)


def channels_last() -> Graph:
    g = Graph()
    g.input_shape = ["N", 8, 10, 3]
    return g


def constant_output() -> Graph:
    g = first()
    g.tensor = g.constant(1.0)
    return g.node("Neg")


def of_two_outputs() -> Graph:
    g = first().norm(5)
    g.nodes[-1].output.append("mean")
    return g


def branching() -> Graph:
    g = first()
    value = onnx.helper.make_tensor_value_info("v", 1, None)
    branch = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["c0"], ["v"])], "b", [], [value])
    condition = g.constant(True, np.bool_)
    g.nodes.append(
        onnx.helper.make_node("If", [condition], ["chosen"], "if", then_branch=branch, else_branch=branch)
    )
    return g.node("Add", "chosen")


def quantized(g: Graph, *values: float, **attributes: Any) -> Graph:
    return g.node("Quant", *map(g.constant, values), domain=DOMAIN, **attributes)


def biased_matrix() -> Graph:
    g = signs().node("Flatten")
    return g.node("Gemm", g.weights(240, 3), g.constant([1.0, 2.0]))


def transposed_input() -> Graph:
    g = signs().node("Flatten")
    return g.node("Gemm", g.weights(240, 3), transA=1)


def squared() -> Graph:
    g = first()
    return g.node("Mul", g.tensor)


def single_pixel() -> Graph:
    g = signs()
    return g.node("Conv", g.weights(6, 5, 6, 8)).norm(6).bipolar()


def joined_rows() -> Graph:
    g = stem()
    result, before = body(g, 6)
    g.tensor = before
    g.node("Concat", before, axis=2)
    return join(g, result, g.tensor)


THREE = np.asarray([0.2, 0.3, 0.4]).reshape(3, 1, 1)
FIVE = np.asarray([0.0, 1, 1, 1, 1]).reshape(5, 1, 1)
REFUSED: dict[str, tuple[Callable[[], Graph], str]] = {
    "parts of the rows": (
        lambda: divided([4, 4], axis=2),
        r"node 'split' \(Split\): does not split channels",
    ),
    "parts of other channels": (
        lambda: divided([3, 4], whole=8),
        r"\(Split\): splits 8 channels into \[3, 4\]",
    ),
    "the largest of channels": (
        lambda: stem().node("ReduceMax", axes=[1, 2], keepdims=1),
        r"\(ReduceMax\): reduces other axes than height and width",
    ),
    "ternary weights": (
        ternary,
        r"node 'first' \(Conv\): \d+ of its weights are exactly 0, the others \+c and -c",
    ),
    "shortcut": (
        shortcut,
        r"node 'shortcut' \(Add\): takes signs where a net has real values",
    ),
    "two signs": (
        two_signs,
        r"\(Add\): takes signs where a net has real values",
    ),
    "ReLU before >= 0": (
        lambda: chosen(with_constant(first().norm(5).node("Relu"), "GreaterOrEqual", 0.0), 1.0, -1.0),
        r"\(GreaterOrEqual\): takes signs of values .* in every channel",
    ),
    "truth values": (
        lambda: with_constant(whole_sums(), "Less", 0.0).conv(6, 3),
        r"\(Conv\): takes truth values; a Cast or a Where must stand before it",
    ),
    "bytes that wrap around": (
        wrapping,
        r"\(Sub\): leaves the range of uint8",
    ),
    "bytes that are not cast": (
        lambda: bytes_image().conv(3, 5),
        r"\(Conv\): takes uint8; a Cast to floats",
    ),
    "an operator of a later opset": (
        of_opset_11,
        r"\(GreaterOrEqual\): is no operator of opset 11",
    ),
    "an attribute that there is not": (
        lambda: first().node("Relu", slope=1.0),
        r"\(Relu\): has an attribute 'slope'",
    ),
    "too many inputs": (lambda: with_constant(first(), "Neg", 0.0), r"\(Neg\): has 2 inputs"),
    "swapped inputs": (
        swapped,
        r"\(MatMul\): takes the activation as its input 2",
    ),
    "a bias of another length": (
        lambda: biased(first().norm(5).bipolar()),
        r"\(Conv\): has a bias of shape \[1\] for 6 outputs",
    ),
    "random numbers": (
        random_weights,
        r"\(RandomNormal\): gives random numbers",
    ),
    "softmax of another axis": (
        lambda: whole_map().node("Softmax", axis=-1),
        r"the last axis of 't\d+' is taken for that of the classes",
    ),
    "too many channels": (
        tiled,
        r"node 'tile' \(Tile\): repeats channels \d+ times; there can be 1 to 64",
    ),
    "signs of a mean": (
        averaged_signs,
        r"\(Add\): takes signs where a net has real values",
    ),
    "average pool of 3x3": (
        large_average,
        r"\(Add\): adds \[1, 6, 3, 4\] to \[1, 6, 8, 10\]",
    ),
    "signs pooled beside": (
        pooled_branch,
        r"\(Add\): takes signs where a net has real values",
    ),
    "a stream that can be 0": (
        whole_stream,
        r"the output 't\d+' does not come from a Gemm or MatMul, or from a Conv of the whole map",
    ),
    "groups": (
        grouped,
        r"node 'grouped' \(Conv\): group 2; only binary weights of group 1",
    ),
    "unknown op": (lambda: first().node("Tanh", name="tanh"), r"node 'tanh' \(Tanh\): .* no such operation"),
    "an op of another domain": (
        lambda: first().node("Relu", domain=DOMAIN, name="bend"),
        r"node 'bend' \(Relu\): the model format has no such operation",
    ),
    "an unknown domain": (
        lambda: first().node("Relu", domain="org.example", name="bend"),
        r"node 'bend' \(Relu\): its domain 'org.example' is unknown",
    ),
    "negative pads": (
        lambda: signs().conv(5, 5, pads=-1),
        r"\(Conv\): window \[3, 3\], strides \[1, 1\], pads \[-1, -1, -1, -1\]; only .* without negative pads",
    ),
    "dilations": (
        lambda: signs().dilated(),
        r"\(Conv\): dilations \[2, 2\]; only 1 can be expressed",
    ),
    "4-bit activations": (four_bits, r"\(Quant\): quantizes to 4 bits"),
    "two pads": (
        lambda: signs().pad(1, -1.0).conv(5, 5, pads=1),
        r"\(Conv\): pads what a Pad has padded already",
    ),
    "a sign that can be 0": (sign_of_even_sums, r"\(Sign\): its input can be 0, where Sign gives 0"),
    "Clip below a threshold": (
        lambda: clipped(first(), -1.0, -0.5).bipolar(),
        r"\(BipolarQuant\): takes signs of values that a Clip or ReLU has left on one side",
    ),
    "Clip of pixels": (
        lambda: clipped(Graph(), 0.1, 1.0).conv(3, 5),
        r"\(Clip\): changes pixels",
    ),
    "training": (
        dropping,
        r"\(Dropout\): is in training mode",
    ),
    "given twice": (given_twice, r"node 'again' \(Identity\): gives 't1', which is there already"),
    "only zeros": (
        only_zeros,
        r"\(Quant\): is narrow, unsigned and of 1 bit",
    ),
    "damaged attribute": (
        lambda: first().node("Transpose", perm=[0, 9, 1, 2], name="turn"),
        r"node 'turn' \(Transpose\): its permutation \[0, 9, 1, 2\] is not one of 4 axes",
    ),
    "name of two lines": (
        lambda: first().node("Tanh", name="two\nlines"),
        r"node 'two\\nlines' \(Tanh\): the model format",
    ),
    "class of the lowest": (
        lambda: signs().node("Flatten").matmul(240, 3).node("ArgMax", axis=0),
        r"\(ArgMax\): the model format has no such operation",
    ),
    "no numbers": (without_numbers, r"\(Reshape\): makes a tensor without numbers"),
    "no end": (signs, r"does not come from a Gemm or MatMul"),
    "several thresholds": (
        lambda: with_constant(first(), "MultiThreshold", np.zeros((5, 3)), domain=DOMAIN),
        r"\(MultiThreshold\): has thresholds of shape \[5, 3\]; one a channel",
    ),
    "a constant for each pixel": (
        lambda: with_constant(first(), "Add", np.arange(240.0).reshape(1, 5, 6, 8)),
        r"\(Add\): a constant of shape \[1, 5, 6, 8\] .* is not one number a channel",
    ),
    "NaN": (lambda: with_constant(first(), "Mul", np.nan), r"\(Mul\): a constant is not finite"),
    "float matrix": (
        lambda: with_constant(
            signs().node("Flatten"), "MatMul", np.linspace(-1, 1, 720).reshape(240, 3), name="head"
        ),
        r"node 'head' \(MatMul\): its weights are not",
    ),
    "a shortcut of fewer channels": (wider, r"\(Add\): adds \[1, 6, 8, 10\] to \[1, 12, 8, 10\]"),
    "pixels of no scale": (
        lambda: with_constant(Graph(), "Mul", 0.0).conv(3, 5),
        r"\(Conv\): a channel of the image is multiplied by 0",
    ),
    "a constant of too many channels": (
        lambda: with_constant(first(), "Add", np.ones((7, 1, 1))),
        r"\(Add\): a constant of shape \[7, 1, 1\] on an activation of \[1, 5, 6, 8\]$",
    ),
    "a constant of too many axes": (
        lambda: with_constant(first(), "Add", np.ones((1, 1, 5, 1, 1))),
        r"\(Add\): a constant of shape \[1, 1, 5, 1, 1\] on an activation",
    ),
    "signs of falling pixels": (
        lambda: with_constant(Graph().node("Neg"), "Add", 0.5).bipolar(),
        r"\(BipolarQuant\): a sign of pixels takes channels first and a positive scale",
    ),
    "signs of pixels, channels last": (
        lambda: with_constant(channels_last(), "Sub", 0.5).bipolar(),
        r"\(BipolarQuant\): a sign of pixels takes channels first",
    ),
    "a threshold beyond all pixels": (
        lambda: with_constant(Graph(), "Sub", 300.0).bipolar(),
        r"\(BipolarQuant\): no pixel reaches a threshold",
    ),
    "signs of shifted signs": (
        lambda: with_constant(signs(), "Sub", 2.0).bipolar(),
        r"\(BipolarQuant\): changes activations that are signs already",
    ),
    "signs of shifted signs, upwards": (
        lambda: with_constant(signs(), "Add", 2.0).bipolar(),
        r"\(BipolarQuant\): changes activations that are signs already",
    ),
    "negated signs of pixels": (
        lambda: with_constant(Graph(), "Sub", 0.5).bipolar().node("Neg").conv(3, 5),
        r"\(Conv\): takes signs that are -1 where a pixel reaches its threshold",
    ),
    "weights of other channels": (
        lambda: signs().conv(6, 5),
        r"\(Conv\): takes 6 channels in 1 groups, its input has 5",
    ),
    "a kernel too large": (
        lambda: signs().conv(5, 5, kernel=7),
        r"\(Conv\): its kernel is larger than its input",
    ),
    "a matrix of a map": (
        lambda: signs().matmul(8, 3),
        r"\(MatMul\): a matrix of \[8, 3\] on an activation of \[1, 5, 6, 8\]",
    ),
    "a matrix of other features": (
        lambda: signs().node("Flatten").matmul(239, 3),
        r"\(MatMul\): a matrix of \[239, 3\] on an activation of \[1, 240\]",
    ),
    "a bias of a matrix": (
        biased_matrix,
        r"\(Gemm\): has a bias of shape \[2\] for 3 outputs",
    ),
    "a matrix of what is transposed": (
        transposed_input,
        r"\(Gemm\): transposes its input",
    ),
    "quantized at different offsets": (
        lambda: quantized(with_constant(Graph(), "Sub", THREE), 1 / 128, 0.0, 8.0),
        r"\(Quant\): quantizes channels of different offsets",
    ),
    "quantized at a border": (
        lambda: quantized(Graph(), 2.0, 0.0, 7.0, signed=0),
        r"\(Quant\): a pixel of level 1 lies on the border of two quantization steps",
    ),
    "quantized by no step": (
        lambda: quantized(first(), 0.0, 0.0, 1.0),
        r"\(Quant\): takes one positive scale",
    ),
    "quantized about a point": (
        lambda: quantized(first(), 1.0, 1.0, 1.0),
        r"\(Quant\): takes one positive scale, zero point 0",
    ),
    "rounded down": (
        lambda: quantized(first(), 1.0, 0.0, 1.0, rounding_mode="FLOOR"),
        r"\(Quant\): takes one positive scale, zero point 0 and rounding mode ROUND",
    ),
    "a sign of a clip at 0": (
        lambda: clipped(first().norm(5), -1.0, 0.0).node("Sign"),
        r"\(Sign\): its input can be 0",
    ),
    "a sign of a channel of zeros": (
        lambda: with_constant(first(), "Mul", FIVE).node("Sign"),
        r"\(Sign\): its input can be 0",
    ),
    "a sum of three": (
        lambda: with_constants(first(), "Sum", 1.0, 2.0),
        r"\(Sum\): adds 3 tensors; only two can be",
    ),
    "a quotient by the activation": (
        lambda: turned(first(), "Div", 1.0),
        r"\(Div\): divides by the activation",
    ),
    "a quotient by zero": (lambda: with_constant(first(), "Div", FIVE), r"\(Div\): divides by zero"),
    "a norm of another axis": (
        lambda: with_constants(
            first().node("Transpose", perm=[0, 2, 3, 1]), "BatchNormalization", *np.ones((4, 5))
        ),
        r"\(BatchNormalization\): normalizes along another axis than the channels",
    ),
    "a norm of other channels": (
        lambda: with_constants(first(), "BatchNormalization", *np.ones((4, 6))),
        r"\(BatchNormalization\): has 6 channels, its input 5",
    ),
    "a negative variance": (
        lambda: with_constants(first(), "BatchNormalization", *np.ones((3, 5)), np.full(5, -1.0)),
        r"\(BatchNormalization\): a variance is not positive",
    ),
    "a norm in training mode": (
        lambda: with_constants(
            of_opset(14, first()), "BatchNormalization", *np.ones((4, 5)), training_mode=1
        ),
        r"\(BatchNormalization\): is in training mode",
    ),
    "a norm that gives a mean": (of_two_outputs, r"\(BatchNormalization\): gives the statistics of a batch"),
    "a slope that is the activation": (
        lambda: turned(first(), "PRelu", 1.0),
        r"\(PRelu\): takes the activation as its (slope|input 2)",
    ),
    "an attribute of another type": (
        lambda: first().node("MaxPool", kernel_shape=[2, 2], strides=["a", "b"]),
        r"\(MaxPool\): its attributes or constants are malformed",
    ),
    "a branch": (branching, r"node 'if' \(If\): has a graph of its own, which is not evaluated"),
    "no weights": (lambda: first().node("Conv", ""), r"\(Conv\): input 2 is missing or not a constant"),
    "no scale": (
        lambda: first().node("BipolarQuant", domain=DOMAIN),
        r"\(BipolarQuant\): input 2 is missing or not a constant",
    ),
    "another kernel than the weights'": (
        lambda: with_constant(signs(), "Conv", np.ones((5, 5, 3, 3)), kernel_shape=[5, 5]),
        r"\(Conv\): its kernel_shape is another one than its weights', \[3, 3\]",
    ),
    "a square": (
        squared,
        r"\(Mul\): combines two activations; only Add, Sub and Concat can",
    ),
    "a pad before a pool": (
        lambda: signs().pad(1, 1.0).pool(),
        r"\(MaxPool\): takes signs padded with 1; only a convolution or a max pool can",
    ),
    "not of a float": (
        lambda: signs().node("Not"),
        r"\(Not\): takes float32; only truth values can be chosen by",
    ),
    "a negative scale": (lambda: first().bipolar(-1.0), r"\(BipolarQuant\): its scale is not positive"),
    "thresholds of another layout": (
        lambda: with_constant(first(), "MultiThreshold", np.zeros((5, 1)), domain=DOMAIN, data_layout="NHWC"),
        r"\(MultiThreshold\): its data layout is another one than its input's",
    ),
    "too few thresholds": (
        lambda: with_constant(first(), "MultiThreshold", np.zeros((4, 1)), domain=DOMAIN),
        r"\(MultiThreshold\): has 4 thresholds for 5 channels",
    ),
    "thresholds that fall": (
        lambda: with_constant(first(), "MultiThreshold", np.zeros((5, 1)), domain=DOMAIN, out_scale=-1.0),
        r"\(MultiThreshold\): its out_scale is not positive",
    ),
    "an output of constants": (constant_output, r"the output 't\d+' is not computed from the image"),
    "limits that two nodes take": (
        limited_twice,
        r"\(Add\): takes signs where a net has real values",
    ),
    "a cast to truth values": (lambda: signs().node("Cast", to=9), r"\(Cast\): casts to bool"),
    "a cast of sums": (lambda: first().node("Cast", to=7), r"\(Cast\): casts to integers"),
    "a cast of half signs": (lambda: first().bipolar(0.5).node("Cast", to=7), r"\(Cast\): casts to integers"),
    "a pad by reflection": (
        lambda: pads_of(signs(), 0, 0, 1, 1, 0, 0, 1, 1, mode="reflect"),
        r"\(Pad\): only constant padding can be expressed",
    ),
    "pads of two axes for four": (
        lambda: pads_of(signs(), 1, 1, 1, 1),
        r"\(Pad\): has 4 pads for 4 axes",
    ),
    **{
        f"pads {pads}": (
            lambda pads=pads: pads_of(signs(), *pads),  # type: ignore[misc]
            r"\(Pad\): pads (channels with other numbers than 0|\[.*\] are not of channels, height and width)",
        )
        for pads in (
            (0, 1, 1, 1, 0, 1, 1, 1),
            (1, 0, 0, 0, 1, 0, 0, 0),
        )
    },
    "negative pads of a Pad": (
        lambda: pads_of(signs(), 0, 0, -1, -1, 0, 0, -1, -1),
        r"\(Pad\): crops; only whole maps can be expressed",
    ),
    "padded sums": (
        lambda: pads_of(first(), 0, 0, 1, 1, 0, 0, 1, 1),
        r"the output 't\d+' is padded",
    ),
    "the batch in another place": (
        lambda: signs().node("Transpose", perm=[1, 0, 2, 3]),
        r"the output 't\d+' takes \[5, 1, 6, 8\], whose numbers are no map of height and width",
    ),
    "a transposed matrix": (
        lambda: signs().node("Flatten").node("Transpose", perm=[1, 0]).matmul(1, 3),
        r"\(MatMul\): takes \[240, 1\], whose numbers are no map of height and width",
    ),
    "flattened from the third axis": (
        lambda: signs().node("Flatten", axis=2),
        r"\(Flatten\): does not flatten to \(N, features\)",
    ),
    "squeezed in one axis": (
        lambda: axes_of(single_pixel(), "Squeeze", 2),
        r"the output 't\d+' takes \[1, 6, 1\], whose numbers are no map of height and width",
    ),
    "squeezed in axes of several": (
        lambda: axes_of(signs(), "Squeeze", 2, 3),
        r"\(Squeeze\): squeezes axes \[2, 3\] of \[1, 5, 6, 8\], not all of one element",
    ),
    "squeezed twice": (
        lambda: axes_of(signs(), "Squeeze", 2, -2),
        r"\(Squeeze\): its axes \[2, -2\] are not different ones of 4",
    ),
    "squeezed beyond": (
        lambda: axes_of(signs(), "Squeeze", 2, 4),
        r"\(Squeeze\): its axes \[2, 4\] are not different ones of 4",
    ),
    "another shape": (
        lambda: axes_of(signs(), "Reshape", 1, 10, 24),
        r"the output 't\d+' takes \[1, 10, 24\], whose numbers are no map of height and width",
    ),
    "windows of a flattened map": (
        lambda: (g := one_pixel(signs(), "CHW")).node("Conv", g.weights(6, 240, 3, 3), pads=[1] * 4),
        r"\(Conv\): convolves a flattened map; only one pixel without padding, of group 1, can be taken",
    ),
    "a fifth axis of signs": (
        lambda: axes_of(signs(), "Unsqueeze", 2),
        r"\(Unsqueeze\): only the axis of a thermometer's levels",
    ),
    "a fifth axis in front": (
        lambda: axes_of(Graph(), "Unsqueeze", 1),
        r"\(Unsqueeze\): only the axis of a thermometer's levels",
    ),
    "a flat thermometer": (
        lambda: axes_of(Graph(), "Unsqueeze", 2).node("Flatten"),
        r"\(Flatten\): flattens a thermometer whose levels are no channels yet",
    ),
    "averaged twice": (
        averaged_twice,
        r"\(Add\): adds \[1, 6, 2, 2\] to \[1, 6, 8, 10\]",
    ),
    "rows repeated": (
        lambda: shortcut_of("Tile", [1, 2, 2, 1]),
        r"\(Tile\): repeats \[1, 2, 2, 1\]; only channels can be repeated",
    ),
    "nothing repeated": (
        lambda: shortcut_of("Tile", [1, 0, 1, 1]),
        r"\(Tile\): repeats channels 0 times; there can be 1 to 64",
    ),
    "rows joined": (
        joined_rows,
        r"\(Concat\): does not join channels",
    ),
}


#: Nets of real values: what earlier formats could not express.
EXPRESSED: dict[str, Callable[[], Graph]] = {
    "a pool of strides 1 and 2": lambda: first().node("MaxPool", kernel_shape=[2, 2], strides=[1, 2]),
    "a bend away from 0": lambda: Graph().conv(3, 5, bias=True).node("LeakyRelu"),
    "shortcut of two": skips_two,
    "scaled shortcut": scaled_shortcut,
    "two streams": two_streams,
    "two convolutions": two_convolutions,
    "ReLU after batch norm": bent_after_norm,
    "magnitudes": lambda: stem().conv(6, 8).norm(8).node("Abs"),
    "the largest of each map": lambda: stem().conv(6, 8).norm(8).node("GlobalMaxPool"),
    "the largest by axes": lambda: stem().conv(6, 8).norm(8).node("ReduceMax", axes=[-1, 2], keepdims=1),
    "at least": lambda: with_constant(stem().conv(6, 8).norm(8), "Max", -0.25),
    "at most, of sums": lambda: with_constant(first(), "Min", FIVE),
    "sliced channels last": sliced_channels_last,
    "equal parts": lambda: divided([4, 4]),
    "parts": lambda: divided([3, 1, 4], 1),
    "ReLU behind the last layer": lambda: signs().node("Flatten").matmul(240, 3).node("Relu"),
    "ReLU before a convolution": lambda: first().norm(5).node("Relu").conv(5, 5),
    "PReLU of a stream": bent_stream,
    "pool of a negative slope": folded_pool,
    "two streams joined": joined_streams,
    "windows that reach over the edge": lambda: first().pool(size=4, ceil_mode=1),
    "average pool": lambda: first().node("AveragePool", kernel_shape=[2, 2], name="mean"),
    "no sign": lambda: first().conv(5, 5),
    "padding after an offset": padded_after_offset,
    "a scale for each input channel": lambda: with_constant(Graph(), "Div", THREE).conv(3, 5),
    "padding with +1": lambda: signs().pad(1, 1.0).conv(5, 5),
    "padded pool": lambda: first().pool(pads=[1, 1, 1, 1]),
    "a pool of 2x3": lambda: first().node("MaxPool", kernel_shape=[2, 3]),
    "two pools": lambda: first().pool().pool(),
    "Clip before ReLU": lambda: clipped(first(), -1.0, 1.0).node("LeakyRelu", name="bend"),
    "SAME of an even size": same_of_even_size,
    "a bend of a constant": lambda: with_constant(with_constant(first(), "Mul", FIVE), "Add", 1 - FIVE).node(
        "LeakyRelu"
    ),
    "pixels of negative scale": lambda: Graph().node("Neg").conv(3, 5),
    "a matrix of sums": lambda: first().node("Flatten").matmul(240, 3),
}


@pytest.mark.parametrize("case", EXPRESSED)
def test_real_values_are_those_of_the_graph(tmp_path: Path, case: str) -> None:
    """Within some roundings of float32, which the graph's own evaluation has too."""
    if case == "SAME of an even size" and ONNX_VERSION < (1, 23):
        pytest.skip(
            "onnx before 1.23 evaluates SAME with strides wrongly, so that there is nothing to compare with"
        )
    graph = EXPRESSED[case]()
    if case not in ("ReLU behind the last layer", "a matrix of sums"):
        graph.node("GlobalAveragePool").node("Flatten")
    path = graph.save(tmp_path / "net.onnx")
    model = import_model(path, tmp_path / "model")
    parity = compare(path, model, frames(*model.input.shape[:2]))
    assert parity.same_class == parity.images
    assert parity.difference <= 1e-5 * parity.magnitude


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_node_its_op_and_the_reason(tmp_path: Path, case: str) -> None:
    build, message = REFUSED[case]
    path = build().save(tmp_path / "net.onnx")
    with pytest.raises(ImporterError, match=message) as error:
        import_model(path, tmp_path / "model")
    assert str(path) in str(error.value)
    assert not (tmp_path / "model").exists()


def test_numbers_beyond_float64_are_refused(tmp_path: Path) -> None:
    g = head(stem(), 6 * 8 * 10)
    for _ in range(11):
        g.node("Mul", g.constant(1e30))
    with pytest.raises(ImporterError, match="a scale or an offset is too large for float64"):
        read(g.save(tmp_path / "net.onnx"))


def test_files_that_are_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\xff\xfe no protobuf")
    with pytest.raises(ImporterError, match=r"net\.onnx: is not an ONNX file"):
        read(path)
    with pytest.raises(ImporterError, match="no such file"):
        import_model(tmp_path / "missing.onnx", tmp_path / "model")


def test_constants_whose_size_is_not_their_shape(tmp_path: Path) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    net = onnx.load(str(path))
    net.graph.initializer[0].dims[0] += 1
    onnx.save(net, str(path))
    with pytest.raises(ImporterError, match=r"net\.onnx: the constant 'c0' cannot be read"):
        read(path)


def reverse(net: Any) -> None:
    nodes = list(net.graph.node)[::-1]
    del net.graph.node[:]
    net.graph.node.extend(nodes)


def cycle(net: Any) -> None:
    net.graph.node[1].input[0] = net.graph.node[-1].output[0]


def second_input(net: Any) -> None:
    net.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("more", 1, [1]))


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a constant twice": (
        lambda net: net.graph.initializer.append(net.graph.initializer[0]),
        r"the constant 'c0' is there twice",
    ),
    "a constant that is missing": (
        lambda net: net.graph.initializer.pop(),
        r"\(BipolarQuant\): takes 'c\d+', which no node before it gives",
    ),
    "a node that is missing": (
        lambda net: net.graph.node.pop(1),
        r"takes 't1', which no node before it gives",
    ),
    "nodes in another order": (reverse, r"takes 't\d+', which no node before it gives"),
    "a cycle": (cycle, r"takes 't\d+', which no node before it gives"),
    "two inputs": (second_input, r"the graph has 2 inputs and 1 outputs"),
    "an old opset": (
        lambda net: setattr(net.opset_import[0], "version", 6),
        r"its opset is 6; 7 to \d+ can be read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    net = onnx.load(str(path))
    change(net)
    onnx.save(net, str(path))
    with pytest.raises(ImporterError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_files_too_large_or_unreadable_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "NET.ONNX")
    size = path.stat().st_size
    monkeypatch.setattr(file, "MAX_BYTES", size)
    assert import_model(path, tmp_path / "model").name == "NET"
    monkeypatch.setattr(file, "MAX_BYTES", size - 1)
    with pytest.raises(ImporterError, match=rf"NET\.ONNX: {size} bytes; at most {size - 1} are read"):
        read(path)
    with pytest.raises(ImporterError, match=r"missing\.onnx: cannot be read: No such file"):
        read(tmp_path / "missing.onnx")


@pytest.mark.parametrize("length", [0, 1, 50, 400])
def test_cut_files_are_refused(tmp_path: Path, length: int) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ImporterError, match=r"net\.onnx: "):
        read(path)


def test_input_shape_must_be_an_image(tmp_path: Path) -> None:
    g = Graph()
    g.input_shape = ["N", 3, "H", "W"]
    with pytest.raises(ImporterError, match=r"input 'image' has shape \[0, 3, 0, 0\]"):
        read(g.conv(3, 5).save(tmp_path / "net.onnx"))


def test_parity_needs_no_entry_for_the_quantizers_domain(tmp_path: Path) -> None:
    """Some exporters write none."""
    g = Graph().conv(3, 6).norm(6).bipolar().node("Flatten").matmul(6 * 48, 3)
    model = import_model(g.save(tmp_path / "net.onnx"), tmp_path / "model")
    proto = onnx.load(str(tmp_path / "net.onnx"))
    del proto.opset_import[1]  # of the quantizers
    onnx.save(proto, str(tmp_path / "net.onnx"))
    assert compare(tmp_path / "net.onnx", model, frames(8, 10)).difference < 1e-3
    assert [layer.kind for layer in read(tmp_path / "net.onnx").layers] == [
        layer.kind for layer in model.layers
    ]


def test_parity_with_a_graph_that_does_not_run_is_refused_in_one_line(tmp_path: Path) -> None:
    g = Graph().conv(3, 6).norm(6).bipolar().node("Flatten").matmul(6 * 48, 3)
    model = import_model(g.save(tmp_path / "net.onnx"), tmp_path / "model")
    proto = onnx.load(str(tmp_path / "net.onnx"))
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("kernel_shape", [9, 9]))
    onnx.save(proto, str(tmp_path / "net.onnx"))
    with pytest.raises(ImporterError, match=r"net.onnx: .*cannot be evaluated") as error:
        compare(tmp_path / "net.onnx", model, frames(8, 10))
    assert "\n" not in str(error.value)


def test_parity_reports_a_difference(tmp_path: Path) -> None:
    path = signs().node("Flatten").matmul(5 * 48, 3).save(tmp_path / "net.onnx")
    model = read(path)
    assert compare(path, model, frames(8, 10)).difference < 1e-3
    model.layers[1].scale[0] *= -1  # type: ignore[union-attr]
    parity = compare(path, model, frames(8, 10))
    assert isinstance(parity, Parity)
    assert parity.difference > 1


def test_import_command_prints_the_layers_and_the_parity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra [opencv])")
    source = signs().node("Flatten").matmul(5 * 48, 2).save(tmp_path / "net.onnx")
    (tmp_path / "labels.txt").write_text("left\nstraße\n", encoding="utf-8")
    (tmp_path / "images").mkdir()
    for index, frame in enumerate(frames(8, 10)):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), frame.pixels)
    words = [str(source), "--out", str(tmp_path / "model"), "--labels", str(tmp_path / "labels.txt")]
    assert execute(import_, "import", [*words, "--images", str(tmp_path / "images")]) == 0
    printed = capsys.readouterr().out
    assert "conv1" in printed
    assert "parity on 4 images (0 left out): same class on 4" in printed
    assert load_model(tmp_path / "model").labels == ("left", "straße")
    assert (
        "pixels: the net takes p / 255, 0 to 1; assumed, for neither the graph nor --pixel-range" in printed
    )
    for said, range_words in (
        ("0 to 255", ("--pixel-range", "0", "255")),
        ("-1 to 1", ("--pixel-range", "-1", "1")),
        ("-1 to 1", ("--mean", "0.5", "--std", "0.5")),
        (
            "-2.1179 to 2.24891, -2.03571 to 2.42857, -1.80444 to 2.64",
            ("--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"),
        ),
    ):
        assert execute(import_, "import", [*words, *range_words]) == 0
        assert f"pixels: the net takes {said}\n" in capsys.readouterr().out
    for reason, range_words in (
        ("two numbers, the lower one first", ("--pixel-range", "0", "nan")),
        ("two numbers, the lower one first", ("--pixel-range", "1", "0")),
        ("--mean and --std go together", ("--mean", "0.5")),
        ("give one", ("--mean", "0.5", "--std", "0.5", "--pixel-range", "0", "1")),
        ("those of --std are above 0", ("--mean", "0.5", "--std", "0")),
        (
            "2 values of mean or std for an image of 3 channels",
            ("--mean", "0.5", "0.4", "--std", "0.5", "0.4"),
        ),
    ):
        assert execute(import_, "import", [*words, *range_words]) == 1
        assert reason in capsys.readouterr().err
    assert execute(import_, "import", [str(tmp_path / "none.onnx"), "--out", str(tmp_path / "m")]) == 1
    assert "none.onnx: no such file" in capsys.readouterr().err
