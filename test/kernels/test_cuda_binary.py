"""The CUDA backend with real kernels on a stand-in for the GPU: whole nets, graphs, buffers, faults."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import models
import numpy as np
import pytest
from fake_cupy import (
    CompileException,
    CUDADriverError,
    CUDARuntimeError,
    FakeCupy,
    NVRTCError,
    OutOfMemoryError,
)
from hypothesis import given
from launches import same_examples
from layer_cases import (
    RNG,
    check_activations,
    frames_of,
    paper_model,
)

from bnn_perception.backends import BackendError, make_backend
from bnn_perception.backends.cuda import backend as cuda_backend
from bnn_perception.backends.cuda import device, graph, specs
from bnn_perception.backends.cuda.binary import CudaBinaryBackend
from bnn_perception.backends.cuda.tiles import TileTable, user_table
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.net.folder import load_model
from bnn_perception.net.layers import BinaryConv2d
from bnn_perception.net.model import Model, iter_layers
from bnn_perception.resources import resource_folder

MakeGpu = Callable[..., FakeCupy]
SMALL = models.random_model(RNG(0))


MIXED = frames_of((48, 64, "rgb8"), (31, 20, "mono8"), (90, 33, "bgra8"), (12, 12, "bgr8"), (5, 300, "rgba8"))


def check_net(model: Model, frame: Frame) -> None:
    backend = CudaBinaryBackend(model)
    check_activations(backend, frame)
    backend.close()


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize(
    "make_model", [paper_model, lambda: models.road_sign_model(RNG(2))], ids=["paper", "road signs"]
)
def test_net_layer_by_layer(fake_gpu: MakeGpu, make_model: Callable[[], Model], integrated: bool) -> None:
    fake_gpu(integrated=integrated)
    check_net(make_model(), models.random_frame(RNG(3), 120, 160))


def shipped_models() -> list[Path]:
    return sorted(path.parent for path in resource_folder("models").glob("*/model.yaml"))


@pytest.mark.parametrize("folder", shipped_models(), ids=lambda path: path.name)
def test_shipped_model_layer_by_layer(fake_gpu: MakeGpu, folder: Path) -> None:
    fake_gpu()
    check_net(load_model(folder), models.random_frame(RNG(4), 120, 160))


def test_residual_net_layer_by_layer(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    check_net(models.residual_model(RNG(6)), models.random_frame(RNG(7), 60, 80))


def test_residual_net_in_batches(fake_gpu: MakeGpu) -> None:
    """Residuals grow with the batch, each frame has its own, and a graph finds nothing left of its last launch."""
    world = fake_gpu()
    model = models.residual_model(RNG(6))
    backend, expected = CudaBinaryBackend(model), ReferenceBackend(model).logits(MIXED)
    for count in (1, 5, 2, 1):
        np.testing.assert_array_equal(backend.logits(MIXED[:count]), expected[:count])
    for index in (3, 1):
        np.testing.assert_array_equal(backend.logits(MIXED[index : index + 1]), expected[index : index + 1])
    assert world.graph_launches == 6


@same_examples(5)
@given(models.residual_models())
def test_any_residual_net(fake_gpu: MakeGpu, model: Model) -> None:
    fake_gpu()
    check_net(model, MIXED[0])


@same_examples(10)
@given(models.models())
def test_any_net(fake_gpu: MakeGpu, model: Model) -> None:
    fake_gpu()
    frames = MIXED[:2]
    np.testing.assert_array_equal(
        CudaBinaryBackend(model).logits(frames), ReferenceBackend(model).logits(frames)
    )


@pytest.mark.parametrize("integrated", [False, True])
def test_frames_of_different_sizes_and_encodings_in_one_batch(fake_gpu: MakeGpu, integrated: bool) -> None:
    fake_gpu(integrated=integrated)
    backend = CudaBinaryBackend(SMALL)
    expected = ReferenceBackend(SMALL).logits(MIXED)
    for count in (1, 5, 2, 3):
        np.testing.assert_array_equal(backend.logits(MIXED[:count]), expected[:count])


@pytest.mark.parametrize("integrated", [True, False])
def test_buffers_that_grow_leave_nothing_that_uses_the_old_ones(fake_gpu: MakeGpu, integrated: bool) -> None:
    """A frame as small as one before a larger one finds no graph of the buffer that was there then, nor its pixels."""
    fake_gpu(integrated=integrated)
    backend, reference = CudaBinaryBackend(SMALL), ReferenceBackend(SMALL)
    frames = frames_of(*((side, side + 3, "rgb8") for side in (20, 20, 150, 20, 300, 20, 150)))
    for frame in frames:
        np.testing.assert_array_equal(backend.logits([frame]), reference.logits([frame]))
    # The arrays of the network grow with the number of frames, the upload buffer with their size.
    for batch in (frames[:2], frames[:1], frames[2:5], frames[1:2], frames[3:4] + frames[5:6]):
        np.testing.assert_array_equal(backend.logits(batch), reference.logits(batch))


def test_more_frames_than_a_launch_takes(fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_backend, "MAX_FRAMES", 4)
    world = fake_gpu()
    frames = [models.random_frame(RNG(index), 12, 12) for index in range(7)]
    backend = CudaBinaryBackend(SMALL)
    np.testing.assert_array_equal(backend.logits(frames), ReferenceBackend(SMALL).logits(frames))
    assert world.graph_launches == 2


def test_a_camera_takes_one_capture_then_one_launch_and_one_wait_a_frame(fake_gpu: MakeGpu) -> None:
    world = fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    frames = [models.random_frame(RNG(index), 48, 64) for index in range(4)]
    backend.logits(frames[:1])
    gc.collect()  # what the first frame left, the smaller buffer among it
    before = world.waits, world.modules, len(world.allocations)
    for frame in frames[1:]:
        np.testing.assert_array_equal(backend.logits([frame]), ReferenceBackend(SMALL).logits([frame]))
    assert (world.captures, world.graph_launches) == (1, 4)
    assert (world.waits, world.modules, len(world.allocations)) == (before[0] + 3, *before[1:])


def test_a_region_that_moves_or_shrinks_a_little_needs_no_new_graph(fake_gpu: MakeGpu) -> None:
    world = fake_gpu()
    backend, reference = CudaBinaryBackend(SMALL), ReferenceBackend(SMALL)
    pixels = models.random_frame(RNG(5), 200, 200).pixels
    for region in [(0.1, 0.1, 0.8, 0.8), (0.0, 0.2, 0.8, 0.8), (0.1, 0.1, 0.795, 0.8)]:
        frame = Frame(pixels, "bgr8", region)
        np.testing.assert_array_equal(backend.logits([frame]), reference.logits([frame]))
    assert world.captures == 1


def test_graphs_are_bounded(fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_backend, "MAX_GRAPHS", 2)
    world = fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    sizes = [frames_of((side, side, "rgb8")) for side in (150, 100, 60)]
    for frames in sizes:
        backend.logits(frames)
    assert (world.captures, len(backend._sequences)) == (3, 2)
    backend.logits(sizes[2])
    assert world.captures == 3


def test_the_graph_that_was_used_longest_ago_goes_first(
    fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backend, "MAX_GRAPHS", 2)
    world = fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    first, second, third = (frames_of((side, side, "rgb8")) for side in (150, 100, 60))
    for frames, captures in (
        (first, 1),
        (second, 2),
        (first, 2),
        (third, 3),  # in the place of the second
        (first, 3),
        (second, 4),
        (first, 4),
    ):
        backend.logits(frames)
        assert world.captures == captures


def test_times_of_all_stages(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    backend.logits(MIXED)
    assert list(backend.times) == ["upload", "preprocess", "inference", "download"]
    assert all(value >= 0 for value in backend.times.values())
    assert backend.times["inference"] > 0


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event of the stand-in takes place a millisecond after the one before."""
    clock = itertools.count()
    monkeypatch.setattr(fake_cupy, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 1e3))


@pytest.mark.usefixtures("ticks")
def test_times_are_of_the_last_call_and_of_all_its_launches(
    fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backend, "MAX_FRAMES", 2)
    fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    frames = [models.random_frame(RNG(index), 12, 12) for index in range(5)]
    for count, launches in ((1, 1), (5, 3), (2, 1)):
        backend.logits(frames[:count])
        for stage in ("preprocess", "inference", "download"):
            assert backend.times[stage] == pytest.approx(launches)
        assert backend.times["upload"] > launches  # staging on the host takes real time


def test_names(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    assert (backend.name, backend.device_name) == ("cuda_binary", "Shim")
    assert not backend.is_float


FAULTS: list[tuple[str, Exception]] = [
    ("run", CUDARuntimeError("cudaErrorIllegalAddress")),
    ("graph", CUDARuntimeError("cudaErrorNoDevice")),
    ("capture", CUDARuntimeError("cudaErrorStreamCaptureInvalidated")),
    ("alloc", OutOfMemoryError("Out of memory allocating 1 bytes")),
    ("launch", CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")),
]


@pytest.mark.parametrize(("call", "error"), FAULTS, ids=[call for call, _ in FAULTS])
def test_a_fault_is_one_backend_error_and_the_end_of_the_backend(
    fake_gpu: MakeGpu, call: str, error: Exception
) -> None:
    world = fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    backend.logits(MIXED[:1])
    world.faults[call] = error
    larger = frames_of((300, 300, "rgb8"))  # has to allocate, capture, launch and run
    with pytest.raises(BackendError, match=f"Shim failed .*{error}.*make the backend anew"):
        backend.logits(larger)
    world.faults.clear()
    world.error = None  # even if the GPU came back
    with pytest.raises(BackendError, match=r"Shim cannot be used: .*make the backend anew"):
        backend.logits(MIXED[:1])
    with pytest.raises(BackendError, match="Shim cannot be used"):
        list(backend.activations(MIXED[0]))
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match=rf"Shim cannot be used: .*{error}"):  # and not: it is closed
        backend.logits(MIXED[:1])
    np.testing.assert_array_equal(
        CudaBinaryBackend(SMALL).logits(MIXED[:1]), ReferenceBackend(SMALL).logits(MIXED[:1])
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("compile", CompileException("nvrtc: error: invalid value for --gpu-architecture")),
        ("compile", NVRTCError("NVRTC_ERROR_COMPILATION")),
        ("stream", CUDADriverError("CUDA_ERROR_INVALID_CONTEXT")),
        ("alloc", OutOfMemoryError("Out of memory allocating 1 bytes")),
        ("run", CUDARuntimeError("cudaErrorNoKernelImageForDevice")),
    ],
)
def test_a_fault_while_it_is_made(fake_gpu: MakeGpu, call: str, error: Exception) -> None:
    fake_gpu().faults[call] = error
    with pytest.raises(BackendError, match=str(error)):
        CudaBinaryBackend(SMALL)


def test_a_driver_that_refuses_events_in_graphs(fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def cuEventRecordWithFlags(event: int, stream: int, flags: int) -> int:  # noqa: N802
            return 801

    fake_gpu()
    monkeypatch.setattr(graph, "driver", Refusing)
    backend = CudaBinaryBackend(SMALL)
    with pytest.raises(BackendError, match=r"refused an event in a graph \(CUDA error 801\)"):
        backend.logits(MIXED[:1])


def test_closed(fake_gpu: MakeGpu) -> None:
    world = fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    backend.logits(MIXED[:1])
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="the backend is closed"):
        backend.logits(MIXED[:1])
    gc.collect()  # the stand-in's memory and its bytes refer to each other
    assert not world.allocations


def test_auto_takes_the_gpu_where_it_is_usable(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    assert make_backend(SMALL, "binary", "auto").name == "cuda_binary"
    assert make_backend(SMALL, "binary", "cuda").name == "cuda_binary"
    assert make_backend(SMALL, "reference", "auto").name == "reference"


def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_auto_without_a_gpu_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    no_cupy(monkeypatch)
    assert device.why_unusable() is not None
    backend = make_backend(SMALL, "binary", "auto")
    assert backend.name == "cpu_binary"
    backend.close()


def test_a_tuned_tile_is_used(fake_gpu: MakeGpu) -> None:
    world = fake_gpu()
    table, target = TileTable(), specs.Target(87, 16)
    shape = SMALL.shapes()[1]
    table.set(SMALL.layers[1], shape, target, specs.ConvTile(patch=1, rows=1, patches=1, filters=3))
    table.save(user_table())
    assert TileTable.load().tile(SMALL.layers[1], shape, target) == specs.ConvTile(
        patch=1, rows=1, patches=1, filters=3
    )
    backend = CudaBinaryBackend(SMALL)
    np.testing.assert_array_equal(backend.logits(MIXED[:1]), ReferenceBackend(SMALL).logits(MIXED[:1]))
    assert world.graph_launches == 1


def test_tuned_tiles_on_tensor_cores(fake_gpu: MakeGpu) -> None:
    """A net whose layers run on tensor cores gives the same words; the table keeps such tiles."""
    fake_gpu()
    model, target, table = models.road_sign_model(RNG(6)), specs.Target(87, 16), TileTable()
    for layer, shape, *_ in iter_layers(model):
        if isinstance(layer, BinaryConv2d):
            table.set(layer, shape, target, specs.mma_tiles(layer, shape, target)[0])
    table.save(user_table())
    frame = models.random_frame(RNG(7), 40, 50)
    check_net(model, frame)
    backend = CudaBinaryBackend(model)
    with backend.current():
        kernels = [
            launch.spec.kernel
            for launch in backend.network.launches(backend._upload.device, 1)
            if launch.spec
        ]
    assert kernels.count("bconv2d_b1mma") == 2
