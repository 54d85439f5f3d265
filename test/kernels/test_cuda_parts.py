"""Parts of the CUDA backends on the stand-in for CuPy: the GPU, memory, graphs, the upload, the table of tiles."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cupy
import models
import numpy as np
import pytest
from fake_cupy import CUDARuntimeError, FakeCupy
from layer_cases import RNG, SCALED, conv, frames_of, input_conv, scaled, stem

from bnn_perception.backends import BackendError, make_backend
from bnn_perception.backends.cuda import backend as cuda_backend
from bnn_perception.backends.cuda import device, graph, specs
from bnn_perception.backends.cuda.backend import padded_count
from bnn_perception.backends.cuda.memory import SharedBuffer
from bnn_perception.backends.cuda.tiles import TileTable, shape_key, user_table
from bnn_perception.backends.cuda.upload import FrameUpload
from bnn_perception.frames.boxes import Box, region_of
from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.frames.preprocess import source_rect
from bnn_perception.net.layer import Pool
from bnn_perception.net.model import InputSpec

MakeGpu = Callable[..., FakeCupy]
SMALL = models.random_model(RNG(0))


def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_cuda_without_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    with pytest.raises(
        BackendError, match="device cuda cannot be used: CuPy is not installed: pip install cupy-cuda12x"
    ):
        make_backend(SMALL, "binary", "cuda")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "raise ImportError('libcudart.so.12: no such file', name='cupy_backends')",
            "CuPy cannot be imported .ImportError: libcudart.so.12: no such file.; install it again: pip install",
        ),
        (
            "raise ValueError('numpy.dtype size\\nchanged')",
            "CuPy cannot be imported .ValueError: numpy.dtype size changed.; install it again: pip install",
        ),
    ],
)
def test_a_cupy_that_does_not_load_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "cupy.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(BackendError, match=reason):
        make_backend(SMALL, "binary", "cuda")


#: What CuPy raises where the GPU is there: the type and text of CuPy 13 without the CUDA toolkit, and where it cannot
#: keep what it compiled; and what nobody has seen yet.
UNREADY = [
    (
        RuntimeError(
            "CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object file"
        ),
        "NVRTC, which compiles the kernels, is missing or broken .*; install the CUDA toolkit",
    ),
    (
        PermissionError(13, "Permission denied", "/home/robot/.cupy/kernel_cache"),
        "compiled kernels cannot be kept .*kernel_cache'.; set CUPY_CACHE_DIR to a folder",
    ),
    (
        OSError(28, "No space left on device", "/root/.cupy"),
        "compiled kernels cannot be kept .*; set CUPY_CACHE_DIR",
    ),
    (ZeroDivisionError("odd"), "it failed while the kernels were made ready .ZeroDivisionError: odd.$"),
]


def test_auto_without_a_gpu_has_nothing_to_report(fake_gpu: MakeGpu) -> None:
    fake_gpu().device_count = 0
    reasons: list[str] = []
    backend = make_backend(SMALL, "binary", "auto", report=reasons.append)
    assert (backend.device, reasons) == ("cpu", [])
    backend.close()


@pytest.mark.parametrize(("error", "reason"), UNREADY)
def test_a_gpu_that_cannot_be_made_ready_leaves_auto_the_cpu(
    fake_gpu: MakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    pytest.importorskip("numba", reason="numba is not installed")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fake_gpu(), "RawModule", fail, raising=False)
    with pytest.raises(BackendError, match=f"^device cuda cannot be used: {reason}"):
        make_backend(SMALL, "binary", "cuda")
    reasons: list[str] = []
    backend = make_backend(SMALL, "binary", "auto", report=reasons.append)
    assert backend.name == "cpu_binary"
    backend.close()
    assert len(reasons) == 1
    assert re.match(f"device cuda cannot be used: {reason}", reasons[0])
    assert "\n" not in reasons[0]
    make_backend(SMALL, "binary", "auto").close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reasons[0] in caplog.text


def test_a_cupy_that_cannot_make_its_cache_says_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CuPy 14 makes it when it is imported."""
    (tmp_path / "cupy.py").write_text("import os\nos.makedirs('/proc/none/.cupy')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    reason = device.why_unusable()
    assert reason is not None
    assert reason.startswith("CuPy cannot be imported (FileNotFoundError: ")
    assert reason.endswith("; set CUPY_CACHE_DIR to a folder that can be written to")


NONE, OLD_DRIVER = "no NVIDIA GPU was found; in a container", "no usable NVIDIA driver (CUDARuntimeError: "


@pytest.mark.parametrize(
    ("error", "is_there", "message"),
    [
        (None, True, NONE),
        # What the wheels of CuPy 13 and 14 say where there is neither a GPU nor a driver.
        (CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is ..."), False, NONE),
        (CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is ..."), True, OLD_DRIVER),
        (CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"), True, NONE),
        (CUDARuntimeError("cudaErrorUnknown: unknown error"), True, OLD_DRIVER),
    ],
)
def test_cuda_without_a_gpu(
    fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch, error: Exception | None, is_there: bool, message: str
) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setattr(device, "is_nvidia_there", lambda: is_there)
    world = fake_gpu()
    world.device_count = 0
    if error is not None:
        world.faults["device"] = error
    with pytest.raises(BackendError, match=re.escape(f"device cuda cannot be used: {message}")):
        make_backend(SMALL, "binary", "cuda")
    # A machine without a GPU is in order, one whose driver does not see it is not.
    reasons: list[str] = []
    make_backend(SMALL, "binary", "auto", report=reasons.append).close()
    assert [reason.startswith(OLD_DRIVER) for reason in reasons] == [True] * (message == OLD_DRIVER)


def test_a_device_of_nvidia_is_known_by_its_maker_or_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bus = tmp_path / "sys" / "bus" / "pci" / "devices"
    monkeypatch.setattr(device, "PCI_DEVICES", bus)
    monkeypatch.setattr(device, "DEVICE_FILES", (str(tmp_path / "nvidiactl"),))
    assert not device.is_nvidia_there()
    for name, vendor in (("0000:00:01.0", "0x8086\n"), ("0000:01:00.0", "0x10de\n")):
        (bus / name).mkdir(parents=True)
        (bus / name / "vendor").write_text(vendor)
        assert device.is_nvidia_there() is (vendor == "0x10de\n")
    monkeypatch.setattr(device, "PCI_DEVICES", tmp_path / "none")
    assert not device.is_nvidia_there()
    (tmp_path / "nvidiactl").touch()
    assert device.is_nvidia_there()


def test_what_is_left_of_a_cupy_is_no_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip leaves a folder where something wrote into it; Python takes it for a package without a file."""
    pytest.importorskip("numba", reason="numba is not installed")
    (tmp_path / "cupy" / "_core").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    before = device.why_not_installed()
    assert before is not None
    assert before.startswith(
        f"CuPy is not installed: {tmp_path / 'cupy'} is what is left of one, delete it; pip install cupy-cuda12x"
    )
    assert device.why_unusable() == before
    reasons: list[str] = []
    make_backend(SMALL, "binary", "auto", report=reasons.append).close()
    assert reasons == []
    del sys.modules["cupy"]  # by monkeypatch it would come back for the tests behind


def test_a_cupy_that_is_there_is_looked_up_without_an_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text("raise ImportError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert device.why_not_installed() is None


@pytest.mark.parametrize("is_there", [False, True])
def test_auto_reports_a_cupy_that_does_not_load_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_there: bool
) -> None:
    """Whoever has installed CuPy beside a GPU wants it used."""
    pytest.importorskip("numba", reason="numba is not installed")
    (tmp_path / "cupy.py").write_text("import os\nos.makedirs('/proc/none/.cupy')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(device, "is_nvidia_there", lambda: is_there)
    reasons: list[str] = []
    backend = make_backend(SMALL, "binary", "auto", report=reasons.append)
    assert backend.name == "cpu_binary"
    backend.close()
    assert len(reasons) == is_there
    assert all("set CUPY_CACHE_DIR" in reason for reason in reasons)


@pytest.mark.parametrize(
    "call", ["device", "stream", "alloc", "compile", "launch", "run", "capture", "graph"]
)
@pytest.mark.parametrize("error", [CUDARuntimeError("cudaErrorUnknown"), AttributeError("no such function")])
def test_whatever_fails_after_the_gpus_are_counted_leaves_auto_the_cpu(
    fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    """Some of it only when the first frame is evaluated."""
    pytest.importorskip("numba", reason="numba is not installed")
    world = fake_gpu()
    count = world.device_count
    monkeypatch.setattr(world.cuda.runtime, "getDeviceCount", lambda: count)
    world.faults[call] = error
    with pytest.raises(BackendError, match=str(error)):
        make_backend(SMALL, "binary", "cuda")
    world.error = None
    reasons: list[str] = []
    backend = make_backend(SMALL, "binary", "auto", report=reasons.append)
    assert backend.name == "cpu_binary"
    backend.close()
    assert len(reasons) == 1
    assert str(error) in reasons[0]


def test_an_old_driver_leaves_auto_the_cpu(fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="numba is not installed")

    def old() -> None:
        raise BackendError("the NVIDIA driver cannot be used (old); CUDA 11.4 or later is needed")

    fake_gpu()
    monkeypatch.setattr(graph, "driver", old)
    reasons: list[str] = []
    backend = make_backend(SMALL, "binary", "auto", report=reasons.append)
    assert backend.name == "cpu_binary"
    backend.close()
    assert reasons == ["the NVIDIA driver cannot be used (old); CUDA 11.4 or later is needed"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(28, "No space left on device", "/root/.cupy"),
            "compiled kernels cannot be kept .*CUPY_CACHE_DIR",
        ),
        (RuntimeError("CuPy failed to load libnvrtc.so.12"), "NVRTC, which compiles the kernels, is missing"),
        (CUDARuntimeError("cudaErrorUnknown"), "Shim failed .*make the backend anew"),
    ],
)
def test_a_kernel_that_cannot_be_compiled_later_is_named(
    fake_gpu: MakeGpu, error: Exception, message: str
) -> None:
    """The disk may have filled up since the first kernels were compiled."""
    world = fake_gpu()
    backend = make_backend(SMALL, "binary", "cuda")
    world.faults["compile"] = error
    backend.network._kernels._compiled.clear()  # type: ignore[attr-defined]
    backend._sequences.clear()  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match=message):
        backend.logits([Frame(np.zeros((32, 32, 3), np.uint8))])
    backend.close()


def test_a_cuda_runtime_that_sees_a_gpu_gives_no_reason(fake_gpu: MakeGpu) -> None:
    fake_gpu()
    assert device.why_unusable() is None


def test_the_gpu_that_is_asked_for_is_used(fake_gpu: MakeGpu) -> None:
    """The stand-in refuses memory that is said to be another GPU's."""
    world = fake_gpu(sm=90, multiprocessors=132, integrated=True)
    gpu = device.Gpu(1)
    assert (gpu.name, gpu.index, gpu.target) == ("Shim 1", 1, specs.Target(90, 132))
    with gpu(), world.cuda.Stream(non_blocking=True):
        assert world.devices[-1].id == 1
        assert SharedBuffer(gpu, (4,), np.uint8).mapped
    assert world.devices == []


def test_a_gpu_that_does_not_tell_its_name_is_called_by_its_number(
    fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is out of order, though the driver counts it."""
    fake_gpu().faults["device"] = CUDARuntimeError("cudaErrorDevicesUnavailable")
    monkeypatch.setattr(device, "why_unusable", lambda: None)
    with pytest.raises(BackendError, match=r"GPU 1 failed \(CUDARuntimeError: cudaErrorDevicesUnavailable\)"):
        device.Gpu(1)


@pytest.mark.parametrize(("integrated", "can_map", "mapped"), [(1, 1, True), (1, 0, False), (0, 1, False)])
def test_memory_is_shared_where_the_gpu_is_integrated_and_can_map_it(
    fake_gpu: MakeGpu, integrated: int, can_map: int, mapped: bool
) -> None:
    world = fake_gpu()
    world.attributes.update(Integrated=integrated, CanMapHostMemory=can_map)
    gpu = device.Gpu()
    assert gpu.integrated is mapped
    with gpu(), world.cuda.Stream(non_blocking=True) as stream:
        buffer = SharedBuffer(gpu, (2, 3), np.uint16)
        assert buffer.mapped is mapped
        stream.synchronize()
        assert not buffer.host.any()
        buffer.host[...] = np.arange(6).reshape(2, 3)
        buffer.upload(stream, 8)
        stream.synchronize()
        expected = [[0, 1, 2], [3, 4, 5]] if mapped else [[0, 1, 2], [3, 0, 0]]
        np.testing.assert_array_equal(buffer.device.host, expected)
        buffer.device.host[...] = 7
        buffer.download(stream, 4)
        stream.synchronize()
        expected = [[7, 7, 7], [7, 7, 7]] if mapped else [[7, 7, 2], [3, 4, 5]]
        np.testing.assert_array_equal(buffer.host, expected)


@pytest.mark.parametrize("sequence", [graph.StagedGraph, cuda_backend.StagedCalls])
def test_the_time_of_a_stage_is_from_its_begin_to_its_end(
    fake_gpu: MakeGpu, monkeypatch: pytest.MonkeyPatch, sequence: Any
) -> None:
    world, clock, ran = fake_gpu(), [0.0], []
    monkeypatch.setattr(fake_cupy, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    gpu = device.Gpu()
    with gpu(), world.cuda.Stream(non_blocking=True) as stream:

        def stage(name: str, milliseconds: float) -> tuple[str, Callable[[], None]]:
            def work() -> None:
                ran.append(name)
                clock[0] += milliseconds / 1e3

            return name, lambda: stream.enqueue(work)

        stages = sequence(gpu, stream, [stage("first", 5), stage("second", 20), stage("third", 0.5)])
        for launches in (1, 2):
            stages.launch()
            stream.synchronize()
            assert stages.times() == pytest.approx({"first": 5, "second": 20, "third": 0.5})
            assert ran == ["first", "second", "third"] * launches


def test_a_capture_that_fails_leaves_a_stream_that_works(fake_gpu: MakeGpu) -> None:
    world = fake_gpu()
    gpu = device.Gpu()
    with gpu(), world.cuda.Stream(non_blocking=True) as stream:

        def refuse() -> None:
            raise ValueError("cannot be enqueued")

        with pytest.raises(ValueError, match="cannot be enqueued"):
            graph.StagedGraph(gpu, stream, [("first", refuse)])
        done: list[int] = []
        stages = graph.StagedGraph(gpu, stream, [("first", lambda: stream.enqueue(lambda: done.append(1)))])
        assert done == []  # captured, and run by a launch alone
        stages.launch()
        stream.synchronize()
        assert done == [1]


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (OSError("libcuda.so.1: cannot open shared object file"), "libcuda.so.1"),
        (object(), "cuEventRecordWithFlags"),
    ],
)
def test_a_driver_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, library: object, reason: str
) -> None:
    """It is missing, or older than the function that is called."""

    def load(name: str) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr("ctypes.CDLL", load)
    with pytest.raises(
        BackendError, match=rf"the NVIDIA driver cannot be used \(.*{reason}.*CUDA 11.4 or later"
    ):
        graph.driver()


def test_tables_of_tiles_are_laid_over_one_another(tmp_path: Path) -> None:
    """What a later one says of a layer goes before an earlier one; a file that is not there says nothing."""
    layer, shape = conv((8, 8, 32), 32)
    other, other_shape = conv((8, 8, 32), 64)
    orin, desktop = specs.Target(87, 16), specs.Target(89, 128)
    tiles = [
        tile for tile in specs.conv_tiles(layer, shape, orin) if tile != specs.best_tile(layer, shape, orin)
    ]
    first, second = TileTable(), TileTable()
    first.set(layer, shape, orin, tiles[0])
    first.set(other, other_shape, orin, tiles[1])
    second.set(layer, shape, orin, tiles[2])
    second.set(layer, shape, desktop, tiles[3])
    paths = tmp_path / "deep" / "first.yaml", tmp_path / "nowhere.yaml", tmp_path / "second.yaml"
    first.save(paths[0])
    second.save(paths[2])
    table = TileTable.load(*paths)
    assert table.tile(layer, shape, orin) == tiles[2]
    assert table.tile(other, other_shape, orin) == tiles[1]
    assert table.tile(layer, shape, desktop) == tiles[3]
    assert table.tile(other, other_shape, desktop) == specs.best_tile(other, other_shape, desktop)
    # The number of SMs may differ; what was measured on the same kind of SM holds.
    assert table.tile(layer, shape, specs.Target(87, 8)) == tiles[2]


def test_a_table_of_tiles_is_one_line_a_layer_in_order_of_the_net(tmp_path: Path) -> None:
    table, tile = TileTable(), specs.ConvTile(patch=2, rows=1, patches=1, filters=3)
    for sm in (89, 87):
        for filters, kernel in ((64, 3), (32, 3), (32, 1)):
            table.set(*conv((8, 8, 32), filters, kernel), specs.Target(sm, 16), tile)
    table.save(tmp_path / "tiles.yaml")
    values = "{patch: 2, rows: 1, patches: 1, filters: 3, positions: 1, chunk_words: 1}"
    lines = [
        f"  bconv2d_popc 8x8x32 -> {layer}: {values}"
        for layer in ("64, 3x3/1x1+1x1", "32, 3x3/1x1+1x1", "32, 1x1/1x1+0x0")
    ]
    assert (tmp_path / "tiles.yaml").read_text().splitlines() == ["87:", *lines, "89:", *lines]


def test_the_largest_numbers_of_a_tile_are_read(tmp_path: Path) -> None:
    layer: Any = models.output_dense(RNG(0), "dense", (8, 8, 32), 32)
    key = shape_key(layer, (8, 8, 32))
    (tmp_path / "tiles.yaml").write_text(f"87:\n  {key}: {{outputs: 4, lanes: 128}}\n")
    tile = TileTable.load(tmp_path / "tiles.yaml").tile(layer, (8, 8, 32), specs.Target(87, 16))
    assert tile == specs.DenseTile(4, 128)


def test_the_users_table_goes_before_the_one_that_ships(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_table() == tmp_path / "cache" / "bnn_perception" / "cuda_tiles.yaml"
    layer, shape = conv((8, 8, 32), 32)
    target, table = specs.Target(87, 16), TileTable()
    tile = next(
        t for t in specs.conv_tiles(layer, shape, target) if t != specs.best_tile(layer, shape, target)
    )
    table.set(layer, shape, target, tile)
    table.save(user_table())
    assert TileTable.load().tile(layer, shape, target) == tile
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_table() == tmp_path / ".cache" / "bnn_perception" / "cuda_tiles.yaml"


def test_a_shape_names_all_that_the_time_of_a_layer_depends_on() -> None:
    layer, shape = conv((8, 9, 33), 40, (3, 5), stride=(1, 2), pool=Pool(3, 2))
    assert shape_key(layer, shape) == "bconv2d_popc 8x9x33 -> 40, 3x5/1x2+1x2 pool 3/2"
    layer, shape = input_conv((8, 9, 3), 40, 3)
    assert shape_key(layer, shape) == "input_conv2d 8x9x3 -> 40, 3x3/1x1+1x1"
    assert shape_key(*stem((11, 12, 3), 33)) == "input_conv2d 11x12x3 -> 33, 3x3/1x1+1x1 signal"
    layer, shape = scaled((9, 7, 24), 48)
    assert shape_key(layer, shape) == "bconv2d_popc 9x7x24 -> 48, 3x3/1x1+1x1 signal"
    layer, shape = scaled((9, 7, 24), 48, padding=(0, 1, 2, 1))
    assert shape_key(layer, shape) == "bconv2d_popc 9x7x24 -> 48, 3x3/1x1+0x1x2x1 signal"
    dense: Any = models.output_dense(RNG(0), "dense", (3, 5, 33), 7)
    assert shape_key(dense, (3, 5, 33)) == "dense 30 words -> 7"


@pytest.mark.parametrize("dense", [False, True])
def test_a_tile_of_another_kind_of_layer_is_named(dense: bool) -> None:
    table, target = TileTable(), specs.Target(87, 16)
    layer: Any = models.binary_dense(RNG(0), "dense", (8, 8, 32), 32) if dense else conv((8, 8, 32), 32)[0]
    table.set(layer, (8, 8, 32), target, specs.ConvTile(1, 1, 1, 1) if dense else specs.DenseTile(4, 1))
    with pytest.raises(ValueError, match=rf"{layer.name}: \w+Tile\(.* is not for this kind of layer"):
        table.tile(layer, (8, 8, 32), target)


def test_signals_take_no_tensor_cores() -> None:
    """A tile on tensor cores for the same layer to bits says nothing of one that gives a signal."""
    layer, shape = SCALED["24 -> 48"]
    target, table, tile = specs.Target(87, 16), TileTable(), specs.MmaTile(8, 1, 1, 1)
    assert all(isinstance(tile, specs.ConvTile) for tile in specs.tiles_of(layer, shape, target))
    table.set(*conv(shape, 48), target, tile)
    assert isinstance(table.tile(layer, shape, target), specs.ConvTile)
    table.set(layer, shape, target, tile)
    with pytest.raises(
        ValueError, match="scaled: tensor cores are used for binary convolutions to bits only"
    ):
        table.tile(layer, shape, target)


def test_a_tile_that_does_not_fit_is_named() -> None:
    table, target = TileTable(), specs.Target(87, 16)
    layer: Any = SMALL.layers[1]
    table.set(layer, SMALL.shapes()[1], target, specs.ConvTile(filters=2))
    with pytest.raises(ValueError, match=r"conv2: ConvTile.*does not divide the layer"):
        table.tile(layer, SMALL.shapes()[1], target)
    matrix: Any = models.binary_dense(RNG(0), "dense", (8, 8, 32), 32)
    for tile, reason in (
        (specs.DenseTile(4, 8), "does not make whole bytes of bits"),
        (specs.DenseTile(8, 3), "does not make whole warps"),
    ):
        table.set(matrix, (8, 8, 32), target, tile)
        with pytest.raises(ValueError, match=rf"dense: DenseTile.*{reason}"):
            table.tile(matrix, (8, 8, 32), target)


def test_an_empty_table_of_tiles_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiles.yaml").write_text("# nothing has been measured yet\n")
    layer, shape = conv((8, 8, 32), 32)
    target = specs.Target(87, 16)
    assert TileTable.load(tmp_path / "tiles.yaml").tile(layer, shape, target) == specs.best_tile(
        layer, shape, target
    )


def test_a_table_of_tiles_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiles.yaml").write_bytes(b"87: {\xff: 1}")
    with pytest.raises(ValueError, match=r"table of tiles .*tiles\.yaml: .*codec.*; delete it or tune again"):
        TileTable.load(tmp_path / "tiles.yaml")
    # A file whose first byte nobody can read, not even root.
    with pytest.raises(
        ValueError, match=r"table of tiles /proc/self/mem: .*Errno.*; delete it or tune again"
    ):
        TileTable.load(Path("/proc/self/mem"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("87: {a: {patch: 1}}", "'a': .* is not a tile"),
        ("87: {a: {outputs: 0, lanes: 1}}", "is not a tile"),
        ("87: {a: {outputs: 4, lanes: 129}}", "is not a tile"),
        ("87: {a: {outputs: 4, lanes: one}}", "is not a tile"),
        ("87: {a: [4, 1]}", "'a': .*4, 1.* is not a tile"),
        ("87: [a]", "table of tiles"),
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
        make_backend(SMALL, "binary", "cuda")
    assert "delete it or tune again" in str(caught.value)


def staged(upload: FrameUpload, frames: list[Frame], spec: InputSpec, bytes_: int) -> int:
    """Assert that the GPU's side holds the regions of all frames, whole, where its table says they are.

    Returns:
        Bytes up to the end of the last region.
    """
    memory = upload.device.host.view(np.uint8).reshape(-1)
    begin = len(frames) * specs.FRAME.itemsize
    end = 0
    for frame, row in zip(frames, memory[:begin].view(specs.FRAME), strict=True):
        rect = source_rect(*frame.pixels.shape[:2], frame.region, spec)
        channels = ENCODINGS[frame.encoding].channels
        assert (row["height"], row["width"], row["pixel_bytes"]) == (rect.height, rect.width, channels)
        assert (row["red"], row["green"], row["blue"]) == ENCODINGS[frame.encoding].rgb
        word, lead, step = int(row["offset"]), int(row["lead"]), int(row["step"])
        # Whole words, inside the rows and behind the table.
        assert (word % 4, step % 4) == (0, 0)
        assert lead < 4
        assert begin <= word
        assert lead + rect.width * channels <= step
        last = word + (rect.height - 1) * step + lead + rect.width * channels
        assert last <= bytes_
        rows = np.lib.stride_tricks.as_strided(
            memory[word + lead :], (rect.height, rect.width * channels), (step, 1)
        )
        expected = frame.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
        np.testing.assert_array_equal(rows.reshape(expected.shape), expected)
        end = max(end, last)
    assert bytes_ % 4096 == 0
    return end


@pytest.mark.parametrize("integrated", [True, False])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_regions_are_staged_one_after_the_other(fake_gpu: MakeGpu, integrated: bool, fit: str) -> None:
    world = fake_gpu(integrated=integrated)
    spec, gpu = InputSpec(16, 16, fit=fit), device.Gpu()
    frames = [
        *frames_of(
            (30, 41, "rgb8"), (17, 33, "mono8"), (64, 64, "bgra8"), (1, 1, "bgr8"), (90, 200, "rgba8")
        ),
        Frame(models.random_frame(RNG(9), 40, 60).pixels, "bgr8", (0.25, 0.5, 0.5, 0.25)),
    ]
    with gpu(), world.cuda.Stream(non_blocking=True) as stream:
        upload = FrameUpload(gpu, spec)
        largest = 0
        for batch in (
            frames[:1],
            frames[1:2],
            frames,
            frames[3:4],
            frames[4:],
            frames[::-1],
            frames[2:3] * 16,
        ):
            bytes_, grows = upload.stage(batch)
            assert grows == (bytes_ > largest)
            largest = max(largest, bytes_)
            upload.copy(stream, bytes_)
            stream.synchronize()
            end = staged(upload, batch, spec, bytes_)
            # Rounded up so that frames of nearly one size share a graph: by a sixteenth or, of small ones, to 4 KiB.
            assert bytes_ < end + 128 + max(4096, end / 16)


def test_boxes_of_one_image_are_copied_as_the_rectangle_around_them_where_that_is_less(
    fake_gpu: MakeGpu,
) -> None:
    world, gpu, spec = fake_gpu(), device.Gpu(), InputSpec(16, 16, fit="stretch")
    pixels = models.random_frame(RNG(9), 200, 300).pixels
    rng = RNG(10)
    boxes = [region_of(Box(*rng.uniform(60, 140, 2), *rng.uniform(20, 80, 2)), 300, 200) for _ in range(100)]
    far = [(0.0, 0.0, 0.1, 0.1), (0.9, 0.9, 0.1, 0.1)]
    with gpu(), world.cuda.Stream(non_blocking=True) as stream:
        upload = FrameUpload(gpu, spec)
        for regions, most in ((boxes, 300 * 200 * 3), (far, 2 * 30 * 20 * 3)):
            frames = [Frame(pixels, "rgb8", region) for region in regions if region is not None]
            assert len(frames) == len(regions)
            bytes_, _ = upload.stage(frames)
            upload.copy(stream, bytes_)
            stream.synchronize()
            end = staged(upload, frames, spec, bytes_)
            assert end <= len(frames) * specs.FRAME.itemsize + most + 256


@pytest.mark.parametrize("count", [*range(1, 40), 100, 255, 256])
def test_batches_are_filled_up_to_few_sizes(count: int) -> None:
    padded = padded_count(count)
    assert count <= padded <= min(256, count + count / 8)
    assert padded_count(padded) == padded


def test_regions_of_nearly_one_size_share_a_graph(fake_gpu: MakeGpu) -> None:
    """A graph is kept for each number of bytes: a region that follows something must not take one for each size."""
    world, gpu = fake_gpu(), device.Gpu()
    with gpu(), world.cuda.Stream(non_blocking=True):
        upload = FrameUpload(gpu, InputSpec(16, 16, fit="stretch"))
        sizes = {upload.stage(frames_of((height, 400, "rgb8")))[0] for height in range(300, 331)}
    assert len(sizes) <= 4  # a tenth more bytes, in steps of a thirty-second at least
