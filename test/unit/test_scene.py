"""The drawn signs and the drive past them."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from bnn_perception.scenes.crops import random_crop_image
from bnn_perception.scenes.drive import Scene
from bnn_perception.scenes.signs import RENDERED_CLASSES, ROAD_SIGNS, draw_sign


def test_names_are_those_of_the_benchmark():
    assert len(ROAD_SIGNS) == 43 == len(set(ROAD_SIGNS))
    known = {
        0: "speed limit 20",
        12: "priority road",
        13: "yield",
        14: "stop",
        17: "no entry",
        38: "keep right",
    }
    assert {index: ROAD_SIGNS[index] for index in known} == known


@pytest.mark.parametrize("class_id", RENDERED_CLASSES)
def test_sign_fills_its_square(class_id):
    sign = draw_sign(class_id, 64)
    assert sign.shape == (64, 64, 4)
    assert sign.dtype == np.uint8
    rows, columns = np.nonzero(sign[..., 3] > 127)
    # The triangles are the flattest: 85 percent of the side.
    assert np.ptp(rows) >= 0.84 * 64
    assert np.ptp(columns) >= 0.84 * 64
    assert sign[..., 3].max() == 255
    assert sign[0, 0, 3] == 0


def test_signs_differ_from_one_another():
    signs = {class_id: draw_sign(class_id, 32).astype(np.int32) for class_id in RENDERED_CLASSES}
    for a, b in itertools.combinations(RENDERED_CLASSES, 2):
        # The closest are speed limits that differ in one digit (2.2 levels) and the ends of the bans on passing.
        assert np.abs(signs[a] - signs[b]).mean() > 1.8, (ROAD_SIGNS[a], ROAD_SIGNS[b])


def test_colours_of_some_signs():
    """Red around no entry and white across it, blue behind an arrow, yellow inside a priority road sign."""
    no_entry = draw_sign(ROAD_SIGNS.index("no entry"), 100)
    red, white = no_entry[20, 50, :3].astype(int), no_entry[50, 50, :3].astype(int)
    assert red[0] > 2 * max(red[1:])
    assert white.min() > 200
    blue = draw_sign(ROAD_SIGNS.index("ahead only"), 100)[50, 15, :3].astype(int)
    assert blue[2] > 1.5 * max(blue[:2])
    yellow = draw_sign(ROAD_SIGNS.index("priority road"), 100)[50, 50, :3].astype(int)
    assert min(yellow[:2]) > 3 * yellow[2]


def test_left_and_right_are_mirrored():
    for left, right in (("keep left", "keep right"), ("turn left ahead", "turn right ahead")):
        images = [draw_sign(ROAD_SIGNS.index(name), 64) for name in (left, right)]
        assert np.array_equal(images[0][:, ::-1], images[1])
    # An arrow to the right has its head, hence more white, in the right half.
    keep_right = draw_sign(ROAD_SIGNS.index("keep right"), 64)
    white = (keep_right[..., :3].min(axis=2) > 200) & (keep_right[..., 3] > 0)
    assert white[32:, 32:].sum() > 1.2 * white[:32, :32].sum()


def test_drawing_belongs_to_the_caller():
    draw_sign(14, 32)[:] = 0
    assert draw_sign(14, 32).any()


@pytest.mark.parametrize("draw", [draw_sign, lambda c: random_crop_image(c, np.random.default_rng(0))])
def test_class_without_a_drawing_is_refused(draw):
    missing = next(index for index in range(43) if index not in RENDERED_CLASSES)
    for class_id in (missing, -1, 43):
        with pytest.raises(ValueError, match=f"class {class_id} has no drawing"):
            draw(class_id)


def test_crops_vary_as_real_ones_do():
    rng = np.random.default_rng(0)
    crops = np.stack(
        [random_crop_image(RENDERED_CLASSES[i % len(RENDERED_CLASSES)], rng) for i in range(200)]
    )
    assert crops.shape == (200, 32, 32, 3)
    assert crops.dtype == np.uint8
    brightness = crops.mean(axis=(1, 2, 3))
    # The real training set has a mean of 83 and a spread of 48 from picture to picture.
    assert 60 < brightness.mean() < 110
    assert brightness.std() > 30
    assert crops.std(axis=(1, 2, 3)).mean() > 20


def test_crop_is_determined_by_its_generator():
    first, again, other = (random_crop_image(1, np.random.default_rng(seed), 48) for seed in (5, 5, 6))
    assert first.shape == (48, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_scene_is_determined_by_its_seed():
    drives = [Scene(seed, 160, 120) for seed in (3, 3, 4)]
    same = True
    for _ in range(40):
        (a, class_a), (b, class_b), (c, _) = (drive.next() for drive in drives)
        assert class_a == class_b
        assert np.array_equal(a, b)
        same &= np.array_equal(a, c)
    assert not same


def test_scene_shows_every_sign_once_a_round():
    scene = Scene(0, 160, 120)
    seen: list[int] = []
    while len(seen) < len(RENDERED_CLASSES):
        frame, class_id = scene.next()
        assert frame.shape == (120, 160, 3)
        if not seen or seen[-1] != class_id:
            seen.append(class_id)
    assert sorted(seen) == list(RENDERED_CLASSES)


def test_sign_grows_inside_the_region():
    """Found by colour in the quiet part of a drive: the red ring of a speed limit against grass, sky and grey."""
    scene = Scene(1)
    x, y, w, h = Scene.region
    left, top, right, bottom = x * 640, y * 480, (x + w) * 640, (y + h) * 480
    heights: list[int] = []
    approached = None
    for _ in range(39 * 30):
        frame, class_id = scene.next()
        if approached is None and ROAD_SIGNS[class_id].startswith("speed limit"):
            approached = class_id
        if class_id != approached:
            if heights:
                break
            continue
        r, g, b = (frame[..., channel].astype(int) for channel in range(3))
        ring = ((r > 1.9 * g) & (r > 1.7 * b) & (r > 40)).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(ring)
        assert count > 1
        largest = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()]
        assert left <= largest[cv2.CC_STAT_LEFT]
        assert top <= largest[cv2.CC_STAT_TOP]
        assert largest[cv2.CC_STAT_LEFT] + largest[cv2.CC_STAT_WIDTH] <= right
        assert largest[cv2.CC_STAT_TOP] + largest[cv2.CC_STAT_HEIGHT] <= bottom
        heights.append(int(largest[cv2.CC_STAT_HEIGHT]))
    assert 20 <= len(heights) <= 30
    assert heights[0] < 160
    assert heights[-1] > 220


def test_frames_do_not_share_memory():
    scene = Scene(0, 160, 120)
    first, _ = scene.next()
    kept = first.copy()
    second, _ = scene.next()
    assert not np.shares_memory(first, second)
    assert np.array_equal(first, kept)


def test_too_small_a_scene_is_refused():
    with pytest.raises(ValueError, match="63x48 is too small"):
        Scene(0, 63, 48)
