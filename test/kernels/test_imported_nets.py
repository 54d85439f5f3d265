"""Imported nets of every kind (test/nets) on the stand-in for the GPU, bit for bit as the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

from fake_cupy import FakeCupy
from layer_cases import check_activations
from nets.table import cases, frames, imported

from bnn_perception.backends.cuda.binary import CudaBinaryBackend


@pytest.mark.parametrize("kind", cases("torchscript"))
def test_every_layer_of_an_imported_net(kind: str, fake_gpu: Callable[..., FakeCupy]) -> None:
    fake_gpu()
    backend = CudaBinaryBackend(imported("torchscript", kind))
    check_activations(backend, frames(1)[0])
    backend.close()
