"""Nets in the manner of published ones (nets/architectures.py), by the PyTorch that is installed, against float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra [train])")

from nets.architectures import (  # noqa: E402
    NETS,
    SIDE,
    Binary,
    Fn,
    answers,
    bi_real,
    export,
    head,
    settled,
    stem,
)

from bnn_perception.backends.cpu.binary import CpuBinaryBackend  # noqa: E402
from bnn_perception.backends.reference import ReferenceBackend  # noqa: E402
from bnn_perception.frames.frame import Frame  # noqa: E402
from bnn_perception.importers.fold.builder import PixelRange  # noqa: E402
from bnn_perception.importers.onnx.read import read  # noqa: E402
from bnn_perception.net import bits  # noqa: E402
from bnn_perception.net.model import Model  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
PICTURES = 64


def pictures(count: int = PICTURES, side: int = SIDE) -> Any:
    """(count, side, side, 3) uint8: coarse and fine structure together."""
    generator = torch.Generator().manual_seed(5)
    parts = [torch.rand(count, 3, size, size, generator=generator) for size in (3, 8, 21)]
    x = sum(functional.interpolate(part, size=(side, side), mode="bilinear") for part in parts) / 3
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def compared(model: Model, images: Any, exact: Any) -> int:
    """On how many images the model gives the class of float64; its backends must agree bit for bit."""
    frames = [Frame(image) for image in images]
    backend = CpuBinaryBackend(model, 1)
    logits = backend.logits(frames)
    np.testing.assert_array_equal(ReferenceBackend(model).logits(frames[:4]), logits[:4])
    backend.close()
    return int((logits.argmax(axis=1) == exact.argmax(axis=1)).sum())


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
def test_published_nets(tmp_path: Path, name: str, exporter: str) -> None:
    """As test_import_nets.py has them in files."""
    torch.manual_seed(1)
    images = pictures()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    net = settled(NETS[name](), x)
    export(net, tmp_path / "net.onnx", exporter)
    model = read(tmp_path / "net.onnx", PixelRange.of(0.0, 1.0))
    # A sign that lands on 0 to within float32 may go either way, in PyTorch as well.
    assert compared(model, images, answers(net, x)) >= PICTURES - 2


@pytest.mark.parametrize("binary_stem", [False, True])
@pytest.mark.parametrize("normalization", ["-1 to 1", "a channel"])
@pytest.mark.filterwarnings("ignore")
def test_pixels_are_taken_as_the_data_loader_gave_them(
    tmp_path: Path, normalization: str, binary_stem: bool
) -> None:
    """Without being told, such nets gave the right class on 6 and 21 of 32 pictures; padding is of normalized zeros."""
    mean, std = (
        ([0.5] * 3, [0.5] * 3)
        if normalization == "-1 to 1"
        else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    torch.manual_seed(2)
    images = pictures()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    first = [Binary(3, 16), nn.BatchNorm2d(16)] if binary_stem else stem(16)
    net = settled(nn.Sequential(*first, bi_real(16, 16), *head(16)), x)
    export(net, tmp_path / "net.onnx", "torchscript")
    stated = PixelRange.of(-1.0, 1.0) if normalization == "-1 to 1" else PixelRange(tuple(mean), tuple(std))
    model = read(tmp_path / "net.onnx", stated)
    assert compared(model, images, answers(net, x)) >= PICTURES - 1
    np.testing.assert_allclose((model.input.mean, model.input.std), (mean, std), rtol=1e-15)


@pytest.mark.filterwarnings("ignore")
def test_a_deep_residual_net_keeps_its_signs(tmp_path: Path) -> None:
    """18 layers: as near to float64 as PyTorch's own float32, in signs and in classes."""
    torch.manual_seed(1)
    side, images = 64, pictures(12, 64)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    blocks = [
        bi_real(
            32 << max(stage - (block == 0 and stage > 0), 0), 32 << stage, 2 if stage and not block else 1
        )
        for stage in range(4)
        for block in range(4)
    ]
    net = settled(nn.Sequential(*stem(32, 7), nn.MaxPool2d(3, 2, 1), *blocks, *head(256)), x)
    export(net, tmp_path / "net.onnx", "torchscript", side)
    model = read(tmp_path / "net.onnx", PixelRange.of(0.0, 1.0))
    seen: list[Any] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for m in net.modules()
        if isinstance(m, Fn)
    ]
    wide = copy.deepcopy(net).double()
    backend = CpuBinaryBackend(model, 1)
    flipped = {"float32": 0, "imported": 0}
    classes = {"float32": 0, "imported": 0}
    for image, one in zip(images, x):
        runs = {}
        for key, module, value in (("float64", wide, one.double()), ("float32", net, one)):
            seen.clear()
            with torch.no_grad():
                logits = module(value[None])[0].numpy()
            runs[key] = [s[0].numpy() > 0 for s in seen], logits
        found = [value for name, value in backend.activations(Frame(image)) if name != "input"]
        signs = [
            bits.unpack(words, s.shape[0]).transpose(2, 0, 1)
            for words, s in zip(
                [value for value in found if value.dtype == np.uint32], runs["float64"][0], strict=True
            )
        ]
        runs["imported"] = signs, found[-1]
        for key in flipped:
            flipped[key] += any((a != b).any() for a, b in zip(runs[key][0], runs["float64"][0]))
            classes[key] += int(runs[key][1].argmax() == runs["float64"][1].argmax())
    for hook in hooks:
        hook.remove()
    backend.close()
    # Which of the two rounds a value at a threshold the other way is chance, so they may differ by a picture.
    assert flipped["imported"] <= flipped["float32"] + 1
    assert classes["imported"] >= classes["float32"] - 1
