"""The nets of ``benchmark.cpu``: that both forms are what they are called; their times are the program's own matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from benchmark.cpu import CLASSES, NETS, SIDE, Net  # noqa: E402
from bnn_perception.importers import read  # noqa: E402
from bnn_perception.importers.fold.builder import UNIT  # noqa: E402
from bnn_perception.net.signals import ScaledBinaryConv2d  # noqa: E402


@pytest.mark.parametrize("name", sorted(NETS))
def test_both_nets_have_the_same_shapes(name: str, tmp_path: Path) -> None:
    graphs = {binary: Net(binary) for binary in (True, False)}
    paths = {b: graph.save(tmp_path / f"{b}.onnx", NETS[name](graph)) for b, graph in graphs.items()}
    model = read(paths[True], UNIT)
    assert sum(isinstance(layer, ScaledBinaryConv2d) for layer in model.layers) == 16
    weights = {
        b: [n.input[1] for n in onnx.load(str(path)).graph.node if n.op_type in ("Conv", "Gemm")]
        for b, path in paths.items()
    }
    assert len(weights[True]) == len(weights[False])
    shapes = {
        b: [tuple(t.dims) for t in onnx.load(str(path)).graph.initializer if t.name in weights[b]]
        for b, path in paths.items()
    }
    assert shapes[True] == shapes[False]
    if name == "bireal18":  # 1.8 GMAC, as ResNet-18
        assert 1.80e9 < model.macs < 1.83e9


def test_the_float_net_answers(tmp_path: Path) -> None:
    graph = Net(binary=False)
    path = graph.save(tmp_path / "float.onnx", NETS["quicknet"](graph))
    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    (logits,) = ReferenceEvaluator(str(path)).run(None, {"image": image})
    assert logits.shape == (1, CLASSES)
    assert np.isfinite(logits).all()
