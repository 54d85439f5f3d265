"""A drive past one road sign after another, as a camera behind the windscreen sees it.

Pictures with a known answer, without camera or data set. Three modules build on each other:

* :func:`bnn_perception.scenes.signs.draw_sign` draws one sign, clean, with transparency;
* :func:`bnn_perception.scenes.crops.random_crop_image` makes one classifier-sized picture of it;
* :class:`Scene` drives past signs and renders whole camera frames.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from bnn_perception.scenes.crops import noise_texture
from bnn_perception.scenes.signs import RENDERED_CLASSES, Colour, Image, Point, drawn_sign


class _Sprite:
    """A picture with transparency in several sizes, composed onto frames at any scale without aliasing."""

    def __init__(self, rgba: Image) -> None:
        """``rgba`` is (h, w, 4) uint8 with straight alpha."""
        premultiplied = rgba.astype(np.float32)
        premultiplied[..., :3] *= premultiplied[..., 3:] / 255.0
        level = np.rint(premultiplied).astype(np.uint8)
        self.height, self.width = level.shape[:2]
        self._levels: list[
            tuple[Image, Image]
        ] = []  # premultiplied colour; what shines through, in three channels
        while True:
            transparency = np.repeat(255 - level[..., 3:], 3, axis=2)
            self._levels.append((np.ascontiguousarray(level[..., :3]), transparency))
            if min(level.shape[:2]) < 24:
                break
            half = (level.shape[1] // 2, level.shape[0] // 2)
            level = np.asarray(cv2.resize(level, half, interpolation=cv2.INTER_AREA), np.uint8)

    def compose(
        self, frame: Image, centre: Point, scale: float, squeeze: float = 1.0, angle: float = 0.0
    ) -> None:
        """Lay the sprite over ``frame`` (H, W, 3) uint8, in place, its middle at ``centre``.

        A pixel of the sprite covers ``scale`` of the frame, ``scale * squeeze`` horizontally; ``angle`` in radians
        turns it clockwise.
        """
        level = min(len(self._levels) - 1, max(0, math.floor(-math.log2(scale))))
        colour, transparency = self._levels[level]
        factor = scale * self.height / colour.shape[0]
        cos, sin = math.cos(angle) * factor, math.sin(angle) * factor
        half_w = (abs(cos) * squeeze * colour.shape[1] + abs(sin) * colour.shape[0]) / 2
        half_h = (abs(sin) * squeeze * colour.shape[1] + abs(cos) * colour.shape[0]) / 2
        left, right = (
            max(0, math.floor(centre[0] - half_w)),
            min(frame.shape[1], math.ceil(centre[0] + half_w)),
        )
        top, bottom = (
            max(0, math.floor(centre[1] - half_h)),
            min(frame.shape[0], math.ceil(centre[1] + half_h)),
        )
        if left >= right or top >= bottom:
            return
        mid_x, mid_y = (colour.shape[1] - 1) / 2, (colour.shape[0] - 1) / 2
        matrix = np.array(
            [
                [cos * squeeze, -sin, centre[0] - left - cos * squeeze * mid_x + sin * mid_y],
                [sin * squeeze, cos, centre[1] - top - sin * squeeze * mid_x - cos * mid_y],
            ]
        )
        size = (right - left, bottom - top)
        window = frame[top:bottom, left:right]
        over = cv2.warpAffine(colour, matrix, size, flags=cv2.INTER_LINEAR)
        through = cv2.warpAffine(
            transparency, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255)
        )
        window[:] = cv2.add(cv2.multiply(window, through, scale=1 / 255), over)


def _tree(rng: np.random.Generator) -> _Sprite:
    size = 256
    alpha = np.zeros((size, size), np.uint8)
    cv2.line(alpha, (size // 2, size), (size // 2, size // 2), 255, 12)
    for _ in range(40):
        x, y = rng.normal(size / 2, size / 9), rng.normal(size * 0.38, size / 10)
        away = math.hypot(x - size / 2, y - size * 0.38) / size
        if away > 0.24:
            continue  # it would float beside the crown
        radius = (0.17 - 0.45 * away) * rng.uniform(0.8, 1.2)  # smaller towards the rim of the crown
        cv2.circle(alpha, (int(x), int(y)), int(radius * size), 255, cv2.FILLED, cv2.LINE_AA)
    leaves = 1 + 0.28 * noise_texture(rng, size, size, 12, 4)[..., None]
    light = np.linspace(1.25, 0.55, size, dtype=np.float32)[:, None, None]
    base = np.array([58, 84, 40], np.float32) * rng.uniform(0.6, 1.2) + rng.normal(0, 8, 3)
    colour = leaves * light * base
    trunk = slice(int(size * 0.66), size)
    colour[trunk] = np.array([70, 58, 46]) * leaves[trunk]
    return _Sprite(np.dstack([np.clip(colour, 0, 255), alpha]).astype(np.uint8))


def _house(rng: np.random.Generator) -> _Sprite:
    size = 256
    image = np.zeros((size, size, 4), np.uint8)
    eaves = int(rng.uniform(0.3, 0.5) * size)
    wall = rng.uniform(110, 215) * (np.array([1.0, 0.95, 0.85]) + rng.normal(0, 0.03, 3))
    roof = np.array([120, 66, 52]) * rng.uniform(0.6, 1.2)
    cv2.rectangle(image, (12, eaves), (size - 12, size), (*wall.tolist(), 255), cv2.FILLED)
    gable = np.array([(0, eaves), (size // 5, eaves // 3), (size - size // 5, eaves // 3), (size, eaves)])
    cv2.fillPoly(image, [gable.astype(np.int32)], (*roof.tolist(), 255), cv2.LINE_AA)
    columns, rows = int(rng.integers(3, 6)), int(rng.integers(2, 4))
    for column in range(columns):
        for row in range(rows):
            x = int(12 + (column + 0.3) * (size - 24) / columns)
            y = int(eaves + (row + 0.3) * (size - eaves) / rows)
            w, h = int(0.4 * (size - 24) / columns), int(0.45 * (size - eaves) / rows)
            cv2.rectangle(image, (x, y), (x + w, y + h), (*(rng.uniform(30, 80),) * 3, 255), cv2.FILLED)
    shade = 1 + 0.05 * noise_texture(rng, size, size, 8, 4)[..., None]
    image[..., :3] = np.clip(image[..., :3] * shade, 0, 255)
    return _Sprite(image)


class _Roadside(NamedTuple):
    sprite: int
    lateral: float  # from the camera, in camera heights, positive to the right
    depth: float  # at the start of the drive
    height: float  # in camera heights


class _Approach(NamedTuple):
    """One sign from far to near: everything about it that is drawn by lot."""

    class_id: int
    sprite: _Sprite
    pole: Colour
    frames: int
    sizes: tuple[float, float]  # first and last, as fractions of the picture's height
    offset: Point  # of the sign from the middle of the region, in pixels
    drift: float  # sideways, in pixels, over the approach
    angle: float
    squeeze: float
    light: NDArray[np.float32]  # gain of each colour channel
    blur: int  # length of the motion blur in pixels, 0 for none


class Scene:
    """An endless drive towards one road sign after another, seen by a camera.

    Two scenes with the same arguments give the same pictures. The sign is always inside ``Scene.region``, the
    part of the picture to be classified: (x, y, width, height) as fractions of the picture, a square of
    288 x 288 pixels of the default 640 x 480. In 20 to 30 frames it grows from about one half of that square
    to nine tenths of it.
    """

    region: tuple[float, float, float, float] = (0.275, 0.18, 0.45, 0.6)

    _FOCAL = 1.04  # focal length over picture height: 51 degrees from top to bottom
    _HORIZON = 0.55  # of the picture's height
    _VANISHING = 0.36  # of the picture's width
    _PHASES = 16  # pictures of the ground in one period of the lane marks
    _PERIOD = 8.0  # of the lane marks, in camera heights
    _FAR = 48.0  # roadside objects start here, in camera heights

    def __init__(self, seed: int = 0, width: int = 640, height: int = 480) -> None:
        """Draw in advance what can be, in a part of a second.

        Args:
            seed: of everything that is drawn by lot.
            width, height: of the pictures, in pixels.

        Raises:
            ValueError: when the picture is smaller than 64 x 48.
        """
        if width < 64 or height < 48:
            raise ValueError(f"a scene of {width}x{height} is too small; the least is 64x48")
        self.width, self.height = width, height
        self._rng = np.random.default_rng(seed)
        self._horizon = round(self._HORIZON * height)
        self._ground = self._render_ground()
        self._sky = self._render_sky()
        self._sprites = [_tree(self._rng) for _ in range(5)] + [_house(self._rng) for _ in range(3)]
        self._roadside = self._plant_roadside()
        self._noise = [
            np.clip(self._rng.normal(128, 16, (height, width, 3)), 0, 255).astype(np.uint8) for _ in range(4)
        ]
        self._queue: list[int] = []
        self._travelled = 0.0
        self._step = 0
        self._approach = self._next_approach()
        #: Around the sign of the last frame: x and y of its middle, width and height, in pixels, and by how much it is
        #: turned, radians.
        self.sign_box = (0.0, 0.0, 0.0, 0.0, 0.0)

    def next(self) -> tuple[Image, int]:
        """The next frame, (height, width, 3) uint8 RGB in memory of its own, and the class id of its sign."""
        if self._step == self._approach.frames:
            self._approach = self._next_approach()
            self._step = 0
        approach = self._approach
        progress = self._step / (approach.frames - 1)
        self._step += 1
        self._travelled += 0.45

        frame = np.empty((self.height, self.width, 3), np.uint8)
        frame[: self._horizon] = self._sky
        phase = int(self._travelled / self._PERIOD * self._PHASES) % self._PHASES
        frame[self._horizon :] = self._ground[phase]
        self._draw_roadside(frame)
        self._draw_sign(frame, approach, progress)
        return self._expose(frame, approach), approach.class_id

    # -- prepared once

    def _render_sky(self) -> Image:
        rows, columns = self._horizon, self.width
        blend = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
        sky = (1 - blend) * np.array([116, 156, 208], np.float32) + blend * np.array(
            [212, 220, 226], np.float32
        )
        clouds = np.clip(noise_texture(self._rng, rows, columns, 4, 5)[..., None] - 0.5, 0, 1.2) / 1.2
        sky = sky + clouds * (244 - sky) * (1 - 0.5 * blend)
        hills = rows - 0.03 * rows * (1.8 + noise_texture(self._rng, 2, columns, 9, 4)[0])
        inside = np.clip(np.arange(rows, dtype=np.float32)[:, None] - hills[None, :], 0, 1)[..., None]
        wood = np.array([96, 110, 100], np.float32)
        wood = wood * (1 + 0.06 * noise_texture(self._rng, rows, columns, 80, 2)[..., None])
        return np.clip(sky + inside * (wood - sky), 0, 255).astype(np.uint8)

    def _render_ground(self) -> list[Image]:
        """The plane below the camera, once for each phase of the lane marks: (rows, width, 3) each."""
        focal = self._FOCAL * self.height
        below = np.arange(self.height - self._horizon, dtype=np.float32)[:, None] + 0.5
        depth = focal / below
        lateral = (np.arange(self.width, dtype=np.float32)[None, :] - self._VANISHING * self.width) / below
        texture = noise_texture(self._rng, 512, 512, 64, 3)
        near = np.clip(below / (0.25 * self.height), 0.05, 1)  # detail and contrast fade with distance
        footprint = 0.7 / below  # of a pixel, across the road: edges are smoothed over it

        def between(low: float, high: float) -> NDArray[np.float32]:
            return np.clip((lateral - low) / footprint, 0, 1) * np.clip((high - lateral) / footprint, 0, 1)

        road = between(-4.3, 0.42)
        lines = between(0.18, 0.28) + between(-4.16, -4.06)
        pictures = []
        for phase in range(self._PHASES):
            along = depth + phase * self._PERIOD / self._PHASES
            # The texture repeats with the lane marks, so that the pictures form a loop.
            map_y = np.broadcast_to(along % self._PERIOD / self._PERIOD * 511, lateral.shape).astype(
                np.float32
            )
            map_x = (lateral * 96 % 511).astype(np.float32)
            grain = cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR) * near
            dash = (along % self._PERIOD < 0.45 * self._PERIOD) * between(-2.0, -1.9)
            grass = np.array([92, 106, 62], np.float32) * (1 + 0.16 * grain[..., None])
            asphalt = np.array([98, 98, 102], np.float32) * (1 + 0.05 * grain[..., None])
            paint = np.array([214, 214, 206], np.float32)
            picture = grass + road[..., None] * (asphalt - grass)
            picture += np.clip(lines + dash, 0, 1)[..., None] * (paint - picture)
            air = np.exp(-below / (0.06 * self.height))[..., None]
            picture += 0.7 * air * (np.array([176, 184, 186], np.float32) - picture)
            pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
        return pictures

    def _plant_roadside(self) -> list[_Roadside]:
        rng = self._rng
        objects = []
        for index in range(20):
            sprite = int(rng.integers(len(self._sprites)))
            lateral = rng.uniform(3.2, 9) if index % 2 else -rng.uniform(6.5, 12)
            height = rng.uniform(2.6, 4.4)
            objects.append(_Roadside(sprite, lateral, self._FAR * (index + rng.uniform(0, 0.6)) / 20, height))
        return objects

    def _next_approach(self) -> _Approach:
        rng = self._rng
        if not self._queue:  # every sign once, in a new order each time
            self._queue = rng.permutation(RENDERED_CLASSES).tolist()
        class_id = self._queue.pop()
        paint = drawn_sign(class_id, 256).copy()
        face = paint[..., :3].astype(np.float32) * rng.uniform(0.6, 1.0)
        fade = rng.uniform(0.0, 0.3)
        face = face * (1 - fade) + fade * face.mean(axis=2, keepdims=True)
        paint[..., :3] = np.rint(face)
        pole = rng.uniform(70, 150)
        return _Approach(
            class_id=class_id,
            sprite=_Sprite(paint),
            pole=(int(pole), int(pole), int(pole + 4)),
            frames=int(rng.integers(20, 31)),
            sizes=(rng.uniform(0.27, 0.32), rng.uniform(0.48, 0.53)),
            offset=(rng.uniform(-0.012, 0.012) * self.width, rng.uniform(-0.008, 0.008) * self.height),
            drift=rng.uniform(-0.015, 0.03) * self.width,
            angle=rng.normal(0, 0.03),
            squeeze=rng.uniform(0.9, 1.0),
            light=(rng.uniform(0.45, 1.15) * np.exp(rng.normal(0, 0.04, 3))).astype(np.float32),
            blur=int(rng.choice([0, 0, 3, 5])),
        )

    # -- drawn for every frame

    def _draw_roadside(self, frame: Image) -> None:
        focal = self._FOCAL * self.height
        visible = [((item.depth - self._travelled) % self._FAR, item) for item in self._roadside]
        for depth, item in sorted(visible, key=lambda pair: -pair[0]):
            if depth < 1.5:
                continue
            sprite = self._sprites[item.sprite]
            zoom = focal / depth  # pixels for one camera height
            tall = item.height * zoom
            centre = (self._VANISHING * self.width + item.lateral * zoom, self._horizon + zoom - tall / 2)
            sprite.compose(frame, centre, tall / sprite.height)

    def _draw_sign(self, frame: Image, approach: _Approach, progress: float) -> None:
        first, last = approach.sizes
        side = self.height / (
            (1 - progress) / first + progress / last
        )  # constant speed: distance is linear in time
        x, y, w, h = self.region
        shake_x, shake_y = self._rng.normal(0, 0.0015, 2) * self.height
        centre = (
            (x + w / 2) * self.width + approach.offset[0] + approach.drift * (progress - 0.5) + shake_x,
            (y + h / 2) * self.height + approach.offset[1] + 0.02 * self.height * (0.5 - progress) + shake_y,
        )
        pole = max(2, round(0.07 * side))
        left = round(centre[0] - pole / 2)
        top = round(centre[1])
        dark = tuple(channel * 0.6 for channel in approach.pole)
        cv2.rectangle(frame, (left, top), (left + pole, self.height), approach.pole, cv2.FILLED)
        cv2.rectangle(frame, (left + pole * 2 // 3, top), (left + pole, self.height), dark, cv2.FILLED)
        approach.sprite.compose(frame, centre, side / 256, approach.squeeze, approach.angle)
        self.sign_box = (*centre, side * approach.squeeze, side, approach.angle)

    def _expose(self, frame: Image, approach: _Approach) -> Image:
        """What the camera makes of it: motion blur, exposure, a response curve, noise of the sensor."""
        rng = self._rng
        moved = cv2.blur(frame, (approach.blur, 3)) if approach.blur else frame
        gain = approach.light * (1 + 0.1 * math.sin(self._travelled * 0.7)) * math.exp(rng.normal(0, 0.02))
        ramp = np.arange(256, dtype=np.float32)[:, None] * gain
        response = 255 * (1 - np.exp(-1.6 * ramp / 255)) / (1 - math.exp(-1.6)) * 0.8 + 0.2 * ramp
        table = np.clip(np.rint(response), 0, 255).astype(np.uint8)[None]
        exposed = cv2.LUT(moved, table)
        noise = self._noise[int(rng.integers(len(self._noise)))]
        strength = rng.uniform(0.15, 0.3)  # of the stored noise, whose standard deviation is 16 levels
        return np.asarray(cv2.addWeighted(exposed, 1.0, noise, strength, -128 * strength), np.uint8)
