"""Classifier-sized pictures of road signs, as dull, blurred and dark as real ones."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from bnn_perception.scenes.signs import RENDERED_CLASSES, Image, Point, drawn_sign


def noise_texture(
    rng: np.random.Generator, height: int, width: int, grain: int, octaves: int
) -> NDArray[np.float32]:
    """Smooth noise about 0, (height, width) float32: a sum of ``octaves``, the coarsest ``grain`` cells wide."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = grain << octave
        coarse = rng.standard_normal((max(2, cells * height // width), cells), np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * 0.8**octave
    return total


def _random_background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """(size, size, 3) float32, 0..255: sky, foliage, a facade, or foliage below a sky."""
    kind = rng.choice(["sky", "foliage", "facade", "skyline"], p=[0.2, 0.4, 0.2, 0.2])
    texture = noise_texture(rng, size, size, 6, 4)[..., None]
    foliage = np.array([70, 70, 55], np.float32) + rng.normal(0, 8, 3).astype(np.float32)
    foliage = np.maximum(foliage * (1 + rng.uniform(0.2, 0.7) * texture), 4)
    warmth = rng.normal(0, 12) * np.array([1, 0.2, -1])
    sky = (np.array([196, 208, 222]) + warmth).astype(np.float32)
    sky = sky + np.linspace(-1, 1, size, dtype=np.float32)[:, None, None] * rng.uniform(0, 25) + 2 * texture
    if kind == "sky":
        return sky
    if kind == "foliage":
        return foliage
    if kind == "skyline":
        rim = rng.uniform(0.1, 0.9) * size + 0.1 * size * noise_texture(rng, 2, size, 3, 3)[0]
        below = np.clip(np.arange(size, dtype=np.float32)[:, None] - rim[None, :], 0, 1)
        return sky + (foliage - sky) * below[..., None]
    facade = np.full((size, size, 3), rng.uniform(60, 200) + rng.normal(0, 12, 3), np.float32)
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.integers(-size // 3, size, 2)
        w, h = rng.integers(size // 8, size, 2)
        shade = rng.uniform(30, 220) + rng.normal(0, 15, 3)
        cv2.rectangle(facade, (int(x), int(y)), (int(x + w), int(y + h)), shade.tolist(), cv2.FILLED)
    return facade * (1 + 0.05 * texture)


def _random_outline(
    rng: np.random.Generator, side: float, centre: Point, tilt: float, skew: float
) -> NDArray[np.float32]:
    """Corners (4, 2) of a square of ``side`` about ``centre``, turned by some ``tilt`` degrees, a little askew."""
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    squeezed = corners * (1 - abs(rng.normal(0, skew)), 1.0) + rng.normal(0, skew / 3, (4, 2))
    angle = math.radians(rng.normal(0, tilt))
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    return (squeezed @ turn * side + centre).astype(np.float32)


def random_crop_image(class_id: int, rng: np.random.Generator, size: int = 32) -> Image:
    """One picture of a sign as a detector would cut it out of a camera image, in the manner of GTSRB.

    The sign fills 50 to 100 percent of the crop, not quite centred, in light from dusk to overexposure, with the
    blur, noise and lost resolution of distance.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        ValueError: for a class that is not in ``RENDERED_CLASSES``.
    """
    if class_id not in RENDERED_CLASSES:
        raise ValueError(f"class {class_id} has no drawing; RENDERED_CLASSES lists those that have")
    fine = 2 * size  # the scene is composed at this size, then the camera's resolution takes away
    sign_size = 128
    background = _random_background(rng, fine)

    fill = rng.uniform(0.5, 1.0)
    slack = (1.0 - fill) / 2 * fine + 0.03 * fine
    centre = (fine / 2 + rng.uniform(-0.6, 0.6) * slack, fine / 2 + rng.uniform(-0.6, 0.6) * slack)
    if rng.random() < 0.7:
        pole = rng.uniform(0.05, 0.1) * fill * fine
        left, right = round(centre[0] - pole / 2), round(centre[0] + pole / 2)
        background[round(centre[1]) :, max(0, left) : right] = rng.uniform(60, 170)
    sign = drawn_sign(int(class_id), sign_size).astype(np.float32)
    sign[..., :3] *= sign[..., 3:] / 255.0
    outline = _random_outline(rng, fill * fine, centre, tilt=5.0, skew=0.08)
    square = np.array([(0, 0), (sign_size, 0), (sign_size, sign_size), (0, sign_size)], np.float32)
    matrix = cv2.getPerspectiveTransform(square, outline)
    placed = np.asarray(cv2.warpPerspective(sign, matrix, (fine, fine), flags=cv2.INTER_LINEAR))
    alpha = placed[..., 3:] / 255.0

    # The sign faces the camera, the background does not: each has its own light. Paint fades towards grey.
    face = placed[..., :3]
    fade = rng.uniform(0.0, 0.45)
    face = face * (1 - fade) + fade * face.mean(axis=2, keepdims=True)
    slope = np.linspace(-1, 1, fine, dtype=np.float32) * rng.uniform(-0.2, 0.2)
    face *= 1 + (slope[:, None, None] if rng.random() < 0.5 else slope[None, :, None])
    image = background * math.exp(rng.normal(0.0, 0.6)) * (1 - alpha) + face

    exposure = math.exp(rng.uniform(math.log(0.18), math.log(1.6)))
    image *= exposure * np.exp(rng.normal(0, 0.07, 3)).astype(np.float32)
    haze = rng.uniform(0, 0.3) if rng.random() < 0.3 else 0.0
    image = image * (1 - haze) + haze * rng.uniform(40, 150)

    if rng.random() < 0.3:  # motion
        length = int(rng.integers(3, fine // 8 + 3))
        kernel = np.zeros((length, length), np.float32)
        a = rng.uniform(0, math.pi)
        reach = (length - 1) / 2
        dx, dy = reach * math.cos(a), reach * math.sin(a)
        start, end = (round(reach - dx), round(reach - dy)), (round(reach + dx), round(reach + dy))
        cv2.line(kernel, start, end, 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    image = cv2.GaussianBlur(image, (0, 0), (0.25 + 1.3 * rng.beta(1, 2)) * size / 32)
    seen = round(size * rng.uniform(0.5, 1.3))
    image = cv2.resize(image, (seen, seen), interpolation=cv2.INTER_AREA)
    image += rng.normal(0, rng.uniform(0.5, 5), image.shape).astype(np.float32)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR if seen < size else cv2.INTER_AREA)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
