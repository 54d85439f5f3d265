"""Whole nets on the GPU: layer by layer, as a graph, for batches of mixed frames, and after faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
from layer_cases import RNG, check_activations, frames_of, paper_model, thermometer_model

from bnn_perception.backends import BackendError, make_backend
from bnn_perception.backends.cuda.binary import CudaBinaryBackend
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.net.folder import load_model
from bnn_perception.net.model import InputSpec, Model
from bnn_perception.resources import resource_folder

NETS: dict[str, Callable[[], Model]] = {
    "paper": paper_model,
    "road signs": lambda: models.road_sign_model(RNG(2)),
    "thermometer": thermometer_model,
    "every layer": lambda: models.random_model(RNG(3)),
    "residual": lambda: models.residual_model(RNG(6), 48),
    "residual, odd sides": lambda: models.residual_model(RNG(6), 33, channels=33),
}
NETS.update(
    {
        path.parent.name: lambda path=path: load_model(path.parent)
        for path in resource_folder("models").glob("*/model.yaml")
    }  # type: ignore[misc]
)
MIXED = frames_of(
    (480, 640, "rgb8"), (31, 20, "mono8"), (90, 33, "bgra8"), (720, 1280, "bgr8"), (5, 300, "rgba8")
)


@pytest.mark.parametrize("name", NETS)
def test_net_layer_by_layer(name: str) -> None:
    model = NETS[name]()
    backend = CudaBinaryBackend(model)
    check_activations(backend, models.random_frame(RNG(4), 480, 640))
    backend.close()


@pytest.mark.parametrize("name", NETS)
def test_graph_of_mixed_frames(name: str) -> None:
    model = NETS[name]()
    backend = CudaBinaryBackend(model)
    expected = ReferenceBackend(model).logits(MIXED)
    for count in (1, 2, 5, 3, 1):
        np.testing.assert_array_equal(backend.logits(MIXED[:count]), expected[:count])
    backend.close()


def test_many_launches_of_one_graph() -> None:
    """Each frame gives its own answer, whatever ran before it."""
    model = NETS["every layer"]()
    backend = CudaBinaryBackend(model)
    frames = [models.random_frame(RNG(index), 60, 80) for index in range(20)]
    expected = [ReferenceBackend(model).logits([frame]) for frame in frames]
    for _ in range(20):
        for frame, wanted in zip(frames, expected):
            np.testing.assert_array_equal(backend.logits([frame]), wanted)
    backend.close()


@pytest.mark.parametrize("count", [1, 4, 16, 64])
def test_large_batches(count: int) -> None:
    model = NETS["every layer"]()
    backend = CudaBinaryBackend(model)
    frames = [models.random_frame(RNG(index), 40, 50) for index in range(count)]
    np.testing.assert_array_equal(backend.logits(frames), ReferenceBackend(model).logits(frames))
    backend.close()


def test_stage_times_add_up() -> None:
    """The graph's events are recorded, and in order: the parts are positive, and less than a second for a small net."""
    backend = CudaBinaryBackend(NETS["paper"]())
    for _ in range(3):
        backend.logits(MIXED[:1])
    assert list(backend.times) == ["upload", "preprocess", "inference", "download"]
    assert all(0 <= value < 1000 for value in backend.times.values())
    assert backend.times["inference"] > 0.001
    backend.close()


def test_auto_takes_the_gpu() -> None:
    backend = make_backend(NETS["every layer"](), "binary", "auto")
    assert backend.name == "cuda_binary"
    backend.close()


def test_out_of_memory_is_a_backend_error() -> None:
    """A net whose activations do not fit beside what is taken already."""
    import cupy

    model = models.make_model(
        InputSpec(2048, 2048),
        [
            models.thermometer(RNG(0), "levels", (2048, 2048, 3), 16),
            models.output_dense(RNG(1), "out", (2048, 2048, 48), 2),
        ],
    )
    backend = CudaBinaryBackend(model)
    free = cupy.cuda.runtime.memGetInfo()[0]
    taken = cupy.cuda.Memory(max(0, free - (256 << 20)))
    try:
        frames = [models.random_frame(RNG(index), 64, 64) for index in range(64)]
        with pytest.raises(BackendError, match="make the backend anew"):
            backend.logits(frames)
    finally:
        del taken
        backend.close()


FAULT = """
import sys
sys.path.insert(0, {test!r})
import cupy, models, numpy as np
from bnn_perception.backends import BackendError
from bnn_perception.backends.cuda.binary import CudaBinaryBackend

backend = CudaBinaryBackend(models.random_model(np.random.default_rng(0)))
frames = [models.random_frame(np.random.default_rng(1), 40, 50)]
backend.logits(frames)
trap = cupy.RawModule(code='extern "C" __global__ void trap() {{ __trap(); }}').get_function("trap")
trap((1,), (1,), ())
for _ in range(2):
    try:
        backend.logits(frames)
    except BackendError as error:
        print("BackendError", error)
backend.close()
backend.close()
print("closed")
"""


def test_an_error_of_a_kernel_is_a_backend_error() -> None:
    """In a process of its own: the error stays with the process's CUDA context."""
    script = FAULT.format(test=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.count("BackendError") == 2, done.stdout + done.stderr
    assert "closed" in done.stdout
