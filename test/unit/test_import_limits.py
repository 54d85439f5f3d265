"""What a graph that nobody vouches for may cost to import: small files that ask for gigabytes, hours, other files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_perception.cli.import_ import read_labels
from bnn_perception.errors import CommandError
from bnn_perception.importers import import_model, read, source_logits
from bnn_perception.importers.errors import ImporterError
from bnn_perception.importers.fold.builder import UNIT
from bnn_perception.importers.onnx.costs import FREE_ELEMENTS, FREE_OPERATIONS

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

BIG = 1 << 30


def net(
    path: Path,
    nodes: list[Any],
    constants: dict[str, Any],
    shape: tuple[Any, ...] = ("N", 1, 2, 2),
    opset: int = 13,
) -> Path:
    """A net whose last layer takes its weights from the constant ``w``, which the nodes make."""
    logits = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        [*nodes, *logits],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "classes"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def doubled(times: int) -> list[Any]:
    """Each Concat joins what the one before it made with itself."""
    names = ["seed", *(f"c{index}" for index in range(times - 1)), "w"]
    return [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in zip(names, names[1:])]


ONES = np.ones((4, 3), np.float32)
WIDE = np.ones((1, 1 << 14), np.float32)
BOMBS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["s"], ["w"])], {"s": [BIG, 4]}),
    "Range": ([helper.make_node("Range", ["a", "b", "c"], ["w"])], {"a": 0, "b": BIG, "c": 1}),
    "an endless Range": (
        [helper.make_node("Range", ["a", "b", "c"], ["w"])],
        {"a": np.float32(0), "b": np.float32(np.inf), "c": np.float32(1)},
    ),
    "Expand": ([helper.make_node("Expand", ["o", "s"], ["w"])], {"o": ONES, "s": [BIG, 4, 3]}),
    "Tile": ([helper.make_node("Tile", ["o", "s"], ["w"])], {"o": ONES, "s": [BIG, 1]}),
    "Pad": ([helper.make_node("Pad", ["o", "s"], ["w"])], {"o": ONES, "s": [0, 0, BIG, 0]}),
    "Concat": (doubled(40), {"seed": ONES}),
    "Add": ([helper.make_node("Add", ["a", "b"], ["w"])], {"a": WIDE, "b": WIDE.T}),
    "Where": (
        [helper.make_node("Where", ["a", "b", "b"], ["w"])],
        {"a": np.ones((1 << 14, 1), bool), "b": WIDE},
    ),
    "MatMul": ([helper.make_node("MatMul", ["a", "b"], ["w"])], {"a": WIDE.T, "b": WIDE}),
    "Gemm": ([helper.make_node("Gemm", ["b", "b"], ["w"], transA=1)], {"b": WIDE}),
    "Gather": (
        [helper.make_node("Gather", ["o", "i"], ["w"], axis=0)],
        {"o": np.ones((1, 1 << 13), np.float32), "i": np.zeros(1 << 13, np.int64)},
    ),
    "many that are small": (
        [
            *(helper.make_node("ConstantOfShape", ["s"], [f"c{index}"]) for index in range(20)),
            helper.make_node("Sum", [f"c{index}" for index in range(20)], ["w"]),
        ],
        {"s": [1 << 21]},
    ),
}
REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "a regular expression": (
        [helper.make_node("RegexFullMatch", ["t"], ["w"], pattern="(a+)+$")],
        {"t": np.array(["a" * 40 + "b"], object)},
        "is not computed for constants|texts|cannot be read",
    ),
    "a product by a rule": (
        [helper.make_node("Einsum", ["a", "b"], ["w"], equation="ij,kl->ijkl")],
        {"a": WIDE, "b": WIDE},
        "is not computed for constants",
    ),
    "a loop": ([helper.make_node("Loop", ["n"], ["w"])], {"n": BIG}, "is not computed for constants|has "),
    "texts": ([helper.make_node("Cast", ["o"], ["w"], to=TensorProto.STRING)], {"o": ONES}, "gives texts"),
    "a sparse constant": (
        [
            helper.make_node(
                "Constant",
                [],
                ["w"],
                sparse_value=helper.make_sparse_tensor(
                    numpy_helper.from_array(np.ones(1, np.float32), "v"),
                    numpy_helper.from_array(np.zeros(1, np.int64), "i"),
                    [BIG, BIG],
                ),
            )
        ],
        {},
        "gives texts|sparse",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_constants_that_cost_too_much_are_not_computed(tmp_path: Path, name: str) -> None:
    started = time.process_time()
    with pytest.raises(
        ImporterError, match=r"makes \d+ numbers by \d+ operations|counts without an end|expands to"
    ):
        read(net(tmp_path / "net.onnx", *BOMBS[name]))
    assert time.process_time() - started < 5
    assert os.path.getsize(tmp_path / "net.onnx") < 1 << 20


@pytest.mark.parametrize("name", REFUSED)
def test_constants_of_unknown_cost_are_not_computed(tmp_path: Path, name: str) -> None:
    *content, reason = REFUSED[name]
    with pytest.raises(ImporterError, match=reason):
        read(net(tmp_path / "net.onnx", *content, opset=20))


def test_constants_below_the_limit_are_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["o", "zero"], ["w"]),
    ]
    path = net(tmp_path / "net.onnx", nodes, {"s": [FREE_ELEMENTS // 2], "o": ONES})
    model = read(path)
    image = np.full((2, 2, 1), 255, np.uint8)
    assert source_logits(path, [image], UNIT).tolist() == [[4, 4, 4]]
    assert [layer.kind for layer in model.layers][-1] != ""
    assert FREE_OPERATIONS > FREE_ELEMENTS


def test_what_nobody_takes_is_not_computed(tmp_path: Path) -> None:
    bomb = helper.make_node("ConstantOfShape", ["s"], ["nobody"])
    path = net(tmp_path / "net.onnx", [bomb], {"w": ONES, "s": [BIG, BIG]})
    read(path)
    assert source_logits(path, [np.zeros((2, 2, 1), np.uint8)], UNIT).shape == (1, 3)


@pytest.mark.parametrize("shape", [(10**9, 1, 2, 2), ("N", 1, 10**9, 2), (257, 1, 2, 2)])
def test_images_that_are_too_many_or_too_large(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    with pytest.raises(ImporterError, match="at most 256 images of 4096 by 4096 are taken"):
        read(net(tmp_path / "net.onnx", [], {"w": ONES}, shape))


def changed(path: Path, change: Callable[[Any], Any]) -> Path:
    proto = onnx.load(str(path))
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def test_graphs_with_more_than_nodes_of_the_standard(tmp_path: Path) -> None:
    def refused(change: Callable[[Any], Any], reason: str) -> None:
        path = changed(net(tmp_path / "net.onnx", [], {"w": ONES}), change)
        with pytest.raises(ImporterError, match=reason):
            read(path)
        with pytest.raises(ImporterError, match=reason):
            source_logits(path, [np.zeros((2, 2, 1), np.uint8)], UNIT)

    refused(lambda proto: proto.functions.add(name="MatMul", domain=""), "defines the operator MatMul anew")
    refused(lambda proto: proto.graph.sparse_initializer.add(dims=[BIG, BIG]), "holds sparse constants")
    refused(
        lambda proto: proto.graph.node.extend([proto.graph.node[0]] * 16383),
        "16385 nodes; at most 16384 are read",
    )


def external(path: Path, location: str, length: int) -> Path:
    """The net with its weights in another file."""

    def change(proto: Any) -> None:
        (tensor,) = proto.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)

    return changed(net(path, [], {"w": ONES}), change)


def test_weights_in_other_files_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(ONES.tobytes())
    (folder / "link").symlink_to("../secret")
    os.mkfifo(folder / "fifo")
    (folder / "short").write_bytes(ONES.tobytes()[:-1])
    (folder / "w").write_bytes(ONES.tobytes())
    for location in ("../secret", str(tmp_path / "secret"), "link", "fifo", "short", "nothing", "a\0b"):
        with pytest.raises(ImporterError, match="the data of 'w', in another file, cannot be read"):
            read(external(folder / "net.onnx", location, ONES.nbytes))
    read(external(folder / "net.onnx", "w", ONES.nbytes))


@pytest.mark.parametrize("name", ["net.onnx", "0-0-weights.bin"])
def test_sources_that_are_no_files_are_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ImporterError):
        read(tmp_path if name.endswith("bin") else tmp_path / name)


def test_nothing_is_written_of_what_cannot_be_loaded(tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx", [], {"w": np.ones((4, 6000), np.float32)})
    labels = ["x" * 190 + str(index) for index in range(6000)]
    with pytest.raises(ImporterError, match=r"model.yaml: \d+ bytes; at most 1048576 are read"):
        import_model(path, tmp_path / "out", labels)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_labels_are_read_of_a_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "labels")
    with pytest.raises(CommandError, match="labels: cannot be read: is not a regular file"):
        read_labels(tmp_path / "labels")
