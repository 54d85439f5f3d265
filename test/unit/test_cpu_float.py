"""The float twin on the CPU against ONNX Runtime called by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_cases import share_of_stages
from models import random_frame, random_model

from bnn_perception.backends import BackendError, make_backend
from bnn_perception.backends.cpu import float as cpu_float
from bnn_perception.backends.cpu.float import CpuFloatBackend, open_session
from bnn_perception.backends.cpu.processor import thread_count
from bnn_perception.backends.cuda.float import CudaFloatBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net.folder import load_model, save_model
from bnn_perception.net.model import Model
from bnn_perception.resources import find_model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


@pytest.fixture(scope="module")
def shipped() -> Model:
    """The model that comes with the package, which has a float twin."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return load_model(find_model("road_signs"))


def test_float_logits(rng: np.random.Generator, shipped: Model) -> None:
    import onnxruntime

    frames = [random_frame(rng, 30, 20), random_frame(rng, 15, 25, "bgra8"), random_frame(rng, 32, 32)]
    pixels = np.stack([prepare_reference(frame, shipped.input) for frame in frames])
    session = onnxruntime.InferenceSession(str(shipped.float_twin), providers=["CPUExecutionProvider"])
    tensor = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    (expected,) = session.run(None, {session.get_inputs()[0].name: tensor})
    # Sums of up to 4,096 float32 products in another order: 4096 * 2**-24 of the largest partial sum at worst.
    tolerance = 4096 * 2**-24 * np.abs(expected).max() * 4
    for threads in (1, 2):
        backend = make_backend(shipped, "float", "cpu", threads)
        logits = backend.logits(frames)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=tolerance)
        outputs = list(backend.activations(frames[1]))
        assert [name for name, _ in outputs] == ["input", shipped.layers[-1].name]
        np.testing.assert_array_equal(outputs[0][1], pixels[1])
        np.testing.assert_allclose(outputs[1][1], expected[1], atol=tolerance)
        assert list(backend.times) == ["preprocess", "inference"]
        backend.close()
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            backend.logits(frames)


def test_a_session_takes_the_threads_it_is_given_and_lets_them_sleep(
    shipped: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between the frames of a camera, threads that spin would keep whole cores busy."""
    import onnxruntime

    taken = []

    class Recording(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, options: Any, providers: list[str]) -> None:
            assert providers == ["CPUExecutionProvider"]
            taken.append(options)
            super().__init__(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recording)
    spinning = "session.intra_op.allow_spinning"
    for threads in (1, 3):
        backend = CpuFloatBackend(shipped, threads)
        options = taken.pop()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert options.get_session_config_entry(spinning) == "0"
        assert options.log_severity_level == 4  # what a graph makes it say is for no terminal
        assert not options.enable_profiling
        assert backend.device_name.endswith(f", {threads} thread{'s' if threads > 1 else ''}")
        backend.close()
    assert shipped.float_twin is not None
    session = open_session(shipped.float_twin, 2, spinning=True, profile=tmp_path / "profile")
    assert taken.pop().get_session_config_entry(spinning) == "1"
    assert Path(session.end_profiling()).parent == tmp_path


def test_it_runs_on_as_many_threads_as_pay_off_unless_told(
    shipped: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """41.6 million multiply-accumulates, and a thread more for each 10 million."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    backend = CpuFloatBackend(shipped)
    assert backend.device_name.endswith(", 5 threads")
    backend.close()


def test_times_of_a_float_twin_are_of_the_last_call(shipped: Model, rng: np.random.Generator) -> None:
    backend = CpuFloatBackend(shipped, 1)
    assert share_of_stages(backend, [random_frame(rng, 240, 320)] * 3) > 0.6
    backend.close()


def twin_of(convolutions: list[tuple[str, list[int]]], weights: dict[str, tuple[int, ...]]) -> bytes:
    """A float twin of 43 classes for images of 32x32: convolutions, and the means of the first 43 channels.

    Args:
        convolutions: name of the weights and padding of each, in order.
        weights: shape of each of them; all are 0.
    """
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper = onnx.helper
    nodes, last = [], "image"
    for index, (name, pads) in enumerate(convolutions):
        nodes.append(helper.make_node("Conv", [last, name], [f"x{index}"], pads=pads))
        last = f"x{index}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["means"]),
        helper.make_node("Gather", ["means", "some"], ["few"], axis=1),
        helper.make_node("Flatten", ["few"], ["logits"]),
    ]
    arrays = {"some": np.arange(43), **{name: np.zeros(each, np.float32) for name, each in weights.items()}}
    graph = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 43])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def assert_twin_refused(model: Model, folder: Path, twin: bytes, reason: str) -> None:
    with pytest.raises(BackendError, match=reason) as caught:
        make_backend(save_model(model, folder, twin), "float", "cpu", 1)
    assert str(caught.value).startswith(str(folder / "float.onnx"))
    assert "\n" not in str(caught.value)


def test_twins_that_do_not_fit(rng: np.random.Generator, shipped: Model, tmp_path: Path) -> None:
    assert shipped.float_twin is not None
    twin = shipped.float_twin.read_bytes()
    model = random_model(rng, side=32)
    for content in (b"", b"not a graph", twin[:1000], twin[:-1000]):
        assert_twin_refused(model, tmp_path, content, "ONNX Runtime cannot load it|is not an ONNX file")
    assert_twin_refused(model, tmp_path, twin, r"is tensor\(float\) \['N', 43\], not float \['N', 5\]")
    other = random_model(rng, side=12, classes=43)
    assert_twin_refused(other, tmp_path, twin, r"\['N', 3, 32, 32\], not float \['N', 3, 12, 12\]")


def test_a_twin_with_weights_in_another_file(shipped: Model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(shipped.float_twin))
    onnx.external_data_helper.convert_model_to_external_data(graph, location="weights.bin", size_threshold=0)
    onnx.save(graph, str(tmp_path / "split.onnx"))
    split = (tmp_path / "split.onnx").read_bytes()
    assert_twin_refused(shipped, tmp_path, split, "keeps weights in another file")


def test_a_twin_with_a_fixed_batch(shipped: Model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(shipped.float_twin))
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert_twin_refused(shipped, tmp_path, graph.SerializeToString(), "is fixed to 1; export it open")


def test_a_twin_whose_output_is_only_known_when_it_runs(shipped: Model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(shipped.float_twin))
    output = graph.graph.output[0]
    output.type.tensor_type.shape.dim[1].dim_param = "classes"
    for name, value in {
        "0": np.zeros(1),
        "10": np.full(1, 10),
        "start": np.zeros(1),
        "axis": np.ones(1),
    }.items():
        dtype = np.float32 if name.isdigit() else np.int64
        graph.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(dtype), name))
    # The end of the slice is a number that comes of the logits.
    graph.graph.node.extend(
        [
            onnx.helper.make_node("Mul", [output.name, "0"], ["zeros"]),
            onnx.helper.make_node("Gather", ["zeros", "start"], ["row"], axis=0),
            onnx.helper.make_node("Gather", ["row", "start"], ["one"], axis=1),
            onnx.helper.make_node("Add", ["one", "10"], ["count"]),
            onnx.helper.make_node("Cast", ["count"], ["whole"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Squeeze", ["whole", "start"], ["end"]),
            onnx.helper.make_node("Slice", [output.name, "start", "end", "axis"], ["some"]),
        ]
    )
    output.name = "some"
    assert_twin_refused(
        shipped, tmp_path, graph.SerializeToString(), r"its output is \[1, 10\], not \[1, 43\]"
    )


def test_a_twin_of_another_interface(shipped: Model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto

    def twin(change: Callable[[Any], None]) -> bytes:
        graph = onnx.load(str(shipped.float_twin))
        change(graph.graph)
        return bytes(graph.SerializeToString())

    def second_output(graph: Any) -> None:
        graph.node.append(helper.make_node("Identity", [graph.output[0].name], ["again"]))
        graph.output.append(helper.make_tensor_value_info("again", kinds.FLOAT, ["N", 43]))

    def second_input(graph: Any) -> None:
        graph.input.append(helper.make_tensor_value_info("more", kinds.FLOAT, [1]))
        graph.node.append(helper.make_node("Add", [graph.output[0].name, "more"], ["sum"]))
        graph.output[0].name = "sum"

    def other_numbers(graph: Any) -> None:
        graph.node.append(helper.make_node("Cast", [graph.output[0].name], ["double"], to=kinds.DOUBLE))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("double", kinds.DOUBLE, ["N", 43]))

    def fixed_answers(graph: Any) -> None:
        graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1

    def another_rank(graph: Any) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
        graph.node.append(helper.make_node("Unsqueeze", [graph.output[0].name, "last"], ["column"]))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("column", kinds.FLOAT, ["N", 43, 1]))

    def one_at_a_time(graph: Any) -> None:
        """Takes the answers of two frames for those of four twice as wide."""
        answers = graph.output[0].name
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
        graph.node.append(helper.make_node("Shape", [answers], ["shape"]))
        graph.node.append(helper.make_node("Gather", ["shape", "first"], ["count"]))
        graph.node.append(helper.make_node("Mul", ["shape", "count"], ["wrong"]))
        graph.node.append(helper.make_node("Reshape", [answers, "wrong"], ["row"]))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("row", kinds.FLOAT, ["N", "classes"]))

    assert_twin_refused(
        shipped, tmp_path, twin(second_output), "1 inputs and 2 outputs; a float twin has 1 and 1"
    )
    assert_twin_refused(
        shipped, tmp_path, twin(second_input), "2 inputs and 1 outputs; a float twin has 1 and 1"
    )
    assert_twin_refused(
        shipped, tmp_path, twin(other_numbers), r"double is tensor\(double\) \['N', 43\], not float"
    )
    assert_twin_refused(shipped, tmp_path, twin(fixed_answers), "is fixed to 1; export it open")
    assert_twin_refused(
        shipped,
        tmp_path,
        twin(another_rank),
        r"column is tensor\(float\) \['N', 43, 1\], not float \['N', 43\]",
    )
    backend = CpuFloatBackend(save_model(shipped, tmp_path, twin(one_at_a_time)), 1)
    assert (backend.name, backend.is_float) == ("cpu_float", True)
    frame = Frame(np.zeros((32, 32, 3), np.uint8))
    assert backend.logits([frame]).shape == (1, 43)
    with pytest.raises(BackendError, match=r"float.onnx: ONNX Runtime failed: .*Reshape") as caught:
        backend.logits([frame, frame])
    assert "\n" not in str(caught.value)
    backend.close()


@pytest.mark.parametrize(
    "operator", ["Loop", "If", "Scan", "ConstantOfShape", "Range", "Expand", "Tile", "NonZero", "x"]
)
def test_a_twin_with_an_operator_that_none_needs(shipped: Model, tmp_path: Path, operator: str) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(shipped.float_twin))
    graph.graph.node.append(onnx.helper.make_node(operator, ["a"], ["b"], name="the last"))
    assert_twin_refused(
        shipped,
        tmp_path,
        graph.SerializeToString(),
        rf"node 'the last' \({operator}\): a float twin needs no such operator",
    )


def test_a_twin_with_more_than_a_graph_of_nodes(shipped: Model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def refused(change: Callable[[Any], None], reason: str) -> None:
        graph = onnx.load(str(shipped.float_twin))
        change(graph)
        assert_twin_refused(shipped, tmp_path, graph.SerializeToString(), reason)

    inner = helper.make_graph([], "inner", [], [])
    refused(
        lambda net: net.graph.node[0].attribute.append(helper.make_attribute("body", inner)), "holds a graph"
    )
    refused(
        lambda net: net.graph.node[0].attribute.append(helper.make_attribute("body", [inner])),
        "holds a graph",
    )
    refused(lambda net: net.functions.add(name="Relu", domain=""), "defines functions of its own")
    refused(lambda net: net.graph.sparse_initializer.add(dims=[10**9]), "holds sparse weights")
    refused(lambda net: net.graph.node.extend([net.graph.node[1]] * 16384), "over 16384 nodes")
    other = helper.make_node("Relu", ["a"], ["b"], domain="other")
    refused(lambda net: net.graph.node.append(other), "a float twin needs no such operator")


def test_a_twin_takes_no_more_memory_than_it_may(
    shipped: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A convolution of 1x1 to half a million channels: 2 GiB from 6 MB. The error is all that is said of it."""
    twin = twin_of([("wide", [0] * 4)], {"wide": (1 << 19, 3, 1, 1)})
    assert_twin_refused(
        shipped,
        tmp_path,
        twin,
        r"float\.onnx: takes over 2 GiB of memory; it is no float twin of model 'road_signs'$",
    )
    assert capfd.readouterr() == ("", "")


def test_a_twin_that_computes_for_ever_is_given_up(
    shipped: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four hundred convolutions of 3x3 over 256 channels, in the memory of one: minutes, in 3 MB."""
    twin = twin_of(
        [("first", [1] * 4), *[("more", [1] * 4)] * 400],
        {"first": (256, 3, 3, 3), "more": (256, 256, 3, 3)},
    )
    monkeypatch.setattr(cpu_float, "PATIENCE", 0.2)
    begin = time.monotonic()
    assert_twin_refused(
        shipped,
        tmp_path,
        twin,
        r"float\.onnx: takes over 0\.2 s for a frame; it is no float twin of model",
    )
    assert time.monotonic() - begin < 5


def test_frames_after_the_first_run_without_a_watchdog(
    shipped: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CpuFloatBackend(shipped, 1)
    monkeypatch.setattr("threading.Timer", None)  # to make one would fail
    monkeypatch.setattr("onnxruntime.RunOptions", None)
    assert backend.logits([Frame(np.zeros((32, 32, 3), np.uint8))]).shape == (1, 43)
    backend.close()


def test_a_twin_that_changed_since_the_model_was_loaded(shipped: Model, tmp_path: Path) -> None:
    assert shipped.float_twin is not None
    model = save_model(shipped, tmp_path, shipped.float_twin.read_bytes())
    with (tmp_path / "float.onnx").open("ab") as file:
        file.write(b"\x08\x08")
    for device in ("cpu", "cuda"):
        with pytest.raises(BackendError, match="float.onnx: its sha256 begins .*; the file was changed"):
            CpuFloatBackend(model, 1) if device == "cpu" else CudaFloatBackend(model)


def test_a_model_without_a_twin(rng: np.random.Generator) -> None:
    with pytest.raises(BackendError, match="has no float twin"):
        make_backend(random_model(rng), "float", "cpu")


def test_threads_are_no_more_than_the_cores_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert thread_count(0, 8) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert thread_count(0, 8) == min(8, len(allowed))
    assert thread_count(5, 1) == 5
