"""One topology, built three times: the float twin, the binary net, the binary net in Brevitas.

Every hidden layer is ``convolution or matrix product -> [max pool] -> batch norm -> sign`` (the float twin: ReLU), so
that batch norm and sign fold into one integer threshold (:mod:`bnn_perception.net.bits`). The weights are binarized by
``sign`` too; training keeps *latent* real weights in [-1, 1] and lets gradients pass where the argument of the sign
lies in [-1, 1] (the clipped straight-through estimator of Hubara et al., "Binarized Neural Networks", NIPS 2016).

Binary convolutions pad with -1, as the engine does: the padding is a module of its own behind the sign. The network's
input is (N, channels, height, width) float32 in [0, 1], pixels over 255.

What a layer becomes is in its record (:mod:`bnn_perception.training.kinds`); this file joins them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import nn

from bnn_perception.training.config import NetworkSpec
from bnn_perception.training.kinds import LayerSpec, Signal
from bnn_perception.training.modules import (
    LIGHT,
    BinaryWeightConv2d,
    BinaryWeightLinear,
    ChannelShift,
    Quantizers,
    brevitas_quantizers,
)


def build_binary(spec: NetworkSpec, classes: int, quantizers: Quantizers = LIGHT) -> nn.Sequential:
    """The binary net: (N, channels, height, width) in [0, 1] -> (N, classes) logits."""

    def signs(channels: int) -> dict[str, nn.Module]:
        return {"shift": ChannelShift(channels), "sign_before": quantizers.sign()}

    return _build(spec.walk(), signs, lambda layer, before: layer.binary(before, classes, quantizers))


def build_float(spec: NetworkSpec, classes: int) -> nn.Sequential:
    """The float twin: the same layers with real weights, ReLU and zero padding.

    A thermometer in front is left out: the twin takes the pixels as they are. In a residual net ReLU stands where the
    binary net has RSign.
    """
    return _build(
        spec.walk_twin(),
        lambda _: {"relu_before": nn.ReLU()},
        lambda layer, before: layer.twin(before, classes),
    )


def _build(
    layers: Iterable[tuple[str, LayerSpec, Signal]],
    signs: Callable[[int], dict[str, nn.Module]],
    of_layer: Callable[[LayerSpec, Signal], dict[str, nn.Module]],
) -> nn.Sequential:
    """The modules of all layers, with those that have to stand between two of them.

    Args:
        signs: gives the modules that make signs of a residual, by its number of channels.
        of_layer: gives the modules of a layer.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer, before in layers:
        if before.residual and layer.takes != "residual":
            modules.update((f"{name}_{part}", module) for part, module in signs(before.channels).items())
        if layer.takes == "features" and not before.flat:
            modules["flatten"] = nn.Flatten()
        for part, module in of_layer(layer, before).items():
            modules[f"{name}_{part}" if part else name] = module
    return nn.Sequential(modules)


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
