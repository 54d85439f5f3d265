"""Nets in the manner of published ones, small, with random weights: written here from their papers, exported by both of
PyTorch's exporters, imported, and compared with float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra [train])")

from bnn_perception.backends.cpu.binary import CpuBinaryBackend  # noqa: E402
from bnn_perception.backends.reference import ReferenceBackend  # noqa: E402
from bnn_perception.frames.frame import Frame  # noqa: E402
from bnn_perception.importers.fold.builder import PixelRange  # noqa: E402
from bnn_perception.importers.onnx.read import read  # noqa: E402
from bnn_perception.net import bits  # noqa: E402
from bnn_perception.net.model import Model  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
SIDE, PICTURES, CLASSES = 32, 64, 10


def sign(x: Any) -> Any:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def straight_through(x: Any) -> Any:
    """As nets write it whose gradient is that of a clip."""
    clipped = torch.clamp(x, -1, 1)
    return sign(x).detach() - clipped.detach() + clipped


class Binary(nn.Module):
    """A convolution of binary weights: sign of a latent weight times its mean magnitude a filter."""

    def __init__(
        self, before: int, after: int, kernel: int = 3, stride: int = 1, form: Callable[[Any], Any] = sign
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.stride, self.form = stride, form

    def forward(self, x: Any) -> Any:
        scale = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        kernel = self.weight.shape[2]
        return functional.conv2d(x, scale * self.form(self.weight), stride=self.stride, padding=kernel // 2)


class Shift(nn.Module):
    """A learnt number a channel (RSign, RPReLU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(0.3 * torch.randn(1, channels, 1, 1))

    def forward(self, x: Any) -> Any:
        return x + self.bias


class Block(nn.Module):
    """``x -> body(x) + shortcut(x)``."""

    def __init__(self, body: Any, shortcut: Any = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.body(x) + self.shortcut(x)


class Fn(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Grow(nn.Module):
    """``x -> [x, body(x)]``: BinaryDenseNet."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Any) -> Any:
        return torch.cat([x, self.body(x)], 1)


class Improve(nn.Module):
    """Adds to the newest channels alone: MeliusNet."""

    def __init__(self, channels: int, new: int) -> None:
        super().__init__()
        self.new = new
        self.body = nn.Sequential(nn.BatchNorm2d(channels), Fn(sign), Binary(channels, new))

    def forward(self, x: Any) -> Any:
        return torch.cat([x[:, : -self.new], x[:, -self.new :] + self.body(x)], 1)


class Both(nn.Module):
    """Two convolutions on one tensor of signs, side by side: the growing block of ReActNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.front = nn.Sequential(Shift(channels), Fn(sign))
        self.convs = nn.ModuleList([Binary(channels, channels, 1) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])
        self.shift, self.prelu, self.back = Shift(2 * channels), nn.PReLU(2 * channels), Shift(2 * channels)

    def forward(self, x: Any) -> Any:
        signs = self.front(x)
        halves = [norm(conv(signs)) + x for conv, norm in zip(self.convs, self.norms)]
        return self.back(self.prelu(self.shift(torch.cat(halves, 1))))


def stem(channels: int, kernel: int = 3, stride: int = 2) -> list[Any]:
    conv = nn.Conv2d(3, channels, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def head(channels: int) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def bi_real(channels: int, after: int, stride: int = 1) -> Any:
    body = nn.Sequential(Fn(sign), Binary(channels, after, 3, stride), nn.BatchNorm2d(after))
    if stride == 1:
        return Block(body)
    down = nn.Sequential(
        nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(channels, after, 1, bias=False), nn.BatchNorm2d(after)
    )
    return Block(body, down)


def react(channels: int, stride: int = 1) -> Any:
    body = nn.Sequential(
        Shift(channels), Fn(sign), Binary(channels, channels, 3, stride), nn.BatchNorm2d(channels)
    )
    block = Block(body, nn.AvgPool2d(2, 2) if stride == 2 else None)
    return nn.Sequential(block, Shift(channels), nn.PReLU(channels), Shift(channels))


def quick(channels: int) -> Any:
    return Block(nn.Sequential(Fn(sign), Binary(channels, channels), nn.ReLU(), nn.BatchNorm2d(channels)))


def transition(before: int, after: int) -> Any:
    """QuickNet: ReLU, max pool, blur pool of depthwise weights, 1x1."""
    blur = nn.Conv2d(before, before, 3, 2, 1, groups=before, bias=False)
    return nn.Sequential(
        nn.ReLU(), nn.MaxPool2d(3, 1, 1), blur, nn.Conv2d(before, after, 1), nn.BatchNorm2d(after)
    )


def shortcut_a(before: int, after: int) -> Any:
    edge = (after - before) // 2
    return Fn(lambda x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, edge, edge)))


NETS: dict[str, Callable[[], Any]] = {
    "Bi-Real Net": lambda: nn.Sequential(
        *stem(16, 7), nn.MaxPool2d(3, 2, 1), bi_real(16, 16), bi_real(16, 16), bi_real(16, 32, 2), bi_real(32, 32),
        *head(32),
    ),
    "ReActNet": lambda: nn.Sequential(*stem(16), react(16), Both(16), react(32, 2), react(32), *head(32)),
    "QuickNet": lambda: nn.Sequential(*stem(16), quick(16), quick(16), transition(16, 24), quick(24), *head(24)),
    "XNOR-Net": lambda: nn.Sequential(
        *stem(16, 5, 1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(16), Fn(sign), Binary(16, 32), nn.ReLU(),
        nn.MaxPool2d(2), nn.BatchNorm2d(32), Fn(sign), Binary(32, 32), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 64, CLASSES),
    ),
    "IR-Net, straight through": lambda: nn.Sequential(
        *stem(16),
        Block(nn.Sequential(
            Fn(straight_through), Binary(16, 16, form=straight_through), nn.BatchNorm2d(16), nn.Hardtanh()
        )),
        Block(nn.Sequential(Fn(straight_through), Binary(16, 16), nn.BatchNorm2d(16))), nn.Hardtanh(), *head(16),
    ),
    "ResNetE, shortcut A": lambda: nn.Sequential(
        *stem(16),
        Block(nn.Sequential(Fn(sign), Binary(16, 32, 3, 2), nn.BatchNorm2d(32)), shortcut_a(16, 32)),
        Block(nn.Sequential(Fn(sign), Binary(32, 32), nn.BatchNorm2d(32))), *head(32),
    ),
    "BinaryDenseNet": lambda: nn.Sequential(
        *stem(16),
        *(Grow(nn.Sequential(nn.BatchNorm2d(16 + 8 * i), Fn(sign), Binary(16 + 8 * i, 8))) for i in range(3)),
        nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(40, 20, 1), nn.BatchNorm2d(20), *head(20),
    ),
    "MeliusNet": lambda: nn.Sequential(
        *stem(16), Grow(nn.Sequential(nn.BatchNorm2d(16), Fn(sign), Binary(16, 8))), Improve(24, 8),
        Grow(nn.Sequential(nn.BatchNorm2d(24), Fn(sign), Binary(24, 8))), Improve(32, 8), *head(32),
    ),
    "two convolutions a block": lambda: nn.Sequential(
        *stem(16),
        Block(nn.Sequential(
            Fn(sign), Binary(16, 16), nn.BatchNorm2d(16), Fn(sign), Binary(16, 16), nn.BatchNorm2d(16)
        )),
        Fn(sign), Binary(16, 32, 3, 2), nn.BatchNorm2d(32), Fn(sign), nn.MaxPool2d(3, 2, 1), Binary(32, 32, 1),
        *head(32),
    ),
}  # fmt: skip


def pictures(count: int = PICTURES, side: int = SIDE) -> Any:
    """(count, side, side, 3) uint8: coarse and fine structure together."""
    generator = torch.Generator().manual_seed(5)
    parts = [torch.rand(count, 3, size, size, generator=generator) for size in (3, 8, 21)]
    x = sum(functional.interpolate(part, size=(side, side), mode="bilinear") for part in parts) / 3
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def settled(net: Any, taken: Any) -> Any:
    """The net with the statistics of its batch norms taken from pictures, for evaluation."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0, 0.5)
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(taken)
    return net.eval()


def export(net: Any, path: Path, dynamo: bool, side: int = SIDE) -> None:
    options = {"external_data": False, "verbose": False} if dynamo else {"opset_version": 17}
    torch.onnx.export(net, (torch.rand(1, 3, side, side),), str(path), dynamo=dynamo, **options)


def answers(net: Any, x: Any) -> Any:
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double()).numpy()


def compared(model: Model, images: Any, exact: Any) -> int:
    """On how many images the model gives the class of float64; its backends must agree bit for bit."""
    frames = [Frame(image) for image in images]
    backend = CpuBinaryBackend(model, 1)
    logits = backend.logits(frames)
    np.testing.assert_array_equal(ReferenceBackend(model).logits(frames[:4]), logits[:4])
    backend.close()
    return int((logits.argmax(axis=1) == exact.argmax(axis=1)).sum())


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
def test_published_nets(tmp_path: Path, name: str, dynamo: bool) -> None:
    torch.manual_seed(1)
    images = pictures()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    net = settled(NETS[name](), x)
    export(net, tmp_path / "net.onnx", dynamo)
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
    export(net, tmp_path / "net.onnx", dynamo=False)
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
    export(net, tmp_path / "net.onnx", dynamo=False, side=side)
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
