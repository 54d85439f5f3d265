"""The float twin's backend against ONNX Runtime: its own kernels and launches, cuBLAS replaced by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
from fake_cublas import FakeCublas
from fake_cupy import CUDARuntimeError, FakeCupy

from benchmark.gpu.nets import Convolutions, Topology, random_net
from bnn_perception.backends import BackendError
from bnn_perception.backends.cuda import cublas
from bnn_perception.backends.cuda.float import CudaFloatBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net.folder import save_model
from bnn_perception.net.model import Model

pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# As the road-sign net, but small: pools from an odd size, channels that fill no vector.
SMALL = Topology("small", 18, Convolutions((12, 20), 3), (30, 5))

# Half an ulp of a half is 2**-11 of the value. An activation is rounded once a layer and a weight once; the errors of a
# sum of products add up like a random walk, so that the relative error of a logit stays a few ulp over five layers.
HALF = 8 * 2**-11
# The same for float32, where both sides also sum in an order of their own: 2**-24 by the square root of 180 terms.
SINGLE = 1e-5


@pytest.fixture
def library(fake_gpu: Callable[..., FakeCupy], monkeypatch: pytest.MonkeyPatch) -> FakeCublas:
    library = FakeCublas(fake_gpu())
    monkeypatch.setattr(cublas, "load_library", lambda: library)
    return library


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return random_net(SMALL, tmp_path_factory.mktemp("model"), seed=5)


@pytest.fixture(scope="module", params=[20, 24])
def residual_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every kind of shortcut, from odd sides too, growing channels; 20 of them fill no vector of halves."""
    rng = np.random.default_rng(7)
    model = models.scaled_stem_model(rng, channels=request.param)
    return save_model(model, tmp_path_factory.mktemp("residual"), models.random_float_twin(rng, model))


def random_frames(count: int, side: int = 40) -> list[Frame]:
    rng = np.random.default_rng(count)
    return [Frame(rng.integers(0, 256, (side, side + 7, 3), dtype=np.uint8), "bgr8") for _ in range(count)]


def onnx_runtime(model: Model, frames: list[Frame]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model.float_twin), providers=["CPUExecutionProvider"])
    pixels = np.stack([prepare_reference(frame, model.input) for frame in frames])
    (logits,) = session.run(
        None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)}
    )
    return logits


def assert_equals_onnx_runtime(backend: CudaFloatBackend, model: Model, count: int, tolerance: float) -> None:
    """On ``count`` random frames; the tolerance is a part of the largest logit."""
    frames = random_frames(count)
    logits, expected = backend.logits(frames), onnx_runtime(model, frames)
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", SINGLE), ("fp16", HALF)])
@pytest.mark.parametrize("graph", [True, False])
def test_equals_onnx_runtime(
    library: FakeCublas, model: Model, precision: str, tolerance: float, graph: bool
) -> None:
    backend = CudaFloatBackend(model, precision, graph)
    for count in (3, 1, 3):
        assert_equals_onnx_runtime(backend, model, count, tolerance)
        assert list(backend.times) == ["upload", "preprocess", "inference", "download"]
    assert library.world.captures == (2 if graph else 0)
    assert library.world.graph_launches == (3 if graph else 0)
    names = [name for name, _ in backend.activations(random_frames(1)[0])]
    assert names == ["input", "dense2"]
    backend.close()
    backend.close()
    assert not library.streams  # the handle was given back
    with pytest.raises(BackendError, match="the backend is closed"):
        backend.logits(random_frames(1))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", SINGLE), ("fp16", HALF)])
@pytest.mark.parametrize("graph", [True, False])
def test_residual_net_equals_onnx_runtime(
    library: FakeCublas, residual_model: Model, precision: str, tolerance: float, graph: bool
) -> None:
    """The same tolerances: residuals are float32 in both precisions, so that only products are rounded to halves."""
    backend = CudaFloatBackend(residual_model, precision, graph)
    for count in (3, 1, 3):
        assert_equals_onnx_runtime(backend, residual_model, count, tolerance)
    assert library.world.captures == (2 if graph else 0)
    backend.close()


def test_mapped_memory_needs_no_copy(
    fake_gpu: Callable[..., FakeCupy], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Jetson: the last kernel writes the logits where the host reads them."""
    library = FakeCublas(fake_gpu(integrated=True))
    monkeypatch.setattr(cublas, "load_library", lambda: library)
    backend = CudaFloatBackend(model)
    frames = random_frames(2)
    expected = onnx_runtime(model, frames)
    np.testing.assert_allclose(backend.logits(frames), expected, rtol=0, atol=SINGLE * np.abs(expected).max())
    backend.close()


def test_graphs_do_not_outlive_their_arrays(library: FakeCublas, model: Model) -> None:
    """As when a benchmark has the network make larger arrays in between."""
    backend = CudaFloatBackend(model)
    frames = random_frames(1)
    expected = backend.logits(frames)
    with backend.current():
        backend.reserve(9)
    np.testing.assert_array_equal(backend.logits(frames), expected)
    assert library.world.captures == 2
    backend.close()


def test_a_graph_calls_no_cublas(library: FakeCublas, model: Model) -> None:
    backend = CudaFloatBackend(model)
    backend.logits(random_frames(1))
    products = library.products
    backend.logits(random_frames(1))
    assert library.products == products


def test_a_failure_of_cublas_is_named(
    library: FakeCublas, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "cublasGemmEx", lambda *args: 14)
    with pytest.raises(BackendError, match="cublasGemmEx failed with status 14"):
        CudaFloatBackend(model)


def test_a_sticky_error_is_a_backend_error(library: FakeCublas, model: Model) -> None:
    backend = CudaFloatBackend(model)
    library.world.faults["graph"] = CUDARuntimeError("cudaErrorIllegalAddress")
    for _ in range(2):
        with pytest.raises(BackendError, match="make the backend anew"):
            backend.logits(random_frames(1))


def test_refuses_an_unknown_precision(library: FakeCublas, model: Model) -> None:
    with pytest.raises(BackendError, match="precision 'int4' is not one of fp32, fp16"):
        CudaFloatBackend(model, "int4")


def test_a_model_without_a_twin_is_refused(library: FakeCublas, model: Model, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="has no float twin"):
        CudaFloatBackend(save_model(model, tmp_path))
