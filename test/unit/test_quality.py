"""What a picture is like: brightness, sharpness, and whether it is another one."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from models import random_frame

from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.frames.quality import measure, seen
from bnn_perception.net.model import InputSpec
from bnn_perception.ros.parameters import Settings
from bnn_perception.scenes.drive import Scene

SPEC = InputSpec(32, 32)
DEFAULTS = Settings()


def grey(value, height=32, width=32, channels=3):
    return np.full((height, width, channels), value, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 10, 128, 255])
def test_a_single_colour_is_as_bright_as_it_is_and_has_no_sharpness(value, channels):
    quality = measure(grey(value, channels=channels))
    assert quality.brightness == pytest.approx(value, abs=1e-3)
    assert quality.sharpness == pytest.approx(0, abs=1e-6)


def test_colours_count_as_the_eye_sees_them():
    pure = np.zeros((3, 4, 4, 3), np.uint8)
    pure[0, ..., 0] = pure[1, ..., 1] = pure[2, ..., 2] = 255
    red, green, blue = (measure(pixels).brightness for pixels in pure)
    assert (red, green, blue) == pytest.approx((255 * 77 / 256, 255 * 150 / 256, 255 * 29 / 256))


def test_sharpness_does_not_depend_on_the_light_or_the_size():
    pixels = random_frame(np.random.default_rng(0), 32, 32).pixels
    darker = pixels // 3
    assert measure(darker).sharpness == pytest.approx(measure(pixels).sharpness, rel=0.05)
    # The same picture in pixels half as large: steps between every second pair of them.
    smooth = cv2.GaussianBlur(random_frame(np.random.default_rng(0), 64, 64).pixels, (0, 0), 4)
    half = cv2.resize(smooth, (32, 32), interpolation=cv2.INTER_AREA)
    assert measure(smooth).sharpness == pytest.approx(measure(half).sharpness, rel=0.1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (8, 1)])
def test_inputs_of_one_row_or_pixel_are_measured(height, width):
    quality = measure(grey(90, height, width))
    assert quality.brightness == pytest.approx(90, abs=1e-3)
    assert np.isfinite(quality.sharpness)


def test_defaults_pass_sharp_pictures_and_find_blurred_and_dark_ones():
    scene = Scene(0)
    for _ in range(60):
        picture, _ = scene.next()
        quality = measure(seen(Frame(picture, "rgb8", Scene.region), SPEC))
        assert DEFAULTS.min_brightness < quality.brightness < DEFAULTS.max_brightness
        assert quality.sharpness > 2 * DEFAULTS.min_sharpness
        blurred = measure(seen(Frame(cv2.GaussianBlur(picture, (0, 0), 60), "rgb8"), SPEC))
        assert blurred.sharpness < DEFAULTS.min_sharpness
        dark = measure(seen(Frame((picture * 0.05).astype(np.uint8), "rgb8"), SPEC))
        assert dark.brightness < DEFAULTS.min_brightness


def test_defaults_pass_real_cameras(data):
    clips = sorted(data("camera/clips").glob("*.mp4"))
    assert clips
    for clip in clips[:5]:
        video = cv2.VideoCapture(str(clip))
        digests = []
        for _ in range(30):
            ok, picture = video.read()
            assert ok
            quality = measure(seen(Frame(np.ascontiguousarray(picture), "bgr8"), SPEC))
            assert DEFAULTS.min_brightness < quality.brightness < DEFAULTS.max_brightness
            assert quality.sharpness > DEFAULTS.min_sharpness
            digests.append(quality.digest)
        assert len(set(digests)) > 20


def test_one_other_bit_is_another_picture():
    pixels = random_frame(np.random.default_rng(1), 32, 32).pixels
    other = pixels.copy()
    other[5, 5, 0] ^= 1
    assert measure(pixels).digest == measure(pixels.copy()).digest != measure(other).digest


def test_the_net_s_pixels_are_seen():
    frame = Frame(random_frame(np.random.default_rng(2), 120, 160).pixels, "bgr8", (0.25, 0.25, 0.5, 0.5))
    np.testing.assert_array_equal(seen(frame, SPEC), prepare_reference(frame, SPEC))


def test_without_numba_nearly_the_same_is_seen(monkeypatch):
    picture, _ = Scene(1).next()
    frame = Frame(picture, "rgb8", Scene.region)
    exact = measure(seen(frame, SPEC))
    monkeypatch.setitem(sys.modules, "bnn_perception.native", None)
    near = measure(seen(frame, SPEC))
    assert near.brightness == pytest.approx(exact.brightness, rel=0.02)
    assert near.sharpness == pytest.approx(exact.sharpness, rel=0.1)
