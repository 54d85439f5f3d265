"""Augmentation: random changes of training images, a whole batch at a time, on the device that trains."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bnn_perception.training.config import AugmentationSpec


def augment(images: Tensor, spec: AugmentationSpec, generator: torch.Generator) -> Tensor:
    """Change each image of a (N, C, H, W) batch in [0, 1] at random; the result is 8-bit pixels over 255."""
    count, channels = images.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    # Geometry: destination pixel (x, y) in [-1, 1] looks up (matrix @ (x, y, 1)) / (1 + px * x + py * y).
    angle = torch.deg2rad(uniform(-spec.rotation, spec.rotation))
    zoom = 1.0 / uniform(*spec.scale)
    stretch = torch.sqrt(1.0 / uniform(0.9, 1.1)) if spec.scale[0] < spec.scale[1] else torch.ones(count)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if spec.flip else torch.ones(count)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift = uniform(-2 * spec.shift, 2 * spec.shift, 2)
    rows = [
        torch.stack([cos * stretch * mirror, -sin / stretch, shift[:, 0]], dim=1),
        torch.stack([sin * stretch * mirror, cos / stretch, shift[:, 1]], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    keystone = uniform(-spec.perspective, spec.perspective, 2)
    plane = functional.affine_grid(torch.eye(2, 3)[None], [1, 1, *images.shape[2:]], align_corners=False)
    depth = 1.0 + (plane * keystone[:, None, None, :]).sum(dim=-1, keepdim=True)
    images = functional.grid_sample(images, grid / depth, padding_mode="reflection", align_corners=False)

    # Light: gamma, contrast about the image's mean, brightness, colour cast.
    gamma = torch.exp(uniform(-spec.gamma, spec.gamma, 1, 1, 1))
    images = images.clamp(1e-6, 1.0).pow(gamma)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * uniform(1 - spec.contrast, 1 + spec.contrast, 1, 1, 1) + mean
    images = images * (1 + uniform(-spec.colour, spec.colour, channels, 1, 1))
    images = images + uniform(-spec.brightness, spec.brightness, 1, 1, 1)

    if spec.blur > 0:  # half of the images, by 0 to `blur`
        blend = (uniform(-spec.blur, spec.blur, 1, 1, 1)).clamp(min=0.0)
        mean = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = images + blend * (mean - images)
    if spec.noise > 0:
        strength = uniform(0, spec.noise, 1, 1, 1)
        images = images + strength * torch.randn(images.shape, generator=generator)
    images = images.clamp(0.0, 1.0).mul(255.0).round().div(255.0)
    return images.contiguous(memory_format=torch.channels_last)
