"""Reading float twins: the stages compute what ONNX Runtime computes, and what is no chain of stages is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bnn_perception.backends import BackendError
from bnn_perception.backends.float_twin import Stage, read_float_twin
from bnn_perception.model import InputSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def evaluate(stage: Stage, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """One stage of one frame in float64, as its docstring says: (height, width, channels) in and out."""
    top, left, bottom, right = stage.padding
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    windows = sliding_window_view(padded, stage.kernel, axis=(0, 1))[:: stage.stride[0], :: stage.stride[1]]
    y = np.tensordot(windows, stage.weights.astype(np.float64), axes=([3, 4, 2], [1, 2, 3]))
    if stage.pool is not None:
        size, step = stage.pool.size, stage.pool.stride
        y = sliding_window_view(y, (size, size), axis=(0, 1))[::step, ::step].max(axis=(3, 4))
    return np.clip(y * stage.scale + stage.shift, stage.low, stage.high)


class Chain:
    """Builds an ONNX graph node by node."""

    def __init__(self, height: int, width: int, channels: int = 3, seed: int = 0) -> None:
        self.shape = [height, width, channels]
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.current = "x"

    def add(self, op: str, *constants: NDArray[Any], **attributes: Any) -> Chain:
        names = []
        for value in constants:
            names.append(f"c{len(self.tensors)}")
            self.tensors.append(numpy_helper.from_array(value, names[-1]))
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.current, *names], [name], name=name, **attributes))
        self.current = name
        return self

    def normal(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.normal(0, 0.5, shape).astype(np.float32)

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
    (logits,) = session.run(None, {"x": x.transpose(2, 0, 1)[None].astype(np.float32)})
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
    y = x
    for stage in stages:
        assert stage.input_shape == y.shape
        y = evaluate(stage, y)
        assert y.shape == stage.output_shape
    expected = onnx_runtime(path, x)
    # ONNX Runtime rounds to float32 after each of at most 18 * 18 * 9 products, 2**-24 a rounding, five layers deep.
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))


def twin(tmp_path: Path, chain: Chain) -> tuple[Stage, ...]:
    return read_float_twin(chain.save(tmp_path / "float.onnx"), InputSpec(8, 8), 4)


def head(chain: Chain, features: int) -> Chain:
    return chain.add("Flatten", axis=1).add("Gemm", chain.normal(4, features), transB=1)


def conv(chain: Chain, **attributes: Any) -> Chain:
    return chain.add("Conv", chain.normal(6, 3, 3, 3), **{"kernel_shape": (3, 3), **attributes})


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
    ],
)
def test_refuses_what_is_no_chain_of_stages(build: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=message):
        twin(tmp_path, build(Chain(8, 8)))


def test_refuses_a_branch(tmp_path: Path) -> None:
    chain = conv(Chain(8, 8))
    chain.nodes.append(helper.make_node("Add", ["conv0", "x"], ["sum"], name="shortcut"))
    chain.current = "sum"
    with pytest.raises(BackendError, match=r"node 'shortcut' \(Add\): its inputs"):
        twin(tmp_path, chain)


def test_refuses_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BackendError, match="is not an ONNX file"):
        read_float_twin(path, InputSpec(8, 8), 4)
