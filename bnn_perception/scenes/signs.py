"""Road signs drawn with OpenCV, clean and with transparency.

The signs are those of the German Traffic Sign Recognition Benchmark (GTSRB; Stallkamp et al., "Man vs.
computer: Benchmarking machine learning algorithms for traffic sign recognition", Neural Networks 32, 2012).
Coordinates of drawings are percent of the side of the square canvas, x to the right, y down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

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
def drawn_sign(class_id: int, size: int) -> Image:
    """The picture that :func:`draw_sign` copies, read-only and kept for the next caller."""
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
    return drawn_sign(int(class_id), size).copy()
