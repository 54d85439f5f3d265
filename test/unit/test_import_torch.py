"""Nets written by hand in PyTorch, without quantizers, exported by both of its exporters and imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra [train])")

from bnn_perception.cli.parity import compare  # noqa: E402
from bnn_perception.frames.frame import Frame  # noqa: E402
from bnn_perception.importers.onnx.read import read  # noqa: E402

functional = torch.nn.functional


def signs(x: Any) -> Any:
    return torch.where(x >= 0, 1.0, -1.0)


#: How a sign is written, what makes features of the map, and the shape of the last weights.
STYLES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], tuple[int, ...]]] = {
    "where, view": (signs, lambda x: x.view(x.size(0), -1), (3, 120)),
    "cast, flatten": (lambda x: (x > 0).float() * 2 - 1, lambda x: torch.flatten(x, 1), (3, 120)),
    "ones_like, reshape": (
        lambda x: torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x)),
        lambda x: x.reshape(-1, 120),
        (3, 120),
    ),
    "a convolution of the whole map": (signs, lambda x: x, (3, 6, 4, 5)),
}


class Net(torch.nn.Module):
    def __init__(self, style: str) -> None:
        super().__init__()
        self.sign, self.features, last = STYLES[style]
        shapes = ((5, 3, 3, 3), (6, 5, 3, 3), last)
        self.weights = torch.nn.ParameterList([torch.randn(shape) for shape in shapes])
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(5), torch.nn.BatchNorm2d(6)])
        for norm in self.norms:
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.running_mean, std=2.0)

    def forward(self, x: Any) -> Any:
        first, second, last = (signs(weight) for weight in self.weights)
        x = self.sign(self.norms[0](functional.conv2d(x, first, padding=1)))
        x = functional.conv2d(functional.pad(x, (1, 1, 1, 1), value=-1.0), second)
        x = self.features(self.sign(self.norms[1](functional.max_pool2d(x, 2))))
        return functional.linear(x, last) if last.ndim == 2 else functional.conv2d(x, last)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
def test_nets_written_by_hand(tmp_path: Path, style: str, dynamo: bool) -> None:
    """Logits are whole numbers of some hundred at most: a wrong bit would change one by 2, and nothing is rounded."""
    torch.manual_seed(0)
    path = tmp_path / "net.onnx"
    options = {"external_data": False, "verbose": False} if dynamo else {}
    image = torch.rand(1, 3, 8, 10)
    torch.onnx.export(Net(style).eval(), (image,), str(path), dynamo=dynamo, **options)
    rng = np.random.default_rng(1)
    frames = [Frame(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)) for _ in range(4)]
    parity = compare(path, read(path), frames)
    assert parity.difference == 0, parity
