"""The float twin on the GPU, by real cuBLAS: equal to ONNX Runtime up to rounding, with and without a graph."""

from __future__ import annotations

import models
import numpy as np
import pytest

from benchmark.gpu.nets import PAPER, ROAD_SIGNS, Topology, random_net
from benchmark.gpu.parts import TOLERANCE
from bnn_perception.backends.cuda.float import CudaFloatBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net.folder import save_model
from bnn_perception.net.model import Model

pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(
    scope="module",
    params=[PAPER, ROAD_SIGNS, None],
    ids=lambda topology: topology.name if topology else "residual",
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    topology: Topology | None = request.param
    if topology is not None:
        return random_net(topology, tmp_path_factory.mktemp(topology.name))
    rng = np.random.default_rng(7)
    net = models.scaled_stem_model(rng, side=33, channels=20)
    return save_model(net, tmp_path_factory.mktemp("residual"), models.random_float_twin(rng, net))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", [True, False])
def test_equals_onnx_runtime(model: Model, precision: str, graph: bool) -> None:
    session = onnxruntime.InferenceSession(str(model.float_twin), providers=["CPUExecutionProvider"])
    backend = CudaFloatBackend(model, precision, graph)
    rng = np.random.default_rng(0)
    for count in (1, 5, 16, 1):
        frames = [Frame(rng.integers(0, 256, (120, 170, 3), dtype=np.uint8), "bgr8") for _ in range(count)]
        pixels = np.stack([prepare_reference(frame, model.input) for frame in frames])
        (expected,) = session.run(
            None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)}
        )
        for _ in range(2):  # the second time a graph is launched that is there
            logits = backend.logits(frames)
            np.testing.assert_allclose(
                logits, expected, rtol=0, atol=TOLERANCE[precision] * np.abs(expected).max()
            )
    backend.close()


def test_a_frame_alone_is_what_it_is_in_a_batch(model: Model) -> None:
    """Rows of a matrix do not mix; cuBLAS may sum in another order for another number of them."""
    backend = CudaFloatBackend(model)
    rng = np.random.default_rng(1)
    frames = [Frame(rng.integers(0, 256, model.input.shape, dtype=np.uint8)) for _ in range(7)]
    together = backend.logits(frames)
    alone = np.concatenate([backend.logits([frame]) for frame in frames])
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE["fp32"] * np.abs(alone).max())
    backend.close()
