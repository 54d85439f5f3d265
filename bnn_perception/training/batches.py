"""Batches of a data set on the device that trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnn_perception.training.augmentation import augment
from bnn_perception.training.config import AugmentationSpec
from bnn_perception.training.data import PreparedImages
from bnn_perception.training.distributed import World


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64.
        share: N / (batch size / number of processes): the weight of this process's mean loss.
    """

    images: Tensor
    labels: Tensor
    share: float


class Example(NamedTuple):
    """What one training step takes: a batch, ready for the modules that are trained.

    Attributes:
        inputs: images, or the signs that the frozen convolutions make of them.
        labels, share: see :class:`Batch`.
        teacher_logits: (N, classes) logits of the teacher; None without distillation.
    """

    inputs: Tensor
    labels: Tensor
    share: float
    teacher_logits: Tensor | None


def batches(
    data: PreparedImages, indices: NDArray[np.intp], size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) on a device, as they are, ``size`` at a time."""
    for start in range(0, len(indices), size):
        yield _load(data, indices[start : start + size], device)


def count_steps(images: int, size: int, processes: int) -> int:
    """How many batches an epoch has: batch norm needs two images a process, so a smaller last batch is left out."""
    whole, rest = divmod(images, size)
    return whole * (size >= 2 * processes) + (rest >= 2 * processes)


def training_batches(
    data: PreparedImages,
    indices: NDArray[np.intp],
    size: int,
    augmentation: AugmentationSpec,
    seed: int,
    world: World,
) -> Iterator[Batch]:
    """Augmented batches of ``size`` images of all processes together; the same seed gives the same ones."""
    generator = torch.Generator(world.device).manual_seed(seed + world.rank)
    for step in range(count_steps(len(indices), size, world.size)):
        chosen = indices[step * size : (step + 1) * size]
        part = chosen[world.rank :: world.size]
        images, labels = _load(data, part, world.device)
        with world.device:  # whatever the augmentation creates
            images = augment(images, augmentation, generator)
        yield Batch(images, labels, len(part) * world.size / len(chosen))


def _load(data: PreparedImages, chosen: NDArray[np.intp], device: torch.device) -> tuple[Tensor, Tensor]:
    pixels, labels = torch.from_numpy(data.images[chosen]), torch.from_numpy(data.labels[chosen])
    if device.type == "cuda":  # pinned memory lets the copies overlap with the step before
        pixels, labels = (t.pin_memory().to(device, non_blocking=True) for t in (pixels, labels))
    return pixels.permute(0, 3, 1, 2).float().div(255.0), labels
