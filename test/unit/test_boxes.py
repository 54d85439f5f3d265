"""Boxes of a detector as regions of an image: margins, turned boxes, borders, and numbers that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bnn_perception import load_classifier
from bnn_perception.frames.boxes import Box, region_of
from bnn_perception.frames.frame import Frame, check_region
from bnn_perception.frames.preprocess import source_rect
from bnn_perception.net.model import InputSpec
from bnn_perception.scenes.drive import Scene
from bnn_perception.scenes.signs import ROAD_SIGNS

SPEC = InputSpec(8, 8, fit="stretch")


def rect(box, width=640, height=480, margin=0.0):
    """The pixels that a box takes of an image: x, y, width, height."""
    region = region_of(box, width, height, margin)
    return None if region is None else tuple(source_rect(height, width, region, SPEC))


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        (Box(100, 50, 40, 20), 0.0, (80, 40, 40, 20)),
        (Box(100, 50, 40, 20), 0.25, (70, 35, 60, 30)),
        (Box(100, 50, 40, 20), -0.25, (90, 45, 20, 10)),
        (Box(100, 50, 40, 20, math.pi / 2), 0.0, (90, 30, 20, 40)),
        (Box(100, 50, 40, 20, -math.pi), 0.0, (80, 40, 40, 20)),
        (Box(100, 100, 40, 40, math.pi / 4), 0.0, (72, 72, 56, 56)),  # 40 * sqrt(2) = 56.57
        (Box(0, 0, 40, 20), 0.0, (0, 0, 20, 10)),
        (Box(640, 480, 40, 20), 0.0, (620, 470, 20, 10)),
        (Box(320, 240, 1e6, 1e6), 0.0, (0, 0, 640, 480)),
        (Box(100.4, 50.4, 0.1, 0.1), 0.0, (100, 50, 1, 1)),
        (Box(639.9, 479.9, 0.2, 0.2), 0.0, (639, 479, 1, 1)),
        (Box(1e8, 240, 2e8, 10), 0.0, (0, 235, 640, 10)),
    ],
)
def test_the_pixels_of_a_box(box, margin, expected):
    assert rect(box, margin=margin) == expected


def test_a_box_at_the_last_pixel_is_a_region_within_the_image():
    """Not one that begins behind it, and is put right later."""
    assert region_of(Box(639.9, 479.9, 0.2, 0.2), 640, 480) == (639 / 640, 479 / 480, 1 / 640, 1 / 480)


@pytest.mark.parametrize("name", Box._fields)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e10])
def test_what_no_image_holds_is_no_region(name, value):
    assert rect(Box(100, 50, 40, 20)._replace(**{name: value})) is None


@pytest.mark.parametrize(
    "box",
    [
        Box(100, 50, 0, 20),
        Box(100, 50, 40, 0),
        Box(100, 50, -40, 20),
        Box(-21, 50, 40, 20),
        Box(-20, 50, 40, 20),  # touches the border
        Box(660, 50, 40, 20),
        Box(100, -10, 40, 20),
        Box(100, 490, 40, 20),
    ],
)
def test_what_holds_no_pixel_is_no_region(box):
    assert rect(box) is None


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
SIZES = st.integers(1, 16384)


@given(st.builds(Box, *[NUMBERS] * 5), SIZES, SIZES, st.floats(-0.49, 10))
@example(Box(1.7e308, 1.7e308, 1.7e308, 1.7e308, 0.7), 16384, 1, 10.0)
def test_whatever_a_box_holds_it_is_none_or_inside_the_image(box, width, height, margin):
    region = region_of(box, width, height, margin)
    if region is None:
        return
    assert check_region(region) == region
    x, y, columns, rows = source_rect(height, width, region, SPEC)
    assert 0 <= x < x + columns <= width
    assert 0 <= y < y + rows <= height


@given(st.data(), SIZES, SIZES)
def test_whole_pixels_come_back_as_they_are(data, width, height):
    x = data.draw(st.integers(0, width - 1))
    y = data.draw(st.integers(0, height - 1))
    columns = data.draw(st.integers(1, width - x))
    rows = data.draw(st.integers(1, height - y))
    box = Box(x + columns / 2, y + rows / 2, columns, rows)
    assert rect(box, width, height) == (x, y, columns, rows)


def test_frames_of_many_boxes_share_their_pixels():
    pixels = np.zeros((480, 640, 3), np.uint8)
    region = region_of(Box(100, 50, 40, 20), 640, 480)
    assert Frame(pixels, "rgb8", region).pixels is pixels


def test_the_box_of_a_scene_is_around_its_sign():
    """What the shipped net makes of the boxes alone is what the scene shows."""
    classifier = load_classifier("road_signs", device="cpu")
    scene = Scene(3)
    right = 0
    for _ in range(100):
        pixels, class_id = scene.next()
        height, width, _ = pixels.shape
        region = region_of(Box(*scene.sign_box), width, height, 0.1)
        (best,) = classifier.predict(Frame(pixels, "rgb8", region))
        right += best.label == ROAD_SIGNS[class_id]
    classifier.close()
    assert right >= 97  # all 100 with the net of today
