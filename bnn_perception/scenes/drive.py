"""Road signs and road scenes, drawn with OpenCV: pictures with a known answer, without camera or data set.

The signs are those of the German Traffic Sign Recognition Benchmark (GTSRB; Stallkamp et al., "Man vs.
computer: Benchmarking machine learning algorithms for traffic sign recognition", Neural Networks 32, 2012).
Three levels build on each other:

* ``draw_sign`` draws one sign, clean, with transparency;
* ``random_crop_image`` makes one classifier-sized picture of it, as dull, blurred and dark as a real one;
* ``Scene`` drives past one sign after another and renders what a camera behind the windscreen would see.

Coordinates of drawings are percent of the side of the square canvas, x to the right, y down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

ROAD_SIGNS: tuple[str, ...] = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no passing",
    "no passing for trucks",
    "right of way at next intersection",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "general caution",
    "curve to the left",
    "curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road work",
    "traffic signals",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "ice or snow",
    "wild animals crossing",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout mandatory",
    "end of no passing",
    "end of no passing for trucks",
)
"""Names of the 43 GTSRB classes; the index is the class id of the benchmark."""

Point = tuple[float, float]
Colour = tuple[int, int, int]
Image = NDArray[np.uint8]

RED: Colour = (186, 28, 40)
BLUE: Colour = (18, 78, 156)
YELLOW: Colour = (244, 178, 24)
WHITE: Colour = (240, 240, 238)
BLACK: Colour = (24, 24, 26)
GREY: Colour = (112, 114, 116)
GREEN: Colour = (30, 140, 80)

_OVERSAMPLING = 4  # drawn this much larger and averaged down: smooth edges whatever OpenCV's primitive does


class _Canvas:
    """A transparent square with the few primitives that signs are made of."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pixels: Image = np.zeros((size * _OVERSAMPLING, size * _OVERSAMPLING, 4), np.uint8)
        self._scale = size * _OVERSAMPLING / 100.0

    def _pixels_of(self, points: Sequence[Point]) -> NDArray[np.int32]:
        return np.rint(np.asarray(points, np.float64) * self._scale).astype(np.int32)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        x, y = self._pixels_of([centre])[0]
        cv2.circle(self.pixels, (int(x), int(y)), round(radius * self._scale), (*colour, 255), cv2.FILLED)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        cv2.fillPoly(self.pixels, [self._pixels_of(points)], (*colour, 255))

    def rounded_polygon(self, points: Sequence[Point], radius: float, colour: Colour) -> None:
        """A polygon whose corners are arcs of ``radius`` about ``points``: it reaches ``radius`` beyond them."""
        outline = self._pixels_of(points)
        cv2.fillPoly(self.pixels, [outline], (*colour, 255))
        thickness = max(1, round(2 * radius * self._scale))
        cv2.polylines(self.pixels, [outline], True, (*colour, 255), thickness)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A line of ``width`` through ``points``, flat at its ends, round at its joints."""
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0)
            if length == 0:  # two arcs that meet repeat the point
                continue
            nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            sides = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
            self.polygon(sides, colour)
        for joint in points[1:-1]:
            self.disc(joint, width / 2, colour)

    def arrow(self, points: Sequence[Point], width: float, colour: Colour, head: float = 20.0) -> None:
        """A stroke with a head of two arms of length ``head`` at 45 degrees; its tip is the last point."""
        (x0, y0), (x1, y1) = points[-2], points[-1]
        angle = math.atan2(y1 - y0, x1 - x0)
        back = width * 0.6  # the shaft ends inside the head, not at its tip
        end = (x1 - back * math.cos(angle), y1 - back * math.sin(angle))
        self.stroke([*points[:-1], end], width, colour)
        for side in (-1, 1):
            arm = angle + math.pi - side * math.pi / 4
            across = (
                angle + side * math.pi / 4
            )  # the arm's centre line moves in, so that its edge meets the tip
            tip = (x1 - width / 2 * math.cos(across), y1 - width / 2 * math.sin(across))
            outer = (tip[0] + head * math.cos(arm), tip[1] + head * math.sin(arm))
            start = (tip[0] + width / 2 * math.cos(across), tip[1] + width / 2 * math.sin(across))
            self.stroke([tip, outer], width, colour)
            self.polygon([start, tip, end], colour)

    def finish(self) -> Image:
        """Average down to (size, size, 4) RGBA with straight alpha."""
        premultiplied = cv2.resize(self.pixels, (self.size, self.size), interpolation=cv2.INTER_AREA)
        alpha = premultiplied[..., 3:].astype(np.float32)
        colour = premultiplied[..., :3] * (255.0 / np.maximum(alpha, 1.0))
        return np.concatenate([np.minimum(colour, 255.0), alpha], axis=2).round().astype(np.uint8)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points on an ellipse from angle ``start`` to ``end`` in degrees, 0 to the right, 90 downwards."""
    angles = np.radians(np.linspace(start, end, max(2, round(abs(end - start) / 9) + 1)))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _glyph(character: str) -> tuple[float, list[list[Point]]]:
    """Width and centre lines of a character one unit high, after the lettering of road signs (DIN 1451)."""
    w = 0.50
    r = w / 2
    if character in "0O":
        return w, [[*_arc(r, r, r, r, 180, 360), *_arc(r, 1 - r, r, r, 0, 180), (0, r), (0.001, r - 0.01)]]
    if character == "1":
        return w * 0.5, [[(0, 0.2), (w * 0.45, 0), (w * 0.45, 1.06)]]
    if character == "2":
        return w, [[*_arc(r, 0.26, r, 0.26, 190, 395), (0.02, 1), (w + 0.05, 1)]]
    if character == "3":
        return w, [_arc(r, 0.24, r, 0.24, 195, 440), _arc(r, 0.73, r, 0.27, 280, 525)]
    if character == "5":
        return w, [[(w, 0), (0.05, 0), (0.0, 0.45), *_arc(r, 0.68, r, 0.32, 225, 515)]]
    if character == "6":
        return w, [
            [*_arc(r, 0.70, r, 0.30, 0, 360), (w, 0.71)],
            [(0, 0.70), (0, 0.45), *_arc(r, 0.31, r, 0.31, 195, 300)],
        ]
    if character == "7":
        return w, [[(-0.04, 0), (w, 0), (w * 0.36, 1.06)]]
    if character == "8":
        return w, [
            [*_arc(r, 0.235, r * 0.9, 0.235, 0, 360), (w * 0.95, 0.24)],
            [*_arc(r, 0.735, r, 0.265, 0, 360), (w, 0.74)],
        ]
    if character == "S":
        return w, [[*_arc(r, 0.25, r, 0.25, 345, 90), *_arc(r, 0.75, r, 0.25, 270, 525)]]
    if character == "T":
        return w, [[(-0.05, 0), (w + 0.05, 0)], [(r, 0), (r, 1.06)]]
    if character == "P":
        return w, [[(0, 1.06), (0, 0), (r, 0), *_arc(r, 0.28, r, 0.28, -90, 90), (0, 0.56)]]
    raise ValueError(f"no glyph for {character!r}")


def _text(
    canvas: _Canvas,
    text: str,
    centre: Point,
    *,
    height: float,
    weight: float,
    colour: Colour,
    narrow: float = 1.0,
) -> None:
    """Write ``text`` about ``centre``; ``height`` includes the stroke, whose width is ``weight * height``."""
    thickness = weight * height
    tall = height - thickness
    glyphs = [_glyph(character) for character in text]
    gap = thickness * 1.75
    total = sum(width * tall * narrow for width, _ in glyphs) + gap * (len(glyphs) - 1)
    x, top = centre[0] - total / 2, centre[1] - tall / 2
    for width, lines in glyphs:
        for line in lines:
            canvas.stroke([(x + px * tall * narrow, top + py * tall) for px, py in line], thickness, colour)
        x += width * tall * narrow + gap


# ---------------------------------------------------------------------------------------------- plates


def _red_ring(canvas: _Canvas) -> None:
    canvas.disc((50, 50), 49.5, WHITE)
    canvas.disc((50, 50), 48, RED)
    canvas.disc((50, 50), 38, WHITE)


def _blue_disc(canvas: _Canvas) -> None:
    canvas.disc((50, 50), 49.5, WHITE)
    canvas.disc((50, 50), 47.5, BLUE)


def _end_disc(canvas: _Canvas) -> None:
    canvas.disc((50, 50), 49.5, GREY)
    canvas.disc((50, 50), 48, WHITE)


def _end_stripes(canvas: _Canvas) -> None:
    """The bundle of five thin lines, from upper right to lower left, that lifts a restriction."""
    for shift in (-9.0, -4.5, 0.0, 4.5, 9.0):
        reach = math.sqrt(46.5**2 - shift**2) / math.sqrt(2)
        sx = sy = 50 + shift / math.sqrt(2)
        canvas.stroke([(sx - reach, sy + reach), (sx + reach, sy - reach)], 2.4, BLACK)


def _warning_triangle(canvas: _Canvas) -> None:
    canvas.rounded_polygon([(50, 11), (93, 86), (7, 86)], 6, WHITE)
    canvas.rounded_polygon([(50, 11), (93, 86), (7, 86)], 5, RED)
    canvas.rounded_polygon([(50, 27), (79.5, 79), (20.5, 79)], 2, WHITE)


# ---------------------------------------------------------------------------------------------- signs


def _speed_limit(text: str) -> Callable[[_Canvas], None]:
    def draw(canvas: _Canvas) -> None:
        _red_ring(canvas)
        if len(text) == 2:
            _text(canvas, text, (50, 50), height=42, weight=0.15, colour=BLACK)
        else:
            _text(canvas, text, (50, 50), height=38, weight=0.15, colour=BLACK, narrow=0.84)

    return draw


def _end_of_speed_limit_80(canvas: _Canvas) -> None:
    _end_disc(canvas)
    _text(canvas, "80", (50, 50), height=44, weight=0.165, colour=GREY, narrow=1.1)
    _end_stripes(canvas)


def _car(canvas: _Canvas, cx: float, colour: Colour) -> None:
    """A car from behind, 26 percent wide, standing at y = 59."""
    canvas.rounded_polygon([(cx - 6, 43), (cx + 6, 43), (cx + 9, 49), (cx - 9, 49)], 1, colour)
    canvas.rounded_polygon(
        [(cx - 11.5, 49.5), (cx + 11.5, 49.5), (cx + 11.5, 54), (cx - 11.5, 54)], 1.5, colour
    )
    for wheel in (cx - 9, cx + 9):
        canvas.stroke([(wheel, 54), (wheel, 59)], 4.5, colour)


def _truck(canvas: _Canvas, cx: float, colour: Colour) -> None:
    """A truck from behind, 28 percent wide, standing at y = 62."""
    canvas.polygon([(cx - 14, 33), (cx + 14, 33), (cx + 14, 56), (cx - 14, 56)], colour)
    for wheel in (cx - 10, cx + 10):
        canvas.stroke([(wheel, 56), (wheel, 62)], 6, colour)


def _no_passing(canvas: _Canvas) -> None:
    _red_ring(canvas)
    _car(canvas, 33.5, RED)
    _car(canvas, 66, BLACK)


def _no_passing_for_trucks(canvas: _Canvas) -> None:
    _red_ring(canvas)
    _truck(canvas, 32.5, RED)
    _car(canvas, 66, BLACK)


def _right_of_way(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.polygon([(50, 32), (58, 48), (55.5, 48), (55.5, 76), (44.5, 76), (44.5, 48), (42, 48)], BLACK)
    canvas.stroke([(35, 60), (65, 60)], 7, BLACK)


def _priority_road(canvas: _Canvas) -> None:
    canvas.rounded_polygon([(50, 4), (96, 50), (50, 96), (4, 50)], 3, BLACK)
    canvas.rounded_polygon([(50, 5), (95, 50), (50, 95), (5, 50)], 2.5, WHITE)
    canvas.rounded_polygon([(50, 23), (77, 50), (50, 77), (23, 50)], 2, BLACK)
    canvas.rounded_polygon([(50, 24), (76, 50), (50, 76), (24, 50)], 2, YELLOW)


def _yield(canvas: _Canvas) -> None:
    canvas.rounded_polygon([(50, 89), (93, 14), (7, 14)], 6, WHITE)
    canvas.rounded_polygon([(50, 89), (93, 14), (7, 14)], 5, RED)
    canvas.rounded_polygon([(50, 71), (78, 22), (22, 22)], 2, WHITE)


def _stop(canvas: _Canvas) -> None:
    for radius, colour in ((53.0, WHITE), (49.5, RED)):
        corners = np.radians(np.arange(22.5, 360, 45))
        canvas.polygon([(50 + radius * math.cos(a), 50 + radius * math.sin(a)) for a in corners], colour)
    _text(canvas, "STOP", (50, 50), height=33, weight=0.15, colour=WHITE, narrow=0.76)


def _no_vehicles(canvas: _Canvas) -> None:
    _red_ring(canvas)


def _no_trucks(canvas: _Canvas) -> None:
    _red_ring(canvas)
    canvas.polygon([(40, 38), (74, 38), (74, 56), (40, 56)], BLACK)
    canvas.polygon([(30, 43), (39, 43), (39, 56), (26, 56), (26, 50)], BLACK)
    canvas.disc((33, 58), 4.5, BLACK)
    canvas.disc((64, 58), 4.5, BLACK)


def _no_entry(canvas: _Canvas) -> None:
    canvas.disc((50, 50), 49.5, WHITE)
    canvas.disc((50, 50), 48, RED)
    canvas.rounded_polygon([(12, 42), (88, 42), (88, 58), (12, 58)], 1, WHITE)


def _general_caution(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.rounded_polygon([(46.5, 40), (53.5, 40), (51.5, 61), (48.5, 61)], 1, BLACK)
    canvas.disc((50, 71), 4.3, BLACK)


def _curve_to_the_left(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.stroke([(60, 76), (60, 66), *_arc(50, 66, 10, 10, 0, -80), (43, 55)], 8, BLACK)
    canvas.polygon([(45, 46.5), (45, 64), (34, 54.5)], BLACK)


def _double_curve(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.stroke([(57, 77), (57, 62), (45, 61), (45, 47)], 7, BLACK)
    canvas.polygon([(45, 38), (51.5, 49), (38.5, 49)], BLACK)


def _bumpy_road(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.polygon([(30, 76), *_arc(42, 72, 8, 8, 190, 360), *_arc(58, 72, 8, 8, 180, 350), (70, 76)], BLACK)


def _road_narrows(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.stroke([(43, 77), (43, 42)], 5, BLACK)
    canvas.stroke([(63, 77), (63, 67), (54, 56), (54, 42)], 5, BLACK)


def _traffic_signals(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.polygon([(44, 41), (56, 41), (56, 77), (44, 77)], BLACK)
    for y, colour in ((47, RED), (59, YELLOW), (71, GREEN)):
        canvas.disc((50, y), 5, colour)


def _pedestrians(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    canvas.disc((50, 42), 3.6, BLACK)
    canvas.stroke([(50, 45), (50, 62)], 8, BLACK)
    canvas.stroke([(50, 60), (56, 68), (59, 77)], 4.5, BLACK)
    canvas.stroke([(50, 60), (45, 69), (40, 77)], 4.5, BLACK)
    canvas.stroke([(42, 60), (48, 49), (53, 50), (59, 59)], 3, BLACK)


def _bicycles(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    for cx in (39, 61):
        canvas.stroke([*_arc(cx, 69, 7.5, 7.5, 0, 360), (cx + 7.5, 69.5)], 2.4, BLACK)
    canvas.stroke([(39, 69), (45, 57), (58, 57), (61, 69)], 2.4, BLACK)
    canvas.stroke([(45, 57), (51, 69), (58, 57), (57, 51), (62, 51)], 2.4, BLACK)
    canvas.stroke([(41, 54), (48, 54)], 2.6, BLACK)


def _ice_or_snow(canvas: _Canvas) -> None:
    _warning_triangle(canvas)
    cx, cy, reach = 50.0, 62.0, 15.0
    for degrees in range(0, 360, 60):
        a = math.radians(degrees + 30)
        tip = (cx + reach * math.cos(a), cy + reach * math.sin(a))
        canvas.stroke([(cx, cy), tip], 3, BLACK)
        fork = (cx + 0.55 * reach * math.cos(a), cy + 0.55 * reach * math.sin(a))
        for side in (-0.8, 0.8):
            end = (fork[0] + 6 * math.cos(a + side), fork[1] + 6 * math.sin(a + side))
            canvas.stroke([fork, end], 2.4, BLACK)


def _end_of_all_limits(canvas: _Canvas) -> None:
    _end_disc(canvas)
    _end_stripes(canvas)


def _turn_right_ahead(canvas: _Canvas) -> None:
    _blue_disc(canvas)
    canvas.arrow([(36, 83), (36, 52), *_arc(48, 52, 12, 12, 180, 270), (84, 40)], 10, WHITE, head=22)


def _ahead_only(canvas: _Canvas) -> None:
    _blue_disc(canvas)
    canvas.arrow([(50, 86), (50, 13)], 11, WHITE, head=26)


def _straight_or_right(canvas: _Canvas) -> None:
    _blue_disc(canvas)
    canvas.arrow([(42, 86), (42, 15)], 9, WHITE, head=18)
    canvas.arrow([(42, 82), (42, 60), *_arc(50, 60, 8, 8, 180, 270), (82, 52)], 9, WHITE, head=18)


def _keep_right(canvas: _Canvas) -> None:
    _blue_disc(canvas)
    canvas.arrow([(24, 27), (76, 74)], 11, WHITE, head=27)


def _roundabout(canvas: _Canvas) -> None:
    _blue_disc(canvas)
    for start in (-20, 100, 220):  # driving direction of right-hand traffic: against the clock
        arc = _arc(50, 50, 28, 28, start, start - 62)
        canvas.stroke(arc, 8.5, WHITE)
        angle = math.radians(start - 62)
        tip = math.radians(start - 95)
        canvas.polygon(
            [
                (50 + 40 * math.cos(angle), 50 + 40 * math.sin(angle)),
                (50 + 16 * math.cos(angle), 50 + 16 * math.sin(angle)),
                (50 + 29 * math.cos(tip), 50 + 29 * math.sin(tip)),
            ],
            WHITE,
        )


def _end_of_no_passing(canvas: _Canvas) -> None:
    _end_disc(canvas)
    _car(canvas, 33.5, GREY)
    _car(canvas, 66, GREY)
    _end_stripes(canvas)


def _end_of_no_passing_for_trucks(canvas: _Canvas) -> None:
    _end_disc(canvas)
    _truck(canvas, 32.5, GREY)
    _car(canvas, 66, GREY)
    _end_stripes(canvas)


_DRAWINGS: dict[str, Callable[[_Canvas], None]] = {
    **{f"speed limit {limit}": _speed_limit(str(limit)) for limit in (20, 30, 50, 60, 70, 80, 100, 120)},
    "end of speed limit 80": _end_of_speed_limit_80,
    "no passing": _no_passing,
    "no passing for trucks": _no_passing_for_trucks,
    "right of way at next intersection": _right_of_way,
    "priority road": _priority_road,
    "yield": _yield,
    "stop": _stop,
    "no vehicles": _no_vehicles,
    "no trucks": _no_trucks,
    "no entry": _no_entry,
    "general caution": _general_caution,
    "curve to the left": _curve_to_the_left,
    "double curve": _double_curve,
    "bumpy road": _bumpy_road,
    "road narrows on the right": _road_narrows,
    "traffic signals": _traffic_signals,
    "pedestrians": _pedestrians,
    "bicycles crossing": _bicycles,
    "ice or snow": _ice_or_snow,
    "end of all limits": _end_of_all_limits,
    "turn right ahead": _turn_right_ahead,
    "ahead only": _ahead_only,
    "straight or right": _straight_or_right,
    "keep right": _keep_right,
    "roundabout mandatory": _roundabout,
    "end of no passing": _end_of_no_passing,
    "end of no passing for trucks": _end_of_no_passing_for_trucks,
}

_MIRRORED = {
    "curve to the right": "curve to the left",
    "turn left ahead": "turn right ahead",
    "straight or left": "straight or right",
    "keep left": "keep right",
}

RENDERED_CLASSES: tuple[int, ...] = tuple(
    index for index, name in enumerate(ROAD_SIGNS) if name in _DRAWINGS or name in _MIRRORED
)
"""Class ids that ``draw_sign`` can draw."""


@lru_cache(maxsize=128)
def _drawn(class_id: int, size: int) -> Image:
    name = ROAD_SIGNS[class_id]
    canvas = _Canvas(size)
    _DRAWINGS[_MIRRORED.get(name, name)](canvas)
    image = canvas.finish()
    if name in _MIRRORED:
        image = np.ascontiguousarray(image[:, ::-1])
    image.setflags(write=False)
    return image


def draw_sign(class_id: int, size: int = 256) -> Image:
    """Draw one sign as it leaves the factory.

    Returns:
        (size, size, 4) uint8 RGBA with straight alpha; the sign touches or nearly touches the borders.

    Raises:
        ValueError: for a class that is not in ``RENDERED_CLASSES``.
    """
    if class_id not in RENDERED_CLASSES:
        raise ValueError(f"class {class_id} has no drawing; RENDERED_CLASSES lists those that have")
    return _drawn(int(class_id), size).copy()


# ---------------------------------------------------------------------------------------------- one crop


def _noise_texture(
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
    texture = _noise_texture(rng, size, size, 6, 4)[..., None]
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
        rim = rng.uniform(0.1, 0.9) * size + 0.1 * size * _noise_texture(rng, 2, size, 3, 3)[0]
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
    sign = _drawn(int(class_id), sign_size).astype(np.float32)
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


# ---------------------------------------------------------------------------------------------- the drive


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
    leaves = 1 + 0.28 * _noise_texture(rng, size, size, 12, 4)[..., None]
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
    shade = 1 + 0.05 * _noise_texture(rng, size, size, 8, 4)[..., None]
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
        clouds = np.clip(_noise_texture(self._rng, rows, columns, 4, 5)[..., None] - 0.5, 0, 1.2) / 1.2
        sky = sky + clouds * (244 - sky) * (1 - 0.5 * blend)
        hills = rows - 0.03 * rows * (1.8 + _noise_texture(self._rng, 2, columns, 9, 4)[0])
        inside = np.clip(np.arange(rows, dtype=np.float32)[:, None] - hills[None, :], 0, 1)[..., None]
        wood = np.array([96, 110, 100], np.float32)
        wood = wood * (1 + 0.06 * _noise_texture(self._rng, rows, columns, 80, 2)[..., None])
        return np.clip(sky + inside * (wood - sky), 0, 255).astype(np.uint8)

    def _render_ground(self) -> list[Image]:
        """The plane below the camera, once for each phase of the lane marks: (rows, width, 3) each."""
        focal = self._FOCAL * self.height
        below = np.arange(self.height - self._horizon, dtype=np.float32)[:, None] + 0.5
        depth = focal / below
        lateral = (np.arange(self.width, dtype=np.float32)[None, :] - self._VANISHING * self.width) / below
        texture = _noise_texture(self._rng, 512, 512, 64, 3)
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
        paint = _drawn(class_id, 256).copy()
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
