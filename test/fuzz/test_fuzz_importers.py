"""Damaged nets of other tools: a model comes out, or :class:`ImporterError`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import Generator, assert_one_line, damaged, number, one_of, run

from bnn_perception.importers import read
from bnn_perception.importers.errors import ImporterError

QUANT = "qonnx.custom_op.general"


def binary_net(onnx: Any) -> Any:
    """A binary net as exporters write it: quantizers of weights, batch norms, signs, a shortcut, constants by nodes."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    constants: dict[str, Any] = {
        "one": np.ones(1, np.float32),
        "half": np.full(1, 0.5, np.float32),
        "w1": rng.normal(size=(8, 3, 3, 3)),
        "w2": rng.normal(size=(8, 8, 3, 3)),
        "w3": rng.normal(size=(8, 4)),
        **{
            f"{name}{n}": rng.uniform(0.5, 2, 8)
            for n in (1, 2)
            for name in ("gamma", "beta", "mean", "variance")
        },
        "shape": np.array([1, -1]),
    }

    def norm(n: int) -> list[str]:
        return [f"{name}{n}" for name in ("gamma", "beta", "mean", "variance")]

    nodes = [
        helper.make_node("Sub", ["x", "half"], ["centred"]),
        helper.make_node("BipolarQuant", ["w1", "one"], ["b1"], domain=QUANT),
        helper.make_node(
            "Conv", ["centred", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]
        ),
        helper.make_node("BatchNormalization", ["c1", *norm(1)], ["n1"], epsilon=1e-5),
        helper.make_node("MaxPool", ["n1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("BipolarQuant", ["p1", "one"], ["s1"], domain=QUANT),
        helper.make_node("Sign", ["w2"], ["b2"]),
        helper.make_node("Conv", ["s1", "b2"], ["c2"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c2", *norm(2)], ["n2"], epsilon=1e-5),
        helper.make_node("Relu", ["n2"], ["r2"]),
        helper.make_node("Add", ["r2", "n2"], ["a2"]),
        helper.make_node("GlobalAveragePool", ["a2"], ["g2"]),
        helper.make_node("Reshape", ["g2", "shape"], ["flat"]),
        helper.make_node("Abs", ["w3"], ["abs"]),
        helper.make_node("ReduceMean", ["abs"], ["scale"], keepdims=0),
        helper.make_node("BipolarQuant", ["w3", "scale"], ["b3"], domain=QUANT),
        helper.make_node("MatMul", ["flat", "b3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 4])],
        [
            onnx.numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), name)
            for name, value in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(QUANT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def change_graph(rng: Generator, proto: Any, operators: list[str]) -> None:
    """One fault in a graph that can still be parsed."""
    graph = proto.graph
    node = graph.node[int(rng.integers(len(graph.node)))] if graph.node else graph.node.add()
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))] if graph.initializer else None
    names = [name for each in graph.node for name in (*each.input, *each.output)] or [""]
    fault = rng.integers(9)
    if fault == 0:
        graph.node.remove(node)
    elif fault == 1:
        node.op_type = str(one_of(rng, operators))
    elif fault == 2 and node.input:
        node.input[int(rng.integers(len(node.input)))] = str(one_of(rng, names))
    elif fault == 3 and node.output:
        node.output[0] = str(one_of(rng, names))
    elif fault == 4 and node.attribute:
        attribute = node.attribute[int(rng.integers(len(node.attribute)))]
        attribute.i = number(rng)
        if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = number(rng)
        attribute.f = float(one_of(rng, [0.0, -1.0, 1e38, float("inf"), float("nan")]))
    elif fault == 5 and tensor is not None and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = number(rng)
    elif fault == 6 and tensor is not None:
        tensor.raw_data = damaged(rng, tensor.raw_data)
    elif fault == 7 and tensor is not None:
        tensor.data_type = int(rng.integers(0, 25))
    else:
        sizes = graph.input[0].type.tensor_type.shape.dim if graph.input else []
        if sizes:
            sizes[int(rng.integers(len(sizes)))].dim_value = number(rng)


def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")
    whole = binary_net(onnx)
    content = whole.SerializeToString()
    operators = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert len(read(path).layers) > 3
    imported = 0

    def case(rng: Generator) -> None:
        nonlocal imported
        if rng.random() < 0.4:
            path.write_bytes(damaged(rng, content))
        else:
            proto = onnx.ModelProto()
            proto.CopyFrom(whole)
            for _ in range(int(rng.integers(1, 4))):
                change_graph(rng, proto, operators)
            path.write_bytes(proto.SerializeToString())
        try:
            read(path)
            imported += 1
        except ImporterError as error:
            assert_one_line(error)

    # What NumPy says of infinities in a damaged graph is not to stop the test that finds worse.
    with np.errstate(all="ignore"):
        run("onnx", case)
    assert imported > 0


def test_bnn_pynq(tmp_path: Path) -> None:
    """The folder of an LFC whose layers have one element each; its weights are random."""
    rng = np.random.default_rng(0)
    shapes = [(1024, 832), (1024, 1024), (1024, 1024), (64, 1024)]
    files: dict[str, bytes] = {}
    for layer, (rows, columns) in enumerate(shapes):
        files[f"{layer}-0-weights.bin"] = rng.bytes(rows * columns // 8)
        if layer < 3:
            files[f"{layer}-0-thres.bin"] = rng.integers(300, 700, rows).astype("<i8").tobytes()
    files["3-0-thres.bin"] = np.full(64, 512).astype("<i8").tobytes()
    folder = tmp_path / "net"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert len(read(folder).labels) == 64
    imported = 0

    def case(rng: Generator) -> None:
        nonlocal imported
        name = str(one_of(rng, list(files)))
        path = folder / name
        fault = rng.integers(6)
        path.unlink()
        if fault == 0:
            (folder / f"{number(rng)}-{number(rng)}-weights.bin").write_bytes(files[name])
        elif fault == 1:
            path.mkdir()
        elif fault == 2:
            os.mkfifo(path)
        elif fault == 3:
            (folder / "classes.txt").write_bytes(rng.bytes(int(rng.integers(0, 300))))
            path.write_bytes(files[name])
        else:
            path.write_bytes(damaged(rng, files[name]))
        try:
            read(folder)
            imported += 1
        except ImporterError as error:
            assert_one_line(error)
        finally:
            for entry in list(folder.iterdir()):
                if entry.is_dir():
                    entry.rmdir()
                elif entry.name not in files or entry.name == name:
                    entry.unlink()
            path.write_bytes(files[name])

    run("bnn_pynq", case)
    assert imported > 0
