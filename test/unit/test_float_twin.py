"""Reading float twins: the stages compute what ONNX Runtime computes, and what is no chain of stages is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bnn_perception.importers.errors import FloatTwinError
from bnn_perception.importers.onnx.float_twin import read_float_twin
from bnn_perception.importers.stage import Stage
from bnn_perception.net.model import InputSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def evaluate(stage: Stage, x: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """The stream of one stage of one frame in float64, as its docstring says: (height, width, channels) in and out.

    ``x`` is what the stage before gives, ``before`` the same before its clip.
    """
    top, left, bottom, right = stage.padding
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    windows = sliding_window_view(padded, stage.kernel, axis=(0, 1))[:: stage.stride[0], :: stage.stride[1]]
    y = np.tensordot(windows, stage.weights.astype(np.float64), axes=([3, 4, 2], [1, 2, 3]))
    if stage.pool is not None:
        size, step = stage.pool.size, stage.pool.stride
        y = sliding_window_view(y, (size, size), axis=(0, 1))[::step, ::step].max(axis=(3, 4))
    y = y * stage.scale + stage.shift
    if stage.shortcut == "average_pool":
        height, width, channels = before.shape
        cut = before[: height // 2 * 2, : width // 2 * 2]
        before = cut.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))
    if stage.shortcut != "none":
        y = y + np.tile(before, (1, 1, stage.out_channels // before.shape[2]))
    return y


def evaluate_all(stages: Sequence[Stage], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(height, width, channels) -> logits."""
    stream = x
    for stage in stages:
        assert stage.input_shape == x.shape
        stream = evaluate(stage, x, stream)
        assert stream.shape == stage.output_shape
        x = np.clip(stream, stage.low, stage.high)
    return x[0, 0]


class Chain:
    """Builds an ONNX graph node by node."""

    def __init__(self, height: int, width: int, channels: int = 3, seed: int = 0) -> None:
        self.shape = [height, width, channels]
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.current = "x"

    def add(self, op: str, *constants: NDArray[Any] | str, **attributes: Any) -> Chain:
        """A node that takes the current tensor, constants, and tensors by name."""
        names = []
        for value in constants:
            if isinstance(value, str):
                names.append(value)
                continue
            names.append(f"c{len(self.tensors)}")
            self.tensors.append(numpy_helper.from_array(value, names[-1]))
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.current, *names], [name], name=name, **attributes))
        self.current = name
        return self

    def normal(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.normal(0, 0.5, shape).astype(np.float32)

    def beside(self, tensor: str, *nodes: tuple[str, dict[str, Any]]) -> str:
        """The tensor that nodes give that start from ``tensor``; the current tensor stays."""
        kept, self.current = self.current, tensor
        for op, attributes in nodes:
            copies = attributes.get("copies", 1) - 1
            self.add(op, *[self.current] * copies, **{k: v for k, v in attributes.items() if k != "copies"})
        result, self.current = self.current, kept
        return result

    def norm(self, channels: int) -> Chain:
        """Batch norm with gammas of either sign."""
        return self.add(
            "BatchNormalization", *(self.normal(channels) for _ in range(3)), abs(self.normal(channels)) + 0.1
        )

    def save(self, path: Path) -> Path:
        height, width, channels = self.shape
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, height, width])],
            [helper.make_tensor_value_info(self.current, TensorProto.FLOAT, None)],
            self.tensors,
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path)
        )
        return path


def onnx_runtime(path: Path, x: NDArray[np.float64]) -> NDArray[np.float32]:
    """(height, width, channels) -> logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(
        None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None].astype(np.float32)}
    )
    return logits[0]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_stages_equal_onnx_runtime(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw = data.draw
    # 14 pixels are the fewest that two unpadded strided 3x3 convolutions and two pools leave something of.
    height, width = draw(st.integers(14, 18), "height"), draw(st.integers(14, 18), "width")
    chain = Chain(height, width, seed=draw(st.integers(0, 1000), "seed"))
    channels = 3
    for _ in range(draw(st.integers(1, 2), "convolutions")):
        out = draw(st.integers(1, 9), "out")
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 2)]), "kernel")
        stride = draw(st.sampled_from([(1, 1), (2, 1)]), "stride")
        pads = draw(
            st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1)])
            if kernel[0] > 1
            else st.just((0,) * 4)
        )
        biases = [chain.normal(out)] if draw(st.booleans(), "bias") else []
        chain.add(
            "Conv",
            chain.normal(out, channels, *kernel),
            *biases,
            kernel_shape=kernel,
            strides=stride,
            pads=pads,
        )
        orders = ["pool norm relu", "norm relu pool", "norm pool", "clip pool", "add pool relu", "norm"]
        order = draw(st.sampled_from(orders), "order")
        for step in order.split():
            if step == "pool":
                chain.add("MaxPool", kernel_shape=(2, 2), strides=(1, 1))
            elif step == "norm":
                chain.norm(out)
            elif step == "relu":
                chain.add("Relu")
            elif step == "clip":
                chain.add("Clip", np.float32(-1), np.float32(1))
            else:
                chain.add("Add", chain.normal(out, 1, 1))
        channels = out
    path = tmp_path_factory.mktemp("twin") / "float.onnx"
    probe = chain.add("Flatten", axis=1).save(path)
    features = onnx_runtime(probe, np.zeros((height, width, 3))).size
    chain.add("MatMul", chain.normal(features, 5)).norm(5).add("Relu")
    chain.add("Gemm", chain.normal(4, 5), chain.normal(4), transB=1).save(path)

    stages = read_float_twin(path, InputSpec(height, width), 4)

    x = chain.rng.random((height, width, 3))
    logits = evaluate_all(stages, x)
    expected = onnx_runtime(path, x)
    # ONNX Runtime rounds to float32 after each of at most 18 * 18 * 9 products, 2**-24 a rounding, five layers deep.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))


AVERAGE = ("AveragePool", {"kernel_shape": (2, 2), "strides": (2, 2)})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_residual_stages_equal_onnx_runtime(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw = data.draw
    # 16 pixels are the fewest that are halved four times and leave something.
    height, width = draw(st.integers(16, 21), "height"), draw(st.integers(16, 21), "width")
    chain = Chain(height, width, seed=draw(st.integers(0, 1000), "seed"))
    channels = draw(st.integers(1, 5), "channels")
    chain.add("Conv", chain.normal(channels, 3, 3, 3), kernel_shape=(3, 3), pads=[1] * 4)
    if draw(st.booleans(), "pooled stem"):
        chain.add("MaxPool", kernel_shape=(2, 2), strides=(2, 2))
        height, width = height // 2, width // 2
    shortcuts: list[str] = []
    for _ in range(draw(st.integers(1, 3), "convolutions")):
        stream, kind = chain.current, draw(st.sampled_from(["none", "identity", "average_pool"]), "shortcut")
        copies = draw(st.integers(1, 3), "copies")
        beside = [AVERAGE] if kind == "average_pool" else []
        if copies > 1:
            beside.insert(
                draw(st.integers(0, len(beside)), "order"), ("Concat", {"axis": 1, "copies": copies})
            )
        early = draw(st.booleans(), "early")  # whether the shortcut's nodes stand before the convolution's
        if early and kind != "none":
            shortcut = chain.beside(stream, *beside)
        activation = draw(
            st.sampled_from([("Relu",), ("Clip", np.float32(-1), np.float32(2)), ()]), "activation"
        )
        if activation:
            chain.add(*activation)
        out = channels * copies
        conv: dict[str, Any] = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
        pool = kind == "average_pool" and draw(st.booleans(), "pool")
        if kind == "average_pool" and not pool:
            # Strides and pads that leave out an odd last row or column, as the average does.
            conv.update(strides=(2, 2), pads=(1, 1, -(height % 2) + 1, -(width % 2) + 1))
        chain.add("Conv", chain.normal(out, channels, 3, 3), **conv)
        if pool:
            chain.add("MaxPool", kernel_shape=(2, 2), strides=(2, 2))
        if draw(st.booleans(), "norm"):
            chain.norm(out)
        if kind != "none":
            if not early:
                shortcut = chain.beside(stream, *beside)
            if draw(st.booleans(), "shortcut first"):
                chain.current, shortcut = shortcut, chain.current
            chain.add("Add", shortcut)
            if draw(st.booleans(), "bias behind"):
                chain.add("Add", chain.normal(out, 1, 1))
        if kind == "average_pool":
            height, width = height // 2, width // 2
        channels = out
        shortcuts.append(kind)
    chain.add("Relu").add("Flatten", axis=1)
    chain.add("Gemm", chain.normal(4, height * width * channels), chain.normal(4), transB=1)
    path = chain.save(tmp_path_factory.mktemp("twin") / "float.onnx")

    stages = read_float_twin(path, InputSpec(*chain.shape), 4)

    assert [stage.shortcut for stage in stages] == ["none", *shortcuts, "none"]
    x = chain.rng.random(chain.shape)
    expected = onnx_runtime(path, x)
    # As above: sums of at most 45 * 9 products and 21 * 21 * 135 in the matrix, five layers deep.
    np.testing.assert_allclose(
        evaluate_all(stages, x), expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max())
    )


EXPORTED = {
    "identity and average": [
        {"kind": "input_stream_conv2d", "channels": 6, "pool": 2},
        {"kind": "residual_conv2d", "channels": 6},
        {"kind": "residual_conv2d", "channels": 18, "stride": 2, "shortcut": "average_pool"},
        {"kind": "residual_conv2d", "channels": 5, "shortcut": "none"},
        {"kind": "residual_conv2d", "channels": 10},
        {"kind": "binary_dense", "features": 9},
        {"kind": "output_dense"},
    ],
    "a pool in the block, a plain convolution behind": [
        {"kind": "input_stream_conv2d", "channels": 7},
        {"kind": "residual_conv2d", "channels": 14, "pool": 2, "shortcut": "average_pool"},
        {"kind": "binary_conv2d", "channels": 6, "pool": 2},
        {"kind": "output_dense"},
    ],
}


@pytest.mark.parametrize("layers", EXPORTED.values(), ids=list(EXPORTED))
def test_reads_what_training_exports(
    layers: list[dict[str, Any]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
    request.getfixturevalue("one_torch_thread")
    from bnn_perception.training import networks
    from bnn_perception.training.config import from_mapping
    from bnn_perception.training.export import float_twin_onnx

    spec = from_mapping({"input": {"height": 16, "width": 12}, "network": layers}).network
    torch.manual_seed(0)
    net = networks.build_float(spec, 4)
    net.train()
    with torch.no_grad():
        for _ in range(50):
            net(torch.rand(8, 3, 16, 12))  # running statistics
    path = tmp_path / "float.onnx"
    path.write_bytes(float_twin_onnx(net.eval(), spec))

    stages = read_float_twin(path, InputSpec(16, 12), 4)

    residual = [layer for layer in layers if layer["kind"] == "residual_conv2d"]
    assert [stage.shortcut for stage in stages][1 : 1 + len(residual)] == [
        layer.get("shortcut", "identity") for layer in residual
    ]
    x = np.random.default_rng(0).random((16, 12, 3))
    expected = onnx_runtime(path, x)
    np.testing.assert_allclose(
        evaluate_all(stages, x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def twin(tmp_path: Path, chain: Chain) -> tuple[Stage, ...]:
    return read_float_twin(chain.save(tmp_path / "float.onnx"), InputSpec(8, 8), 4)


def head(chain: Chain, features: int) -> Chain:
    return chain.add("Flatten", axis=1).add("Gemm", chain.normal(4, features), transB=1)


def conv(chain: Chain, **attributes: Any) -> Chain:
    return chain.add("Conv", chain.normal(6, 3, 3, 3), **{"kernel_shape": (3, 3), **attributes})


def pool(chain: Chain, size: int = 2, **attributes: Any) -> Chain:
    return chain.add("MaxPool", kernel_shape=(size, size), strides=(2, 2), **attributes)


def rectangular(chain: Chain, kernel: tuple[int, int]) -> Chain:
    """A map of 6x7 or 7x6."""
    return chain.add("Conv", chain.normal(6, 3, *kernel))


@pytest.mark.parametrize("shape", [(-1, 216), (0, 216), (0, -1)])
def test_reshapes_that_flatten(shape: tuple[int, int], tmp_path: Path) -> None:
    chain = conv(Chain(8, 8)).add("Reshape", np.array(shape))
    assert twin(tmp_path, chain.add("Gemm", chain.normal(4, 216), transB=1))[1].kernel == (6, 6)


def test_windows_that_could_reach_over_the_edge_and_do_not(tmp_path: Path) -> None:
    assert twin(tmp_path, head(pool(conv(Chain(8, 8)), ceil_mode=1), 54))[0].output_shape == (3, 3, 6)


def test_a_gemm_with_all_that_it_can_have(tmp_path: Path) -> None:
    chain = conv(Chain(8, 8)).add("Flatten")
    path = chain.add("Gemm", chain.normal(216, 4), chain.normal(1, 4), alpha=0.5, beta=3.0).save(
        tmp_path / "float.onnx"
    )
    x = chain.rng.random((8, 8, 3))
    logits = evaluate_all(read_float_twin(path, InputSpec(8, 8), 4), x)
    # As in the tests above; sums of 27 and 216 products.
    np.testing.assert_allclose(logits, onnx_runtime(path, x), rtol=1e-4, atol=1e-4)


def test_norm_before_the_pool_goes_into_the_weights(tmp_path: Path) -> None:
    chain = conv(Chain(8, 8)).norm(6).add("Relu").add("MaxPool", kernel_shape=(2, 2), strides=(2, 2))
    stage = twin(tmp_path, head(chain, 54))[0]
    assert (stage.scale == 1).all()
    assert (stage.low, stage.high) == (0.0, np.inf)
    assert stage.output_shape == (3, 3, 6)


def test_norm_after_the_pool_stays_behind_it(tmp_path: Path) -> None:
    chain = conv(Chain(8, 8)).add("MaxPool", kernel_shape=(2, 2), strides=(2, 2)).norm(6)
    stage = twin(tmp_path, head(chain, 54))[0]
    assert (stage.scale < 0).any()  # where a pool of the normalized values would differ


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda c: head(conv(c).add("Softmax"), 216),
            r"node 'softmax1' \(Softmax\): the operator is not supported",
        ),
        (
            lambda c: head(conv(c).add("Relu").norm(6), 216),
            r"node 'batchnormalization2' .*follows an activation",
        ),
        (lambda c: head(conv(c, dilations=(2, 2)), 96), r"node 'conv0' \(Conv\): dilations \[2, 2\]"),
        (lambda c: head(conv(c, auto_pad="SAME_UPPER"), 384), r"\(Conv\): auto_pad SAME_UPPER"),
        (lambda c: head(c.add("Relu"), 192), r"node 'relu0' \(Relu\): it stands before the first"),
        (lambda c: c.add("Conv", c.normal(3, 1, 3, 3), group=3, kernel_shape=(3, 3)), r"\(Conv\): group 3"),
        (
            lambda c: head(conv(c).add("MaxPool", kernel_shape=(2, 2), pads=(1, 1, 1, 1)), 294),
            r"\(MaxPool\): window",
        ),
        (conv, r"its output is \[6, 6, 6\], not \[1, 1, 4\]"),
        (lambda c: c.add("Conv", c.normal(6, 4, 3, 3)), r"node 'conv0' \(Conv\): 4 input channels"),
        (
            lambda c: c.add("Flatten").add("Conv", c.normal(6, 3, 3, 3)),
            r"node 'conv1' \(Conv\): 3 input channels, but its input is \[8, 8, 3\]",
        ),
        (lambda c: head(conv(c, pads=[3, 0, 0, 0]), 324), r"\(Conv\): pads \[3, 0, 0, 0\] reach the size"),
        (lambda c: c.add("Conv", c.normal(6, 3, 9, 9)), r"\(Conv\): its window is larger than its input"),
        (lambda c: c.add("Gemm", c.normal(192, 4)), r"node 'gemm0' \(Gemm\): weights \[192, 4\] on an input"),
        (lambda c: head(conv(c), 215), r"\(Gemm\): weights \[215, 4\] on an input \[6, 6, 6\]"),
        (
            lambda c: c.add("Flatten").add("Gemm", c.normal(192, 4), transA=1),
            r"node 'gemm1' \(Gemm\): transposes its input",
        ),
        (lambda c: conv(c).norm(5), r"\(BatchNormalization\): has 5 channels, its input 6"),
        (
            lambda c: conv(c).add("BatchNormalization", *[np.ones(6, np.float32)] * 3, np.full(6, -1e-5)),
            r"\(BatchNormalization\): a variance is not positive",
        ),
        (lambda c: conv(c).add("Add", c.normal(5, 1, 1)), r"\(Add\): a constant of shape \[5, 1, 1\] is not"),
        (
            lambda c: conv(c).add("Clip", np.float32(2), np.float32(-2)),
            r"\(Clip\): its bounds 2.0 and -2.0 are the wrong way round",
        ),
        (lambda c: pool(pool(conv(c))), r"node 'maxpool2' \(MaxPool\): a stage has at most one max pool"),
        (lambda c: pool(conv(c).add("Flatten")), r"node 'maxpool2' .* before it is flattened"),
        (lambda c: pool(conv(c), size=7), r"\(MaxPool\): its window is larger than its input \[6, 6\]"),
        *(
            (
                lambda c, kernel=kernel: pool(rectangular(c, kernel), ceil_mode=1),
                r"\(MaxPool\): .* over the edge",
            )
            for kernel in ((3, 2), (2, 3))
        ),
        (lambda c: conv(c).add("Flatten", axis=2), r"\(Flatten\): axis 2; it must be 1"),
        *(
            (
                lambda c, shape=shape: conv(c).add("Reshape", np.array(shape)),
                r"\(Reshape\): to \[.*\]; only a flattening to \(batch, 216\) is known",
            )
            for shape in ([-1, -1], [1, 216], [-1, 108], [-1, 0], [0, 36, 6], [216])
        ),
    ],
)
def test_refuses_what_is_no_chain_of_stages(build: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FloatTwinError, match=message):
        twin(tmp_path, build(Chain(8, 8)))


def test_refuses_a_branch(tmp_path: Path) -> None:
    chain = conv(Chain(8, 8))
    chain.nodes.append(helper.make_node("Add", ["conv0", "x"], ["sum"], name="shortcut"))
    chain.current = "sum"
    with pytest.raises(FloatTwinError, match=r"node 'shortcut' \(Add\): its inputs"):
        twin(tmp_path, chain)


def block(
    c: Chain,
    *beside: tuple[str, dict[str, Any]],
    out: int = 6,
    between: str = "relu",
    stride: int = 1,
    source: str | None = None,
) -> Chain:
    """Convolution, activation, convolution, and an Add of a shortcut; the first convolution's output is 8x8x6."""
    conv(c, pads=[1] * 4)
    stream = c.current
    for op in between.split():
        c.add("Relu") if op == "relu" else c.add("MaxPool", kernel_shape=(1, 1))
    c.add("Conv", c.normal(out, 6, 3, 3), kernel_shape=(3, 3), pads=[1] * 4, strides=[stride] * 2)
    return c.add("Add", c.beside(source or stream, *beside))


def repeat(copies: int, axis: int = 1) -> tuple[str, dict[str, Any]]:
    return "Concat", {"axis": axis, "copies": copies}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda c: block(c, out=12),
            r"node 'add3' \(Add\): the shortcut is \[8, 8, 6\], the .* \[8, 8, 12\]",
        ),
        (lambda c: block(c, repeat(3), out=12), r"\(Add\): the shortcut is \[8, 8, 18\]"),
        (lambda c: block(c, stride=2), r"\(Add\): the shortcut is \[8, 8, 6\], the convolution \[4, 4, 6\]"),
        (lambda c: block(c, AVERAGE), r"\(Add\): the shortcut is \[4, 4, 6\]"),
        (
            lambda c: block(c, source="relu1"),
            r"node 'add3' \(Add\): its inputs are .* from before the activation",
        ),
        (lambda c: block(c, source="x"), r"node 'add3' \(Add\): its inputs are"),
        (lambda c: block(c, AVERAGE, source="relu1"), r"node 'averagepool3' .*node 'add4' \(Add\) reads it"),
        (lambda c: block(c, between="relu maxpool"), r"node 'add4' \(Add\): its inputs are"),
        (lambda c: block(c, AVERAGE, AVERAGE), r"node 'averagepool4' .*averaged at most once"),
        (lambda c: block(c, repeat(2, axis=2)), r"node 'concat3' \(Concat\): axis 2; only copies"),
        (
            lambda c: block(c, ("AveragePool", {"kernel_shape": (3, 3), "strides": (2, 2)})),
            r"node 'averagepool3' \(AveragePool\): window \[3, 3\]",
        ),
        (
            lambda c: block(c, ("AveragePool", {**AVERAGE[1], "ceil_mode": 1})),
            r"\(AveragePool\): .* ceil_mode 1; only windows of 2x2",
        ),
        (lambda c: block(c).norm(6), r"node 'batchnormalization4' .*follows a shortcut"),
        (lambda c: block(c).add("MaxPool", kernel_shape=(2, 2)), r"\(MaxPool\): .* before its shortcut"),
        (lambda c: block(c).add("Add", "conv0"), r"node 'add4' \(Add\): a stage has at most one shortcut"),
        # the stream of two convolutions before
        (
            lambda c: block(c).add("Conv", c.normal(6, 6, 1, 1), kernel_shape=(1, 1)).add("Add", "conv0"),
            r"node 'add5' \(Add\): its inputs",
        ),
        # a net that ends in an average, as many do
        (
            lambda c: head(conv(c).add("Relu").add(*AVERAGE[:1], **AVERAGE[1]), 54),
            r"node 'averagepool2' \(AveragePool\): node 'flatten3' \(Flatten\) reads it",
        ),
        (lambda c: conv(c).add("Add", "conv0"), r"node 'add1' \(Add\): its inputs"),
        (
            lambda c: head(c, 192).add("Gemm", c.normal(4, 4)).add("Add", "gemm1"),
            r"\(Add\): a stage has at most one shortcut, before it is flattened",
        ),
    ],
)
def test_refuses_other_shortcuts(build: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FloatTwinError, match=message):
        twin(tmp_path, build(Chain(8, 8)))


def test_reads_constants_that_nodes_give(tmp_path: Path) -> None:
    """Exporters write some constants as nodes, one upon the other."""
    chain = conv(Chain(8, 8))
    bias = chain.normal(6, 1, 1)
    chain.nodes.append(helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(bias / 2)))
    chain.nodes.append(helper.make_node("Add", ["half", "half"], ["whole"], name="twice"))
    stages = twin(tmp_path, head(chain.add("Add", "whole"), 216))
    # Halves of float32 are exact, and so is their sum.
    np.testing.assert_array_equal(stages[0].shift, bias.reshape(-1))


def test_refuses_a_twin_of_two_files(tmp_path: Path) -> None:
    path = head(conv(Chain(8, 8)), 216).save(tmp_path / "float.onnx")
    onnx.save(
        onnx.load(str(path)), str(path), save_as_external_data=True, location="weights", size_threshold=0
    )
    with pytest.raises(FloatTwinError, match=r"the data of 'c0' is in another file"):
        read_float_twin(path, InputSpec(8, 8), 4)


def test_refuses_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(FloatTwinError, match="is not an ONNX file"):
        read_float_twin(path, InputSpec(8, 8), 4)
