"""The CUDA backend with real kernels on a stand-in for the GPU: whole nets, graphs, buffers, faults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from fake_cupy import CompileException, CUDADriverError, CUDARuntimeError, FakeCupy, OutOfMemoryError
from hypothesis import given
from launches import same_examples
from layer_cases import RESIDUAL, RNG, check_activations, conv, frames_of, paper_model

from bnn_perception.backends import BackendError, make_backend
from bnn_perception.backends.cuda import backend as cuda_backend
from bnn_perception.backends.cuda import device, graph, specs
from bnn_perception.backends.cuda.binary import CudaBinaryBackend
from bnn_perception.backends.cuda.tiles import TileTable, user_table
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.preprocess import Frame
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


def test_times_of_all_stages(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    backend.logits(MIXED)
    assert list(backend.times) == ["upload", "preprocess", "inference", "download"]
    assert all(value >= 0 for value in backend.times.values())
    assert backend.times["inference"] > 0


def test_names(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    backend = CudaBinaryBackend(SMALL)
    assert (backend.name, backend.device_name) == ("cuda_binary", "Shim")


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
    np.testing.assert_array_equal(
        CudaBinaryBackend(SMALL).logits(MIXED[:1]), ReferenceBackend(SMALL).logits(MIXED[:1])
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("compile", CompileException("nvrtc: error: invalid value for --gpu-architecture")),
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
    import gc

    gc.collect()  # the stand-in's memory and its bytes refer to each other
    assert not world.allocations


def test_auto_takes_the_gpu_where_it_is_usable(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    assert make_backend(SMALL, "binary", "auto").name == "cuda_binary"
    assert make_backend(SMALL, "binary", "cuda").name == "cuda_binary"
    assert make_backend(SMALL, "reference", "auto").name == "reference"


def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_cuda_without_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    with pytest.raises(
        BackendError, match="device cuda cannot be used: CuPy is not installed: pip install cupy-cuda12x"
    ):
        make_backend(SMALL, "binary", "cuda")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, "no NVIDIA GPU was found"),
        (CUDARuntimeError("cudaErrorInsufficientDriver"), "no usable NVIDIA driver"),
    ],
)
def test_cuda_without_a_gpu(fake_gpu: MakeGpu, error: Exception | None, message: str) -> None:
    world = fake_gpu()
    world.device_count = 0
    if error is not None:
        world.faults["device"] = error
    with pytest.raises(BackendError, match=f"device cuda cannot be used: {message}"):
        make_backend(SMALL, "binary", "cuda")


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


def test_residuals_take_no_tensor_cores() -> None:
    """A tile on tensor cores for the same layer without a residual says nothing of one with it."""
    layer, shape = RESIDUAL["identity, 24 -> 48"]
    target, table, tile = specs.Target(87, 16), TileTable(), specs.MmaTile(8, 1, 1, 1)
    assert all(isinstance(tile, specs.ConvTile) for tile in specs.tiles_of(layer, shape, target))
    table.set(*conv(shape, 48), target, tile)
    assert isinstance(table.tile(layer, shape, target), specs.ConvTile)
    table.set(layer, shape, target, tile)
    with pytest.raises(
        ValueError, match="residual: tensor cores are used for layers without a residual only"
    ):
        table.tile(layer, shape, target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("87: {a: {patch: 1}}", "'a': .* is not a tile"),
        ("87: {a: {warps: 0, splits: 1}}", "is not a tile"),
        ("orin: {}", "'orin' is not a compute capability"),
        ("[1, 2]", "not a mapping"),
        ("{", "table of tiles .*cuda_tiles.yaml"),
    ],
)
def test_a_bad_table_of_tiles_is_named(fake_gpu: MakeGpu, text: str, message: str) -> None:
    fake_gpu()
    user_table().parent.mkdir(parents=True)
    user_table().write_text(text, encoding="utf-8")
    with pytest.raises(BackendError, match=message) as caught:
        CudaBinaryBackend(SMALL)
    assert "delete it or tune again" in str(caught.value)


def test_a_tile_that_does_not_fit_is_named() -> None:
    table, target = TileTable(), specs.Target(87, 16)
    layer: Any = SMALL.layers[1]
    table.set(layer, SMALL.shapes()[1], target, specs.ConvTile(filters=2))
    with pytest.raises(ValueError, match=r"conv2: ConvTile.*does not divide the layer"):
        table.tile(layer, SMALL.shapes()[1], target)
