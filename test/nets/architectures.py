"""Nets in the manner of published ones, small, with random weights: written here from their papers, in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SIDE, CLASSES = 32, 10


def sign(x: Any) -> Any:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def straight_through(x: Any) -> Any:
    """As nets write it whose gradient is that of a clip."""
    clipped = torch.clamp(x, -1, 1)
    return sign(x).detach() - clipped.detach() + clipped


def latent(*shape: int) -> Any:
    """Weights to take the signs of, never 0; of few magnitudes, so that files of them pack well."""
    return nn.Parameter(torch.floor(2 * torch.randn(shape)) / 2 + 0.25)


class Binary(nn.Module):
    """A convolution of binary weights: sign of a latent weight times its mean magnitude a filter."""

    def __init__(
        self, before: int, after: int, kernel: int = 3, stride: int = 1, form: Callable[[Any], Any] = sign
    ) -> None:
        super().__init__()
        self.weight = latent(after, before, kernel, kernel)
        self.stride, self.form = stride, form

    def forward(self, x: Any) -> Any:
        scale = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        kernel = self.weight.shape[2]
        return functional.conv2d(x, scale * self.form(self.weight), stride=self.stride, padding=kernel // 2)


class BinaryLinear(nn.Module):
    """A matrix of binary weights."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = latent(after, before)

    def forward(self, x: Any) -> Any:
        return functional.linear(x, sign(self.weight))


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


def dense(before: int, after: int) -> list[Any]:
    return [BinaryLinear(before, after), nn.BatchNorm1d(after)]


NETS: dict[str, Callable[[], Any]] = {
    "binary stack (BinaryNet, VGG)": lambda: nn.Sequential(
        Binary(3, 32), nn.BatchNorm2d(32), Fn(sign), Binary(32, 32), nn.MaxPool2d(2), nn.BatchNorm2d(32), Fn(sign),
        Binary(32, 48), nn.MaxPool2d(2), nn.BatchNorm2d(48), Fn(sign), Binary(48, 48, 3, 2), nn.BatchNorm2d(48),
        nn.Hardtanh(), Fn(sign), nn.Flatten(), *dense(48 * 16, 64), Fn(sign), *dense(64, CLASSES),
    ),
    "fully connected (TFC)": lambda: nn.Sequential(
        nn.Flatten(), Fn(lambda x: 2 * x - 1), Fn(sign), *dense(3072, 48), Fn(sign), *dense(48, 48), Fn(sign),
        *dense(48, CLASSES),
    ),
    "Bi-Real Net": lambda: nn.Sequential(
        *stem(16, 7), nn.MaxPool2d(3, 2, 1), bi_real(16, 16), bi_real(16, 16), bi_real(16, 32, 2), bi_real(32, 32),
        *head(32),
    ),
    "ReActNet": lambda: nn.Sequential(*stem(16), react(16), Both(16), react(32, 2), react(32), *head(32)),
    "QuickNet": lambda: nn.Sequential(*stem(16), quick(16), quick(16), transition(16, 24), quick(24), *head(24)),
    "XNOR-Net": lambda: nn.Sequential(
        *stem(16, 5, 1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(16), Fn(sign), Binary(16, 32), nn.ReLU(),
        nn.MaxPool2d(2), nn.BatchNorm2d(32), Fn(sign), Binary(32, 32), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(32 * 16, CLASSES),
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


def settled(net: Any, taken: Any) -> Any:
    """The net with the statistics of its batch norms taken from pictures, for evaluation."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0, 0.5)
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(taken)
        net.eval()
        # So that not one class is always the largest.
        for last in [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]:
            if isinstance(last.weight, nn.Parameter) and last.bias is not None:
                logits = net(taken)
                last.weight /= logits.std(0)[:, None]
                last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
    return net


def with_brevitas(net: Any) -> Any:
    """The net with the quantizers of Brevitas in place of its signs and binary weights."""
    from brevitas import nn as qnn
    from brevitas.quant.binary import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst

    weights = {"bias": False, "weight_quant": SignedBinaryWeightPerTensorConst}
    for name, module in list(net.named_children()):
        new = module
        if isinstance(module, Fn) and module.function is sign:
            new = qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst)
        elif isinstance(module, Binary):
            after, before, kernel, _ = module.weight.shape
            new = qnn.QuantConv2d(before, after, kernel, module.stride, kernel // 2, **weights)
            new.weight.data.copy_(module.weight)
        elif isinstance(module, BinaryLinear):
            new = qnn.QuantLinear(module.weight.shape[1], module.weight.shape[0], **weights)
            new.weight.data.copy_(module.weight)
        else:
            with_brevitas(module)
        setattr(net, name, new)
    return net


#: How a net is exported.
EXPORTERS = ("torchscript", "dynamo", "qonnx")


def export(net: Any, path: Path, exporter: str, side: int = SIDE) -> None:
    example = torch.rand(1, 3, side, side)
    if exporter == "qonnx":
        from brevitas.export import export_qonnx

        export_qonnx(net, args=example, export_path=str(path), dynamo=False)
        return
    dynamo = exporter == "dynamo"
    options: dict[str, Any] = {"external_data": False, "verbose": False} if dynamo else {"opset_version": 17}
    torch.onnx.export(net, (example,), str(path), dynamo=dynamo, **options)


def answers(net: Any, x: Any) -> Any:
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double()).numpy()
