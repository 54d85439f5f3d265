"""What is drawn on a copy of a frame: where, in which colours, and that it can be read."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")

import cv2

from bnn_perception.frames.annotate import (
    BLACK,
    COLOURS,
    GREY,
    NO_LABEL,
    Mark,
    annotate,
    ascii_text,
    colour_of,
)
from bnn_perception.frames.frame import ENCODINGS, WHOLE, Frame

SIZES = [(240, 320), (480, 640), (1080, 1920)]
BOX = (0.25, 0.25, 0.5, 0.5)


def plain(height=480, width=640, value=128):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def written(monkeypatch):
    """The texts that are written, each with where it begins and ends: left, top, right, bottom."""
    texts = []
    put = cv2.putText

    def record(image, text, place, font, scale, colour, weight, *rest):
        (width, height), _ = cv2.getTextSize(text, font, scale, weight)
        left, base = place
        texts.append((text, (left, base - height, left + width, base)))
        return put(image, text, place, font, scale, colour, weight, *rest)

    monkeypatch.setattr(cv2, "putText", record)
    return texts


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_colours_stay_those_of_the_frame_and_the_frame_stays_as_it_is(encoding):
    channels, rgb = ENCODINGS[encoding]
    pixels = np.zeros((240, 320, channels), np.uint8)
    for channel, value in zip(rgb, (200, 100, 50)):
        pixels[..., channel] = value
    before = pixels.copy()
    pixels.setflags(write=False)  # what draws into it raises
    picture = annotate(Frame(pixels, encoding), [Mark(BOX, [("stop", 1.0)])], "1 ms")
    assert (picture.shape, picture.dtype) == ((240, 320, 3), np.uint8)
    expected = (50, 50, 50) if encoding == "mono8" else (200, 100, 50)
    assert tuple(picture[120, 160]) == expected
    assert np.array_equal(pixels, before)


def test_rows_may_lie_apart():
    memory = np.zeros((240, 400, 3), np.uint8)
    memory[:, :320] = 90
    picture = annotate(Frame(memory[:, :320], "bgr8"), [])
    assert np.array_equal(picture, plain(240, 320, 90))


def test_nothing_to_draw_is_a_copy():
    frame = Frame(plain())
    picture = annotate(frame, [])
    assert np.array_equal(picture, frame.pixels)
    assert not np.shares_memory(picture, frame.pixels)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_text_is_as_large_as_the_picture_asks(height, width):
    picture = annotate(Frame(plain(height, width)), [], "HHH")
    rows, _ = np.nonzero(picture.min(axis=2) > 128)
    assert rows.max() - rows.min() + 1 >= max(9, 0.028 * height)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_rectangle_lies_around_the_region(height, width):
    picture = annotate(Frame(plain(height, width)), [Mark(BOX, [("stop", 1.0)])])
    green = np.all(picture == COLOURS[2], axis=2)
    # Below the tag, the line alone.
    rows, columns = np.nonzero(green[height // 2 :])
    near = 2 + height // 100
    assert abs(columns.min() - width // 4) <= near
    assert abs(columns.max() - 3 * width // 4) <= near
    assert abs(rows.max() + height // 2 - 3 * height // 4) <= near
    assert not green[height // 2, width // 4 + near : 3 * width // 4 - near].any()


def test_the_line_around_the_whole_frame_lies_inside_it():
    picture = annotate(Frame(plain()), [Mark(WHOLE, [])])
    middle = picture[:, 320]
    assert tuple(middle[0]) == tuple(middle[-1]) == BLACK
    assert tuple(middle[2]) == GREY
    assert tuple(middle[-3]) == GREY


@pytest.mark.parametrize(
    "region", [(0.0, 0.0, 0.05, 0.05), (0.97, 0.0, 0.03, 1.0), (0.99, 0.99, 0.01, 0.01)], ids=str
)
def test_a_tag_at_the_border_lies_in_the_picture(region, written):
    annotate(Frame(plain()), [Mark(region, [("a long label", 1.0), ("another", 0.0)])])
    assert [text for text, _ in written] == ["a long label 1.00", "another 0.00"]
    for _, (left, top, right, bottom) in written:
        assert 0 <= left < right < 640
        assert 0 <= top < bottom < 480


def test_a_small_frame_is_enlarged_by_a_whole_number():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    picture = annotate(Frame(pixels), [])
    assert picture.shape == (256, 320, 3)
    assert np.array_equal(picture[4::8, 4::8], pixels)


def test_the_surest_label_lies_on_top():
    marks = [Mark(BOX, [("sure", 1.0)]), Mark(BOX, [("unsure", 0.0)]), Mark(BOX, [])]
    for order in (marks, marks[::-1]):
        picture = annotate(Frame(plain()), order)
        assert tuple(picture[240, 160]) == COLOURS[2]


def test_a_long_label_is_cut_and_its_score_stays(written):
    annotate(
        Frame(plain(240, 320)), [Mark(WHOLE, [("W" * 200, 0.5), ("short", 0.25)]), Mark(BOX, [])], "1 ms"
    )
    unlabelled, long, short, note = (text for text, _ in written)
    assert (unlabelled, short, note) == (NO_LABEL, "short 0.25", "1 ms")
    assert long.startswith("WWWW")
    assert long.endswith("W.. 0.50")
    assert len(long) < 60


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Vorfahrt gewähren", "Vorfahrt gewahren"),
        ("Große Straße", "Grosse Strasse"),
        ("停", "\\u505c"),
        ("a\nb", "a\\nb"),
        ("", ""),
    ],
)
def test_what_opencv_cannot_write_is_spelled_or_escaped(text, shown):
    assert ascii_text(text) == shown


def test_colours_go_from_red_by_yellow_to_green():
    assert [colour_of(score) for score in (0.0, 0.5, 1.0)] == [*COLOURS]
    assert [colour_of(score) for score in (-1.0, float("nan"), 2.0)] == [COLOURS[0], COLOURS[0], COLOURS[2]]
    assert colour_of(0.25) == (240, 135, 55)


def test_three_hundred_boxes_are_drawn():
    rng = np.random.default_rng(1)
    marks = [Mark((*rng.uniform(0, 0.9, 2), 0.05, 0.1), [(f"n{i}", 1.0)]) for i in range(300)]
    assert np.all(annotate(Frame(plain()), marks) == COLOURS[2], axis=2).mean() > 0.1
