"""The GPU benchmark from end to end on the stand-in: its parts, its results, and that a failing part costs itself only.

The times are those of the host and mean nothing. The peaks' kernels are PTX, which the host cannot run; that they
repeat what they say is tested on their machine code in test_peaks.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_cublas import FakeCublas
from fake_cupy import CUDARuntimeError, FakeCupy

from benchmark.gpu import benchmark, nets, parts, peaks
from benchmark.gpu.nets import Convolutions, Topology, benchmark_model
from bnn_perception.backends.cuda import cublas, timing, tune
from bnn_perception.backends.cuda.backend import Launch
from bnn_perception.backends.cuda.binary import CudaBinaryBackend
from bnn_perception.backends.cuda.specs import Target, tiles_of
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.errors import CommandError
from bnn_perception.net.model import iter_layers

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NET = Topology("small", 12, Convolutions((8, 8), 3), (10, 4))


def run_here(name: str, file: Path, folder: Path | None, seconds: float) -> str | None:
    """As run_in_process, in this process, where the stand-in is."""
    try:
        parts.run_part(name, file, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.fixture
def world(fake_gpu: Callable[..., FakeCupy], monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """A GPU that runs kernels, and a benchmark that takes few samples of small nets."""
    world = fake_gpu()
    monkeypatch.setattr(cublas, "load_library", lambda: FakeCublas(world))
    monkeypatch.setattr(benchmark, "PAPER", NET)
    monkeypatch.setattr(benchmark, "ROAD_SIGNS", NET)
    monkeypatch.setattr(parts, "BATCHES", (1, 4))
    monkeypatch.setattr(parts, "ROTATION", 2)
    monkeypatch.setattr(parts, "TUNING_CANDIDATES", 2)
    monkeypatch.setattr(parts, "CONVOLUTION_FRAMES", 2)
    monkeypatch.setattr(parts, "CONVOLUTION_TILES", 2)
    monkeypatch.setattr(nets, "SQUARES", ((6, 33),))
    for name, value in {"MIN_SAMPLES": 2, "MAX_SAMPLES": 2, "KERNEL_REPEATS": 2, "WARM_SECONDS": 0}.items():
        monkeypatch.setattr(timing, name, value)
    measured = peaks.Peaks(1e12, 4e12, 1e11, {"b1 mma m16n8k256 xor": 1e14})
    monkeypatch.setattr(peaks, "measure_peaks", lambda gpu: measured)
    return world


def test_the_whole_run(world: FakeCupy, tmp_path: Path) -> None:
    assert benchmark.run_benchmark(tmp_path, 10, run_here) == 0
    results = json.loads((tmp_path / "shim.json").read_text())
    entries = results["nets"]["small"]["entries"]
    assert entries["correctness"]["words"] > 1000
    for name in ("cuda_binary", "cuda_binary tuned", "cuda_float fp32", "cuda_float fp16"):
        assert set(entries[name]["batches"]) == {"1", "4"}
        for measured in entries[name]["batches"].values():
            assert measured["gpu"]["median"] > 0
            assert measured["call"]["samples"] == 2
    kernels = entries["cuda_binary"]["batches"]["4"]["kernels"]
    assert [kernel["layer"] for kernel in kernels] == ["input", "conv1", "conv2", "dense1", "dense2"]
    # conv2: 6x6 pixels, 3x3 taps of 8 channels, 8 filters, 4 frames.
    assert kernels[2]["binary_macs"] == 36 * 9 * 8 * 8 * 4
    TileTable.load(tmp_path / "shim.tiles.yaml")
    for popc, mma in zip(*[iter(results["convolutions"]["convolutions"])] * 2):
        assert (popc["kernel"], mma["kernel"]) == ("bconv2d_popc", "bconv2d_b1mma")
        assert popc["binary_macs"] == mma["binary_macs"] == 6 * 6 * 9 * 33 * 33 * 2
    text = (tmp_path / "shim.md").read_text()
    assert "| bconv2d_popc 6x6x33 -> 33, 3x3/1x1+1x1, 2 frames | bconv2d_b1mma |" in text
    assert "| cuda_float fp32, no graph |" in text
    assert "cuda_binary equals the reference" in text
    assert "**failed**" not in text


def test_a_failing_part_costs_itself_only(
    world: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(gpu: object) -> None:
        raise CUDARuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(peaks, "measure_peaks", fail)
    kept = {name: parts.NET_PARTS[name] for name in ("correctness", "cuda_binary")}
    monkeypatch.setattr(parts, "NET_PARTS", kept)
    assert benchmark.run_benchmark(tmp_path, 10, run_here) == 1
    results = json.loads((tmp_path / "shim.json").read_text())
    assert {part["part"]: part["ok"] for part in results["parts"]} == {
        "environment": True,
        "peaks": False,
        "convolutions": True,
        "small: correctness": True,
        "small: cuda_binary": True,
    }
    assert results["nets"]["small"]["entries"]["cuda_binary"]["batches"]["4"]["gpu"]
    reason = "BackendError: Shim failed (CUDARuntimeError: cudaErrorIllegalAddress)"
    assert f"**failed**: {reason}" in (tmp_path / "shim.md").read_text()
    assert f"FAILED: {reason}" in capsys.readouterr().out


def test_parts_that_have_no_time_are_named(world: FakeCupy, tmp_path: Path) -> None:
    assert benchmark.run_benchmark(tmp_path, 0, run_here) == 1
    results = json.loads((tmp_path / "unknown-gpu.json").read_text())
    assert all("minutes were over" in part["error"] for part in results["parts"])


def test_without_a_gpu_nothing_is_written(world: FakeCupy, tmp_path: Path) -> None:
    world.device_count = 0
    with pytest.raises(CommandError, match="no NVIDIA GPU was found"):
        benchmark.run_benchmark(tmp_path / "results", 10, run_here)
    assert not (tmp_path / "results").exists()


def test_tuning_writes_the_fastest_tile(
    world: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = benchmark_model(NET, np.random.default_rng(0))
    # The second tile of each layer is the fastest, and the third gives wrong logits.
    networks = 0

    def times(backend: CudaBinaryBackend, frames: object) -> list[tuple[Launch, timing.Timing]]:
        fast = timing.Timing(1.0 if networks == 2 else 2.0, 3.0, 1)
        return [(Launch(layer.name, None, lambda: None), fast) for layer in model.layers]

    def logits(backend: CudaBinaryBackend, frames: object) -> np.ndarray:
        nonlocal networks
        networks += 1
        return np.zeros(4) if networks < 3 else np.ones(4)

    monkeypatch.setattr(tune, "time_kernels", times)
    monkeypatch.setattr(CudaBinaryBackend, "logits", logits)
    path = tmp_path / "tiles.yaml"
    tune.tune([model, model], path, 3)  # the second one's shapes are known by then
    assert networks == 3
    target = Target(87, 16)
    for layer, shape, *_ in iter_layers(model):
        tiles = list(tiles_of(layer, shape, target))  # type: ignore[arg-type]
        second = tiles[min(1, len(tiles) - 1)]
        assert TileTable.load(path).tile(layer, shape, target) == second  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert "candidate 2 left out: its logits are wrong" in out
    assert "2.00 -> 1.00 µs, 2 tiles" in out


def test_tests_are_a_part_of_the_results(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_one.py").write_text("def test_one():\n    assert True\n")
    result = tmp_path / "result.json"
    assert benchmark.run_in_process(benchmark.TESTS, result, folder, 60) is None
    assert "1 passed" in json.loads(result.read_text())["summary"]
    (folder / "test_two.py").write_text("def test_two():\n    assert False\n")
    assert "1 failed, 1 passed" in str(benchmark.run_in_process(benchmark.TESTS, result, folder, 60))


def test_a_part_that_dies_is_reported(tmp_path: Path) -> None:
    """In a process of its own, without a GPU: the last line of its complaint."""
    error = benchmark.run_in_process("cuda_binary", tmp_path / "result.json", tmp_path, 60)
    assert error is not None
    assert "ModelError" in error
    assert "model.yaml" in error
    assert (
        benchmark.run_in_process("environment", tmp_path / "result.json", None, 0.001)
        == "cut off: the time was over"
    )
