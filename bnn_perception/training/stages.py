"""The nets of the stages, and where their first weights come from.

===========  ===============  ===========  ===============================================================
stage        activations      weights      starts from
===========  ===============  ===========  ===============================================================
float_twin   real, ReLU       real         random weights
activations  signs            real         the float twin's weights
binary       signs            signs        everything of ``activations``, else the weights of the float twin
head         signs            signs        everything of ``binary``; only its head is trained
===========  ===============  ===========  ===============================================================

To make activations binary first and weights after that is the training in two parts of Bulat and Tzimiropoulos
(arXiv 1904.05868) and of Martinez et al. (arXiv 2003.11535).
"""

from __future__ import annotations

import torch
from torch import nn

from bnn_perception.training import networks
from bnn_perception.training.config import NetworkSpec, StageSpec
from bnn_perception.training.modules import LIGHT, Quantizers, Sign

#: How a net of binary activations and real weights is built.
REAL_WEIGHTS = Quantizers(nn.Conv2d, nn.Linear, Sign)


def build(stage: str, network: NetworkSpec, classes: int) -> nn.Sequential:
    """The net that a stage trains, with random weights."""
    if stage == "float_twin":
        return networks.build_float(network, classes)
    return networks.build_binary(network, classes, REAL_WEIGHTS if stage == "activations" else LIGHT)


@torch.no_grad()
def initialise(net: nn.Module, source: nn.Module) -> None:
    """Give ``net`` the weights of the stage before.

    Between two nets of binary activations everything is kept: batch norms and thresholds too. Where the activations
    become binary these start anew, and so does a first layer behind a thermometer, whose input the float twin lacks.
    """
    theirs = source.state_dict()
    if theirs.keys() == net.state_dict().keys():  # the same modules
        net.load_state_dict(theirs)
    if networks.is_binary(source):
        return
    if networks.is_binary(net):
        networks.initialise_from_float(net, source)  # scaled, so that latent weights fit into [-1, 1]
        return
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = theirs[f"{name}.weight"]
            if module.weight.shape == weight.shape:
                module.weight.copy_(weight)


def constrain(net: nn.Module, stage: str, spec: StageSpec) -> None:
    """Bring the weights back into their range after a training step (:func:`networks.clip`)."""
    if stage == "float_twin" or (networks.is_binary(net) and spec.latent_clipping):
        networks.clip(net)


def optimizer(net: nn.Module, spec: StageSpec) -> torch.optim.Optimizer:
    """The optimizer of a stage; only weights of convolutions and fully connected layers decay."""
    decayed, free = networks.parameter_groups(net)
    groups = [
        {"params": decayed, "weight_decay": spec.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=spec.learning_rate)
