"""One topology, built three times: the float twin, the binary net, the binary net in Brevitas.

Every hidden layer is ``convolution or matrix product -> [max pool] -> batch norm -> sign`` (the float twin: ReLU), so
that batch norm and sign fold into one integer threshold (:mod:`bnn_perception.net.bits`). The weights are binarized by
``sign`` too; training keeps *latent* real weights in [-1, 1] and lets gradients pass where the argument of the sign
lies in [-1, 1] (the clipped straight-through estimator of Hubara et al., "Binarized Neural Networks", NIPS 2016).

Binary convolutions pad with -1, as the engine does: the padding is a module of its own behind the sign. The network's
input is (N, channels, height, width) float32 in [0, 1], pixels over 255.

The light modules of this file train: they state the estimator in a few lines and need PyTorch alone. The same topology
with Brevitas' quantizers takes their weights for the QONNX export; that both answer alike is tested. A training step
costs the same in either (0.35 s of one core for 64 road signs).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnn_perception.training.config import (
    ConvSpec,
    DenseSpec,
    InputConvSpec,
    InputResidualConvSpec,
    NetworkSpec,
    ResidualConvSpec,
    ThermometerSpec,
)


class _SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # The derivative of hardtanh is 1 inside (-1, 1), else 0: the clipped estimator, in one pass over memory.
        return torch.ops.aten.hardtanh_backward(grads[0], x, -1.0, 1.0)


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1; the gradient passes where \\|x\\| < 1."""
    return _SignSTE.apply(x)


class Sign(nn.Module):
    """:func:`sign` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)


class BinaryWeightConv2d(nn.Conv2d):
    """Convolution by the signs of its latent weights."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, sign(self.weight), None, self.stride, self.padding)


class BinaryWeightLinear(nn.Linear):
    """Matrix product by the signs of its latent weights."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, sign(self.weight))


class Thermometer(nn.Module):
    """Pixels to +-1, ``levels`` a channel: channel ``c * levels + l`` is the sign of ``x[c] - threshold[l]``.

    The thresholds lie half way between two pixel values, so that rounding cannot matter.
    """

    offset: Tensor

    def __init__(self, levels: int, sign_module: nn.Module) -> None:
        super().__init__()
        self.register_buffer("offset", thermometer_thresholds(levels).sub(0.5).div(255.0).view(levels, 1, 1))
        self.sign = sign_module

    def forward(self, x: Tensor) -> Tensor:
        bits = self.sign(x.unsqueeze(2) - self.offset)
        return bits.flatten(1, 2)


def thermometer_thresholds(levels: int) -> Tensor:
    """(levels,) float32 whole numbers in 1..255 that divide the range of a pixel evenly; one level gives 128."""
    return torch.round(torch.arange(1, levels + 1) * (256.0 / (levels + 1)))


class ChannelShift(nn.Module):
    """Subtracts a learnt number from each channel; with the sign behind it, RSign (arXiv 2003.03488)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.threshold.view(-1, 1, 1)


class ResidualConv(nn.Module):
    """A residual convolution: it takes a residual and hands one on. Its parts are named as in a plain net.

    Args:
        front: from the residual to the convolution's input: RSign and padding, or ReLU.
        conv: the convolution.
        pool: max pool of its sums, or None.
        activation: of what the pool gives, or None.
        norm: batch norm of what the activation gives.
        shortcut: ``none``, ``identity`` or ``average_pool``.
        repeats: how often the shortcut's channels are repeated.
    """

    def __init__(
        self,
        front: nn.Sequential,
        conv: nn.Module,
        pool: nn.Module | None,
        activation: nn.Module | None,
        norm: nn.Module,
        shortcut: str,
        repeats: int,
    ) -> None:
        super().__init__()
        self.front, self.conv = front, conv
        self.pool, self.activation, self.norm = pool, activation, norm
        self.average = nn.AvgPool2d(2) if shortcut == "average_pool" else None
        self.shortcut, self.repeats = shortcut, repeats

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.front(x))
        for module in (self.pool, self.activation, self.norm):
            if module is not None:
                y = module(y)
        if self.shortcut == "none":
            return y
        if self.average is not None:
            x = self.average(x)
        return y + (torch.cat([x] * self.repeats, dim=1) if self.repeats > 1 else x)


class Quantizers(NamedTuple):
    """How to build the three quantized parts of a binary net."""

    conv: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    sign: Callable[[], nn.Module]


LIGHT = Quantizers(BinaryWeightConv2d, BinaryWeightLinear, Sign)


def brevitas_quantizers() -> Quantizers:
    """The same three parts from Brevitas: W1A1, scale 1, exported as ``BipolarQuant``."""
    from brevitas import nn as qnn
    from brevitas.core.zero_point import ZeroZeroPoint
    from brevitas.inject import ExtendedInjector
    from brevitas.inject.enum import (
        BitWidthImplType,
        FloatToIntImplType,
        QuantType,
        RestrictValueType,
        ScalingImplType,
    )
    from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

    class Bipolar(ExtendedInjector):
        quant_type = QuantType.BINARY
        bit_width_impl_type = BitWidthImplType.CONST
        bit_width = 1
        scaling_impl_type = ScalingImplType.CONST
        restrict_scaling_type = RestrictValueType.FP
        scaling_per_output_channel = False
        scaling_const = 1.0
        zero_point_impl = ZeroZeroPoint
        float_to_int_impl_type = FloatToIntImplType.ROUND
        narrow_range = True
        signed = True

    class BipolarWeight(Bipolar, WeightQuantSolver):
        pass

    class BipolarActivation(Bipolar, ActQuantSolver):
        min_val = -1.0
        max_val = 1.0

    def conv(*args: Any, **kwargs: Any) -> nn.Module:
        return qnn.QuantConv2d(*args, **kwargs, weight_quant=BipolarWeight)

    def linear(*args: Any, **kwargs: Any) -> nn.Module:
        return qnn.QuantLinear(*args, **kwargs, weight_quant=BipolarWeight)

    return Quantizers(conv, linear, lambda: qnn.QuantIdentity(act_quant=BipolarActivation))


def build_binary(spec: NetworkSpec, classes: int, quantizers: Quantizers = LIGHT) -> nn.Sequential:
    """The binary net: (N, channels, height, width) in [0, 1] -> (N, classes) logits.

    The logits are a batch norm of integers, which exports as one scale and one bias a class.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer, fan_in, residual in _walk(spec):
        if isinstance(layer, ThermometerSpec):
            modules[name] = Thermometer(layer.levels, quantizers.sign())
            continue
        if residual and not isinstance(layer, ResidualConvSpec):  # bits again
            modules[f"{name}_shift"] = ChannelShift(residual)
            modules[f"{name}_sign_before"] = quantizers.sign()
        if isinstance(layer, ResidualConvSpec):
            front = OrderedDict(shift=ChannelShift(fan_in), sign=quantizers.sign())
            if layer.padding:
                front["pad"] = nn.ConstantPad2d(layer.padding, -1.0)
            conv = quantizers.conv(fan_in, layer.channels, layer.kernel, stride=layer.stride, bias=False)
            activation = {
                "none": None,
                "relu": nn.ReLU(),
                "prelu": nn.PReLU(layer.channels),
            }[layer.activation]
            modules[name] = _residual(layer, nn.Sequential(front), conv, activation, fan_in)
        elif isinstance(layer, ConvSpec):
            padding = layer.padding
            if padding and not isinstance(layer, InputConvSpec):
                modules[f"{name}_pad"] = nn.ConstantPad2d(padding, -1.0)
                padding = 0
            modules[name] = quantizers.conv(
                fan_in, layer.channels, layer.kernel, stride=layer.stride, padding=padding, bias=False
            )
            if layer.pool:
                modules[f"{name}_pool"] = nn.MaxPool2d(layer.pool)
            modules[f"{name}_norm"] = nn.BatchNorm2d(layer.channels)
            if not isinstance(layer, InputResidualConvSpec):
                modules[f"{name}_sign"] = quantizers.sign()
        else:
            if "flatten" not in modules:
                modules["flatten"] = nn.Flatten()
            features = layer.features if isinstance(layer, DenseSpec) else classes
            modules[name] = quantizers.linear(fan_in, features, bias=False)
            modules[f"{name}_norm"] = nn.BatchNorm1d(features)
            if isinstance(layer, DenseSpec):
                modules[f"{name}_sign"] = quantizers.sign()
    return nn.Sequential(modules)


def build_float(spec: NetworkSpec, classes: int) -> nn.Sequential:
    """The float twin: the same layers with real weights, ReLU and zero padding.

    A thermometer in front is left out: the twin takes the pixels as they are. In a residual net ReLU stands where the
    binary net has RSign.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer, fan_in, residual in _walk(spec, thermometer=False):
        if residual and not isinstance(layer, ResidualConvSpec):
            modules[f"{name}_relu_before"] = nn.ReLU()
        if isinstance(layer, ConvSpec):
            conv = nn.Conv2d(
                fan_in, layer.channels, layer.kernel, stride=layer.stride, padding=layer.padding, bias=False
            )
            if isinstance(layer, ResidualConvSpec):
                modules[name] = _residual(layer, nn.Sequential(nn.ReLU()), conv, None, fan_in)
                continue
            modules[name] = conv
            if layer.pool:
                modules[f"{name}_pool"] = nn.MaxPool2d(layer.pool)
            modules[f"{name}_norm"] = nn.BatchNorm2d(layer.channels)
            if not isinstance(layer, InputResidualConvSpec):
                modules[f"{name}_relu"] = nn.ReLU(inplace=True)
            continue
        if "flatten" not in modules:
            modules["flatten"] = nn.Flatten()
        if isinstance(layer, DenseSpec):
            modules[name] = nn.Linear(fan_in, layer.features, bias=False)
            modules[f"{name}_norm"] = nn.BatchNorm1d(layer.features)
            modules[f"{name}_relu"] = nn.ReLU(inplace=True)
        else:
            modules[name] = nn.Linear(fan_in, classes)
    return nn.Sequential(modules)


def _residual(
    layer: ResidualConvSpec,
    front: nn.Sequential,
    conv: nn.Module,
    activation: nn.Module | None,
    fan_in: int,
) -> ResidualConv:
    pool = nn.MaxPool2d(layer.pool) if layer.pool else None
    norm = nn.BatchNorm2d(layer.channels)
    return ResidualConv(front, conv, pool, activation, norm, layer.shortcut, layer.channels // fan_in)


#: Smallest batch-norm gamma of the float twin.
MIN_GAMMA = 1e-3


@torch.no_grad()
def clip(net: nn.Module) -> None:
    """After each step: latent weights back into [-1, 1]; in the float twin gammas up to :data:`MIN_GAMMA`.

    Beyond [-1, 1] a latent weight gets no gradient and could never change its sign again. A positive gamma lets the
    batch norm after a max pool fold into the convolution before it, and costs nothing: the weights have the sign.
    """
    binary = is_binary(net)
    for module in net.modules():
        if isinstance(module, (BinaryWeightConv2d, BinaryWeightLinear)):
            module.weight.clamp_(-1.0, 1.0)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and not binary:
            module.weight.clamp_(min=MIN_GAMMA)


def parameter_groups(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of convolutions and fully connected layers, which may decay, and the rest, which must not."""
    weights = [p for p in net.parameters() if p.dim() > 1]
    return weights, [p for p in net.parameters() if p.dim() <= 1]


def is_binary(net: nn.Module) -> bool:
    """Whether ``net`` was built by :func:`build_binary` with the light quantizers."""
    return any(isinstance(module, (BinaryWeightConv2d, BinaryWeightLinear)) for module in net.modules())


@torch.no_grad()
def initialise_from_float(net: nn.Module, twin: nn.Module) -> None:
    """Start the latent weights from the float twin's, each output scaled so that half of them lie in [-0.1, 0.1].

    The first layer behind a thermometer has another input than the twin's and keeps its random weights.
    """
    ours, theirs = dict(net.named_modules()), dict(twin.named_modules())
    for name, module in ours.items():
        source = theirs.get(name)
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or not isinstance(source, (nn.Conv2d, nn.Linear)):
            continue
        if module.weight.shape == source.weight.shape:
            median = source.weight.abs().flatten(1).median(dim=1).values.clamp(min=1e-12)
            scale = (0.1 / median).view(-1, *[1] * (module.weight.dim() - 1))
            module.weight.copy_((source.weight * scale).clamp(-1.0, 1.0))


def to_brevitas(net: nn.Module, spec: NetworkSpec, classes: int) -> nn.Sequential:
    """The same net with Brevitas' quantizers and the trained weights, in evaluation mode."""
    twin = build_binary(spec, classes, brevitas_quantizers())
    result = twin.load_state_dict(net.state_dict(), strict=False)
    # Brevitas may keep constants of its quantizers among the parameters; everything of ours must find its place.
    if result.unexpected_keys or any("quant" not in key for key in result.missing_keys):
        raise RuntimeError(f"the Brevitas net differs: {result.unexpected_keys} {result.missing_keys}")
    return twin.eval()


def _walk(spec: NetworkSpec, thermometer: bool = True) -> Iterator[tuple[str, Any, int, int]]:
    """Each layer with what its modules are built from.

    Yields:
        The layer's name, the layer, its input channels (of a fully connected layer: features), and how many of them
        are channels of a residual: all of them, or 0 where the layer takes signs or pixels.
    """
    height, width, channels = spec.height, spec.width, spec.channels
    flat, residual = False, 0
    for name, layer in spec.named_layers():
        if isinstance(layer, ThermometerSpec):
            if thermometer:
                yield name, layer, channels, residual
                channels *= layer.levels
        elif isinstance(layer, ConvSpec):
            yield name, layer, channels, residual
            height, width = layer.output_size(height, width)
            channels = layer.channels
            residual = channels if isinstance(layer, (InputResidualConvSpec, ResidualConvSpec)) else 0
        else:
            fan_in = channels if flat else channels * height * width
            yield name, layer, fan_in, residual
            flat, residual = True, 0
            channels = layer.features if isinstance(layer, DenseSpec) else channels
