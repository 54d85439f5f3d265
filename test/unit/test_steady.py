"""The steady label of a camera: what flickers does not reach it, what lasts does, at any rate of frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.ros.steady import GAP, Steady, SteadyLabel


class Camera:
    """A camera whose frames are answered by scores."""

    def __init__(self, smoothing=0.0, hysteresis=0.0, threshold=0.0):
        self.label = SteadyLabel()
        self.settings = (smoothing, hysteresis, threshold)
        self.now = 0

    def see(self, milliseconds, *scores):
        """The label that holds from this frame on, None where it stays; ``-`` where it is no label."""
        seconds, self.now = (milliseconds - self.now) * 1e-3, milliseconds
        changed = self.label.update(seconds, np.float32(scores), *self.settings)
        return changed and ("-" if changed.class_id is None else changed.class_id)


A, B = (0.9, 0.1), (0.1, 0.9)


def test_without_settings_each_change_is_told_once():
    camera = Camera()
    assert [camera.see(t, *scores) for t, scores in ((0, A), (33, A), (66, B), (99, B), (132, A))] == [
        0,
        None,
        1,
        None,
        0,
    ]


def test_the_score_is_that_of_the_frame():
    camera = Camera()
    camera.see(0, 0.2, 0.7, 0.1)
    assert camera.label.current == Steady(1, pytest.approx(0.7, rel=1e-6))


def test_one_frame_that_is_off_does_not_count():
    camera = Camera(smoothing=0.3)
    assert camera.see(0, *A) == 0
    assert [camera.see(33 * i, *(B if i == 5 else A)) for i in range(1, 20)] == [None] * 19


def test_what_lasts_comes_through():
    camera = Camera(smoothing=0.3)
    camera.see(0, *A)
    seen = [camera.see(33 * i, *B) for i in range(1, 30)]
    # The mean of logits that jump from +x to -x passes 0 after smoothing * ln 2 = 208 ms.
    assert seen.index(1) + 1 == math.ceil(0.3 * math.log(2) / 0.033)
    assert [each for each in seen if each is not None] == [1]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_the_rate_of_frames_does_not_matter(pauses):
    """Equal frames between two stamps change nothing of the weight that the time between them has."""
    often, seldom = Camera(smoothing=0.5), Camera(smoothing=0.5)
    for camera in (often, seldom):
        camera.see(0, *A)
    now = 0
    for pause in pauses:
        now += pause
        often.see(now, *B)
        if now - seldom.now >= 0.9 * GAP * 1000 - 400:
            seldom.see(now, *B)
    seldom.see(now, *B)
    np.testing.assert_allclose(often.label._mean, seldom.label._mean, rtol=1e-5, atol=1e-6)


def test_a_new_label_must_lead_for_the_hysteresis():
    camera = Camera(hysteresis=0.1)
    assert camera.see(0, *A) == 0
    assert camera.see(33, *B) is None
    assert camera.see(66, *A) is None  # leads anew
    assert camera.see(99, *B) is None
    assert camera.see(132, *B) is None
    assert camera.see(198, *B) is None
    assert camera.see(200, *B) == 1


def test_below_the_threshold_there_is_no_label():
    camera = Camera(threshold=0.8)
    assert camera.see(0, 0.5, 0.5) == "-"
    assert camera.see(33, *A) == 0
    assert camera.see(66, 0.7, 0.3) == "-"
    assert camera.see(99, 0.8001, 0.1999) == 0
    assert camera.see(132, *B) == 1


def test_no_label_has_to_lead_too():
    camera = Camera(threshold=0.8, hysteresis=0.1)
    camera.see(0, *A)
    assert camera.see(33, 0.5, 0.5) is None
    assert camera.see(132, 0.5, 0.5) is None
    assert camera.see(134, 0.5, 0.5) == "-"


@pytest.mark.parametrize("then", [int(GAP * 1000) + 1, -1])
def test_after_a_gap_or_a_jump_back_all_begins_anew(then):
    camera = Camera(smoothing=10.0, hysteresis=10.0)
    camera.see(0, *A)
    camera.see(33, *B)
    assert camera.see(33 + then, *B) == 1


def test_the_same_label_after_a_gap_is_told_again():
    camera = Camera()
    camera.see(0, *A)
    assert camera.see(10_000, *A) == 0


def test_frames_of_one_stamp_are_taken():
    camera = Camera(smoothing=0.3)
    assert [camera.see(5, *A), camera.see(5, *B), camera.see(5, *B)] == [0, None, None]


def test_a_certain_score_can_be_overcome():
    """float32 gives a score of 0 where a class is out of the question."""
    camera = Camera(smoothing=0.1)
    tiny = float(np.finfo(np.float32).tiny)
    camera.see(0, 1.0, tiny)
    assert 1 in [camera.see(33 * i, tiny, 1.0) for i in range(1, 10)]
