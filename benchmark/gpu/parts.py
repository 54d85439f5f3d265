"""The parts of the GPU benchmark. Each runs in a process of its own, so that none is lost by another's failure: after
an error of a kernel a process can use its GPU no more.

    python -m benchmark.gpu.parts PART RESULT.json [MODEL_FOLDER]
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmark.gpu import pytorch
from benchmark.gpu.nets import square_convolutions
from benchmark.gpu.work import Work, binary_work, float_work
from bnn_perception.backends.cuda.backend import CudaBackend, Launch
from bnn_perception.backends.cuda.network import layer_steps
from bnn_perception.backends.cuda.specs import (
    MAX_FRAMES,
    Tile,
    conv_tiles,
    convolution,
    mma_tiles,
    tile_fields,
)
from bnn_perception.backends.cuda.tiles import SHIPPED, TileTable, shape_key
from bnn_perception.backends.cuda.timing import (
    ROTATION,
    Stopwatch,
    time_calls,
    time_kernel,
    time_kernels,
    time_network,
)
from bnn_perception.backends.fusion import Fused
from bnn_perception.errors import CommandError, one_line
from bnn_perception.files import replacing
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.importers.onnx.float_twin import read_float_twin
from bnn_perception.importers.stage import Stage
from bnn_perception.net.bits import words_for
from bnn_perception.net.folder import load_model
from bnn_perception.net.layer import Shape
from bnn_perception.net.layers import BinaryConv2d
from bnn_perception.net.model import Model, Place
from bnn_perception.resources import resource_folder

if TYPE_CHECKING:
    from bnn_perception.backends.cuda.compile import Kernels
    from bnn_perception.backends.cuda.device import Gpu

BATCHES = (1, 4, 16, 256)
#: Tiles that a layer is tried with; `benchmark --tune` takes more time and tries more.
TUNING_CANDIDATES = 8
#: Frames of a launch in which single convolutions are timed, enough to fill any GPU, and how many tiles of each kind
#: are tried.
CONVOLUTION_FRAMES, CONVOLUTION_TILES = 64, 8
#: Largest difference of a logit, as a share of the largest logit. Rounding to half precision or TF32 (2**-11 and 2**-11
#: of a value) happens once a layer to activations and once to weights; in single precision only orders of sums differ.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}

Result = dict[str, Any]
Save = Callable[[Result], None]


def environment(_model: Model | None, save: Save) -> None:
    """Which GPU, driver and software."""
    from bnn_perception.backends.cuda.device import Gpu

    gpu = Gpu()
    with gpu():
        cuda = gpu.cupy.cuda
        properties = cuda.runtime.getDeviceProperties(gpu.index)
        _, memory = cuda.runtime.memGetInfo()
        driver, runtime = cuda.runtime.driverGetVersion(), cuda.runtime.runtimeGetVersion()
    versions = {"python": platform.python_version(), "numpy": np.__version__, "cupy": gpu.cupy.__version__}
    for module in ("torch", "onnxruntime"):
        found = _version(module)
        if found is not None:
            versions[module] = found
    save(
        {
            "gpu": gpu.name,
            "sm": gpu.target.sm,
            "multiprocessors": gpu.target.multiprocessors,
            "integrated": gpu.integrated,
            "clock_mhz": properties["clockRate"] / 1000 if properties.get("clockRate") else None,
            "memory_bytes": memory,
            "l2_bytes": properties.get("l2CacheSize"),
            "driver": _driver_version(),
            "driver_cuda": _cuda_version(driver),
            "runtime_cuda": _cuda_version(runtime),
            "machine": platform.machine(),
            **versions,
        }
    )


def _version(module: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return None


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver_version() -> str | None:
    """As the kernel module states it; Jetsons may not."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def peaks(_model: Model | None, save: Save) -> None:
    """What the GPU reaches at best."""
    from benchmark.gpu.peaks import measure_peaks
    from bnn_perception.backends.cuda.device import Gpu

    gpu = Gpu()
    with gpu():
        save(asdict(measure_peaks(gpu)))


def convolutions(_model: Model | None, save: Save) -> None:
    """Binary convolutions by popcounts and on tensor cores: for each size the fastest tile of each kind."""
    from bnn_perception.backends.cuda.compile import Kernels
    from bnn_perception.backends.cuda.device import Gpu

    rng = np.random.default_rng(0)
    gpu = Gpu()
    results: list[Result] = []
    for layer, shape in square_convolutions(rng):
        for kind in (conv_tiles, mma_tiles):
            timed = []
            for tile in kind(layer, shape, gpu.target)[:CONVOLUTION_TILES]:
                with gpu():
                    timed.append((_time_convolution(gpu, Kernels(gpu), layer, shape, tile, rng), tile))
            if not timed:  # no tensor cores that could
                continue
            microseconds, tile = min(timed, key=lambda pair: pair[0])
            results.append(
                {
                    "layer": shape_key(layer, shape),
                    "kernel": convolution(layer, shape, tile, CONVOLUTION_FRAMES).kernel,
                    "frames": CONVOLUTION_FRAMES,
                    "tile": tile_fields(tile),
                    "tiles": len(timed),
                    "microseconds": microseconds,
                    "binary_macs": CONVOLUTION_FRAMES * layer.macs(shape),
                }
            )
            save({"convolutions": results})


def _time_convolution(
    gpu: Gpu, kernels: Kernels, layer: BinaryConv2d, shape: Shape, tile: Tile, rng: np.random.Generator
) -> float:
    """Microseconds of one launch on random words. The GPU must be current."""
    table = TileTable()
    table.set(layer, shape, gpu.target, tile)
    place = Place(layer, shape, layer.output_shape(shape), (None,), (), (shape,))
    (step,) = layer_steps(Fused(place, (), None, None, None), gpu.target, table)
    spec = step.spec(CONVOLUTION_FRAMES)
    cupy = gpu.cupy
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        words = (CONVOLUTION_FRAMES, *shape[:2], words_for(shape[2]))
        source = cupy.asarray(rng.integers(0, 1 << 32, words, dtype=np.uint32))
        ((_, array),) = step.outputs
        output = cupy.zeros((CONVOLUTION_FRAMES, *array.shape), array.dtype)
        args = (source, *(cupy.asarray(constant) for constant in step.constants), output)
        kernel = kernels[spec]
        launch = Launch(layer.name, spec, lambda: kernel(spec.grid, spec.block, args))
        return time_kernel(Stopwatch(cupy.cuda, stream), stream, launch).median


def correctness(model: Model | None, save: Save) -> None:
    """``cuda_binary`` against the reference: every word of every layer, frames of all encodings and odd sizes."""
    from bnn_perception.backends.cuda.binary import CudaBinaryBackend
    from bnn_perception.backends.reference import ReferenceBackend

    assert model is not None
    rng = np.random.default_rng(1)
    frames = [
        Frame(rng.integers(0, 256, (height, width, channels), dtype=np.uint8), encoding)
        for height, width, channels, encoding in (
            (model.input.height, model.input.width, 3, "rgb8"),
            (240, 323, 3, "bgr8"),
            (101, 97, 4, "rgba8"),
            (120, 160, 4, "bgra8"),
            (61, 59, 1, "mono8"),
        )
    ]
    backend, reference = CudaBinaryBackend(model), ReferenceBackend(model)
    words = 0
    for frame in frames:
        expected = dict(reference.activations(frame))
        for name, value in backend.activations(frame):  # what is fused is not kept
            if not np.array_equal(value, expected[name]):
                raise CommandError(f"{model.name}, {frame.encoding}: layer {name} differs from the reference")
            words += value.size
    if not np.array_equal(backend.logits(frames * 4), np.concatenate([reference.logits(frames)] * 4)):
        raise CommandError(
            f"{model.name}: the logits of {4 * len(frames)} frames at once differ from the reference"
        )
    backend.close()
    save({"frames": len(frames), "words": words})


def cuda_binary(model: Model | None, save: Save) -> None:
    """Times of the binary net, with the tiles that ship, whatever was tuned on this machine."""
    assert model is not None
    table = TileTable.load(resource_folder("config") / SHIPPED)
    _time_binary(model, table, {"batches": {}}, save)


def cuda_binary_tuned(model: Model | None, save: Save) -> None:
    """Times of the binary net, with the best of a few tiles for each layer, tensor cores among them."""
    from bnn_perception.backends.cuda.tune import tune

    assert model is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.yaml"
        tune([model], path, TUNING_CANDIDATES)
        tiles = yaml.safe_load(path.read_text(encoding="utf-8"))
        _time_binary(model, TileTable.load(path), {"batches": {}, "tiles": tiles}, save)


def _time_binary(model: Model, table: TileTable, result: Result, save: Save) -> None:
    from bnn_perception.backends.cuda.binary import CudaBinaryBackend
    from bnn_perception.backends.reference import ReferenceBackend

    backend = CudaBinaryBackend(model, table)
    frames = _batches(model, 4)[0]
    if not np.array_equal(backend.logits(frames), ReferenceBackend(model).logits(frames)):
        raise CommandError(f"{model.name}: the logits differ from the reference; no times were taken")
    for batch in BATCHES:
        _measure(backend, batch, result, lambda frames: binary_work(model, frames, _frame_bytes(model)))
        save(result)
    backend.close()


def cuda_float(precision: str, model: Model | None, save: Save) -> None:
    """Times of the float twin by this package, with and without a graph."""
    from bnn_perception.backends.cuda.float import CudaFloatBackend

    assert model is not None
    stages = _stages(model)
    backend = CudaFloatBackend(model, precision)
    _compare_with_onnx_runtime(model, backend.logits(_batches(model, 4)[0]), TOLERANCE[precision])
    result: Result = {"batches": {}}

    def work(frames: int) -> list[Work]:
        return float_work(model, stages, precision == "fp16", frames, _frame_bytes(model))

    for batch in BATCHES:
        _measure(backend, batch, result, work)
        save(result)
    backend.close()
    backend = CudaFloatBackend(model, precision, graph=False)
    for batch in BATCHES:
        batches = _batches(model, batch)
        entry = result["batches"][str(batch)]
        entry["gpu_without_graph"] = asdict(time_network(backend, batches, graph=False))
        entry["call_without_graph"] = asdict(time_calls(backend.logits, batches))
        save(result)
    backend.close()


def _stages(model: Model) -> tuple[Stage, ...]:
    if model.float_twin is None:
        raise CommandError(
            f"{model.name} has no float twin; random ones need the package onnx: pip install onnx"
        )
    return read_float_twin(model.float_twin, model.input, len(model.labels))


def _measure(backend: CudaBackend, batch: int, result: Result, work: Callable[[int], list[Work]]) -> None:
    """Add the times of a batch. Where it takes several launches, kernels are timed for one of them.

    Args:
        work: of the kernels for a number of frames.
    """
    batches = _batches(backend.model, batch)
    frames = batches[0][:MAX_FRAMES]
    kernels = [
        {
            **asdict(item),
            "kernel": launch.spec.kernel if launch.spec else "cublas",
            "microseconds": timing.median,
        }
        for item, (launch, timing) in zip(work(len(frames)), time_kernels(backend, frames), strict=True)
    ]
    result["batches"][str(batch)] = {
        "gpu": asdict(time_network(backend, batches)),
        "call": asdict(time_calls(backend.logits, batches)),
        "kernel_frames": len(frames),
        "kernels": kernels,
    }


def compare_pytorch(variant: str, model: Model | None, save: Save) -> None:
    """Times of the float twin by PyTorch."""
    assert model is not None
    stages = _stages(model)
    how = pytorch.VARIANTS[variant]
    result: Result = {"batches": {}}
    for batch in BATCHES:
        pixels = [_pixels(model, frames) for frames in _batches(model, batch)]
        measured = pytorch.time_variant(stages, how, pixels)
        if batch == 4:
            tolerance = TOLERANCE["fp16" if how.half else "tf32" if how.tf32 else "fp32"]
            _compare_with_onnx_runtime(model, measured.logits, tolerance)
        result["batches"][str(batch)] = {"gpu": asdict(measured.gpu), "call": asdict(measured.call)}
        save(result)


def _batches(model: Model, batch: int) -> list[list[Frame]]:
    """Random frames of the model's own size, the same in every part."""
    rng = np.random.default_rng(batch)
    pixels = rng.integers(0, 256, (ROTATION, batch, *model.input.shape), dtype=np.uint8)
    encoding = "rgb8" if model.input.channels == 3 else "mono8"
    return [[Frame(frame, encoding) for frame in frames] for frames in pixels]


def _frame_bytes(model: Model) -> int:
    return int(np.prod(model.input.shape))


def _pixels(model: Model, frames: Sequence[Frame]) -> NDArray[np.uint8]:
    return np.stack([prepare_reference(frame, model.input) for frame in frames])


def _compare_with_onnx_runtime(model: Model, logits: NDArray[np.float32], tolerance: float) -> None:
    """Check the logits of the first batch of four.

    Raises:
        CommandError: where they differ, or ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise CommandError(
            "onnxruntime is not installed, the float twin cannot be checked; pip install onnxruntime"
        ) from None
    session = onnxruntime.InferenceSession(str(model.float_twin), providers=["CPUExecutionProvider"])
    pixels = _pixels(model, _batches(model, 4)[0]).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    (expected,) = session.run(None, {session.get_inputs()[0].name: pixels})
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise CommandError(
            f"logits differ from ONNX Runtime's by {difference:.1e} of the largest; {tolerance:.0e} is allowed"
        )


def _part(function: Callable[..., None], *args: str) -> Callable[[Model | None, Save], None]:
    return lambda model, save: function(*args, model, save)


#: Parts that are about the GPU, and parts that are about a net, in the order in which they run.
GPU_PARTS: Mapping[str, Callable[[Model | None, Save], None]] = {
    "environment": environment,
    "peaks": peaks,
    "convolutions": convolutions,
}
NET_PARTS: Mapping[str, Callable[[Model | None, Save], None]] = {
    "correctness": correctness,
    "cuda_binary": cuda_binary,
    "cuda_binary tuned": cuda_binary_tuned,
    "cuda_float fp32": _part(cuda_float, "fp32"),
    "cuda_float fp16": _part(cuda_float, "fp16"),
    **{name: _part(compare_pytorch, name) for name in pytorch.VARIANTS},
}


def run_part(part: str, file: Path, folder: Path | None) -> None:
    """Run one part. Its result is written to ``file``, again after each step, so that what was done is kept.

    Raises:
        Exception: whatever the part raises.
    """

    def save(result: Result) -> None:
        with replacing(file) as partial:
            partial.write_text(json.dumps(result), encoding="utf-8")

    function = GPU_PARTS.get(part) or NET_PARTS[part]
    function(None if folder is None else load_model(folder), save)


if __name__ == "__main__":
    try:
        run_part(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    except Exception as error:
        # One line for the report; every kind of failure is expected here.
        print(one_line(error, with_type=True), file=sys.stderr)
        sys.exit(1)
