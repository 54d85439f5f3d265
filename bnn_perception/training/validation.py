"""Logits of a trained net, its accuracy, and the re-estimation of its batch norm. Always in float32."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnn_perception.training.batches import batches
from bnn_perception.training.data import PreparedImages
from bnn_perception.training.distributed import World

#: Images that are evaluated at a time.
BATCH = 256


@torch.no_grad()
def predict(net: nn.Module, data: PreparedImages) -> Tensor:
    """(N, classes) logits of each image, in evaluation mode, on the CPU."""
    net.eval()
    everything = np.arange(len(data))
    return torch.cat([net(images).cpu() for images, _ in batches(data, everything, BATCH, _device(net))])


@torch.no_grad()
def evaluate(net: nn.Module, data: PreparedImages, world: World) -> float:
    """Accuracy, 0 to 1, in evaluation mode; each process looks at its part of the images."""
    net.eval()
    correct = torch.zeros(1, dtype=torch.int64, device=world.device)
    for images, labels in batches(data, np.arange(world.rank, len(data), world.size), BATCH, world.device):
        correct += (net(images).argmax(dim=1) == labels).sum()
    return int(world.sum(correct)) / len(data)


@torch.no_grad()
def reestimate_batch_norm(
    net: nn.Module, part: nn.Module, data: PreparedImages, order: NDArray[np.intp]
) -> None:
    """Replace the running means and variances by those of the training images as the final weights see them.

    While the weights move, the running averages lag behind; in a binary net a threshold that lags is a wrong bit.
    Weights that are averaged need the same step (``bn_update`` of Izmailov et al., arXiv 1803.05407, section 3.2).
    The images are taken as they are, without augmentation, as the camera will show them.

    Args:
        net: left in evaluation mode.
        part: the part of the net whose batch norm is re-estimated: what has been trained.
        data, order: the images, and a random order of them. A last batch smaller than the others is left out, because
            every batch counts the same.
    """
    norms = [m for m in part.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    net.eval()
    part.train()
    for images, _ in batches(data, order[: len(order) // BATCH * BATCH or None], BATCH, _device(net)):
        net(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
