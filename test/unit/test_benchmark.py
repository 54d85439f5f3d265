"""The benchmark command: what it states, not how fast this machine is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from models import binary_conv, make_model, output_dense, random_float_twin, random_model, thermometer

from bnn_perception.cli import benchmark, execute, timing
from bnn_perception.cli.timing import CallTimes, compare
from bnn_perception.net.folder import save_model
from bnn_perception.net.model import InputSpec
from bnn_perception.ros import node_cost


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(timing, "CALLS", 4)
    monkeypatch.setattr(benchmark, "MEMORY_FRAMES", 5)
    monkeypatch.setattr(node_cost, "FRAMES", 20)
    monkeypatch.setattr(node_cost, "UNCOUNTED", 5)


def run(model: str | Path, file: Path, *arguments: str) -> dict:
    """The JSON that ``benchmark`` writes."""
    argv = ["--model", str(model), "--json", str(file), *arguments]
    assert execute(benchmark, "benchmark", argv) == 0
    return json.loads(file.read_text())


def test_all_nets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    model = random_model(rng)
    save_model(model, tmp_path / "model", random_float_twin(rng, model))
    results = run(tmp_path / "model", tmp_path / "result.json", "--threads", "1", "2")
    assert list(results["threads"]) == ["1", "2"]
    for measured in results["threads"].values():
        assert list(measured["net"]) == ["cpu_binary", "float32", "int8"]
        for name, figures in measured["net"].items():
            assert 0 < figures["median"] <= figures["p95"]
            if name != "cpu_binary":
                assert figures["ratio_p10"] <= figures["ratio"] <= figures["ratio_p90"]
        assert [layer["name"] for layer in measured["layers"]] == [layer.name for layer in model.layers]
        for layer in measured["layers"]:
            assert all(layer[name]["median"] > 0 for name in ("cpu_binary", "float32", "int8"))
        assert measured["preprocess"]["median"] > 0
    assert list(results["memory"]) == ["5", "55"]
    out = capsys.readouterr().out
    for word in ("conv1", "dense2", "int8", "1 thread, whole net", "2 threads, whole net", "resident memory"):
        assert word in out
    if "node" not in results:
        assert "needs ROS 2" in results["notes"][0]


def test_the_node(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    save_model(random_model(np.random.default_rng(0)), tmp_path / "model")
    results = run(tmp_path / "model", tmp_path / "result.json", "--threads", "1")
    own = results["node"]["own"]["median"]
    # Medians do not add up exactly; each of these is a part of what "own" covers.
    assert own > max(results["node"][stage]["median"] for stage in ("decode", "preprocess", "publish"))
    assert own < results["node"]["node"]["median"]


def test_without_onnx_int8_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setitem(sys.modules, "onnx", None)
    results = run("road_signs", tmp_path / "result.json", "--threads", "1")
    assert list(results["threads"]["1"]["net"]) == ["cpu_binary", "float32"]
    assert all("float32" in layer for layer in results["threads"]["1"]["layers"])
    assert "needs the package onnx" in results["notes"][0]


def test_a_model_without_a_twin_that_begins_with_a_thermometer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [
        thermometer(rng, "levels", (8, 8, 3), 8),
        binary_conv(rng, "conv", (8, 8, 24), 32),
        output_dense(rng, "output", (8, 8, 32), 4),
    ]
    save_model(make_model(InputSpec(8, 8), list(layers)), tmp_path / "model")
    results = run(tmp_path / "model", tmp_path / "result.json", "--threads", "1")
    assert list(results["threads"]["1"]["net"]) == ["cpu_binary"]
    assert [layer["name"] for layer in results["threads"]["1"]["layers"]] == ["levels", "conv", "output"]
    assert "has no float twin" in results["notes"][0]


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that becomes three times slower half way changes no ratio."""
    base = np.array([[1.0, 1.0, 9.0], [3.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    assert CallTimes(base * 2).ratio_to(CallTimes(base)) == (2.0, 2.0, 2.0)
    assert CallTimes(base).median == 1.0


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "UNCOUNTED", 1)
    calls: list[str] = []
    timings = compare({name: (lambda name=name: calls.append(name)) for name in "abc"})
    assert "".join(calls) == "aaaaabbbbbccccc" + "bbbbbcccccaaaaa" + "cccccaaaaabbbbb"
    assert all(value.milliseconds.shape == (3, 4) for value in timings.values())
