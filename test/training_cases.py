"""Nets, pixels and interruptions that the tests of training share; needs PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bnn_perception.training import config as configs
from bnn_perception.training import modules, networks
from bnn_perception.training.config import NetworkSpec
from bnn_perception.training.export import float_twin_onnx
from bnn_perception.training.progress import Reporter


def network(layers: list[dict[str, Any]], height: int, width: int) -> NetworkSpec:
    return configs.from_mapping({"input": {"height": height, "width": width}, "network": layers}).network


def pixels(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """(count, height, width, 3), each image of another brightness."""
    rng = np.random.default_rng(0)
    lows = rng.integers(0, 150, count)
    return np.stack([rng.integers(low, low + 100, (height, width, 3), dtype=np.uint8) for low in lows])


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0


@torch.no_grad()
def randomize(net: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Random thresholds, slopes and batch norms about the statistics of ``images``; gammas of both signs and zero."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, modules.ChannelShift):
            module.threshold.normal_(std=0.3)
        elif isinstance(module, torch.nn.PReLU):
            module.weight.normal_()
    net.train()
    net(images)  # running statistics
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.weight.normal_()
            module.weight[0] = 0.0
            module.bias.normal_(std=0.3)
    return net.eval()


def assert_float_twin_equals_its_onnx_file(layers: list[dict[str, Any]], height: int, width: int) -> None:
    """The exported twin, its batch norms folded, answers as the trained one does."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra [tools])")
    spec = network(layers, height, width)
    images = to_tensor(pixels(5, height, width))
    net = networks.build_float(spec, 4)
    randomize(net, images)
    networks.clip(net)
    session = onnxruntime.InferenceSession(float_twin_onnx(net, spec), providers=["CPUExecutionProvider"])
    for count in (1, 5):  # any batch
        (logits,) = session.run(None, {"image": images[:count].contiguous().numpy()})
        expected = net(images[:count]).detach().numpy()
        # float32, folded in another order: some hundred terms, each rounded by 6e-8 of the largest
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


class Stopping(Reporter):
    """Raises what Ctrl-C raises after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self._left = steps

    def bar(self, title: str, total: int, done: int) -> Any:
        del title, total, done
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
