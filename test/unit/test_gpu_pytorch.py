"""What the GPU benchmark compares with in PyTorch is the float twin: the same logits, here on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
from test_float_twin import evaluate_all

from benchmark.gpu import pytorch
from benchmark.gpu.nets import Convolutions, Topology, random_net
from bnn_perception.importers.onnx.float_twin import read_float_twin
from bnn_perception.importers.stage import Stage

torch = pytest.importorskip("torch", reason="torch is not installed")

SMALL = Topology("small", 18, Convolutions((12, 20), 3), (30, 5))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, ...]:
    model = random_net(SMALL, tmp_path_factory.mktemp("model"))
    assert isinstance(model.float_twin, Path)
    return read_float_twin(model.float_twin, model.input, 5)


def test_the_module_is_a_residual_twin(tmp_path: Path) -> None:
    """Every kind of shortcut; and one around a convolution that is as large as its input, which becomes a matrix."""
    rng = np.random.default_rng(7)
    path = tmp_path / "float.onnx"
    model = models.scaled_stem_model(rng)
    path.write_bytes(models.random_float_twin(rng, model))
    stages = list(read_float_twin(path, model.input, len(model.labels)))
    pixels = rng.integers(0, 256, (3, *model.input.shape), dtype=np.uint8)
    check(tuple(stages), pixels)
    single = replace(
        stages[-1],
        name="single",
        input_shape=(1, 1, 5),
        weights=rng.normal(0, 1, (5, 1, 1, 5)).astype(np.float32),
        shortcut="identity",
    )
    check((*stages, single), pixels)


def check(stages: tuple[Stage, ...], pixels: np.ndarray) -> None:
    with torch.no_grad():
        logits = pytorch.build_twin(stages, False)(torch.from_numpy(pixels)).numpy()
    expected = np.array([evaluate_all(stages, frame / 255) for frame in pixels])
    # float32 against float64, as in test_cuda_float.py
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def negative(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Scales that cannot go into the weights, and another clip."""
    return tuple(replace(stage, scale=-stage.scale, low=-1.0, high=6.0) for stage in stages)


def uneven(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Padding that PyTorch's convolution does not have; the size stays."""
    return (replace(stages[0], padding=(2, 0, 0, 2)), *stages[1:])


@pytest.mark.parametrize(
    "change", [lambda s: s, negative, uneven], ids=["as trained", "negative scale", "uneven"]
)
@pytest.mark.parametrize(
    ("half", "tolerance"), [(False, 1e-5), (True, 8 * 2**-11)]
)  # as in test_cuda_float.py
def test_the_module_is_the_twin(
    change: object, half: bool, tolerance: float, stages: tuple[Stage, ...]
) -> None:
    changed: tuple[Stage, ...] = change(stages)  # type: ignore[operator]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 18, 18, 3), dtype=np.uint8)
    module = pytorch.build_twin(changed, half)
    # No code generator is needed to see that torch.compile takes the module in one piece.
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        logits, again = (run(torch.from_numpy(pixels)).numpy() for run in (module, compiled))
    np.testing.assert_array_equal(logits, again)
    expected = [evaluate_all(changed, frame / 255) for frame in pixels]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_says_why_it_cannot_be_compared_with() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert pytorch.why_not() == "PyTorch was built without CUDA or finds no GPU"
