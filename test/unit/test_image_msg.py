"""Image messages to frames: no copy, no trust."""

from __future__ import annotations

import array
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.frames.frame import ENCODINGS
from bnn_perception.ros.image_msg import REASONS, RefusedFrame, decode, view

MAX_PIXELS = 1_000_000


def message(height, width, encoding="rgb8", step=None, data=None, is_bigendian=0):
    """What view looks at of a sensor_msgs/Image, whose data is an array."""
    if step is None:
        step = width * (ENCODINGS[encoding].channels if encoding in ENCODINGS else 3)
    if data is None:
        data = array.array("B", np.random.default_rng(0).integers(0, 256, height * step, np.uint8).tobytes())
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, step=step, data=data, is_bigendian=is_bigendian
    )


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(sorted(ENCODINGS)),
    st.integers(0, 9),
    st.integers(0, 1),
)
def test_view_is_the_message_memory(height, width, encoding, padding, is_bigendian):
    channels = ENCODINGS[encoding].channels
    step = width * channels + padding
    image = message(height, width, encoding, step, is_bigendian=is_bigendian)
    frame = view(image, MAX_PIXELS)
    expected = np.array(image.data, np.uint8).reshape(height, step)[:, : width * channels]
    np.testing.assert_array_equal(frame.pixels, expected.reshape(height, width, channels))
    assert frame.encoding == encoding
    image.data[0] ^= 0xFF
    assert frame.pixels[0, 0, 0] == image.data[0]  # no copy was made


def test_region_is_passed_on():
    assert view(message(4, 4), MAX_PIXELS, (0.0, 0.5, 1.0, 0.5)).region == (0.0, 0.5, 1.0, 0.5)


@pytest.mark.parametrize(
    ("reason", "image"),
    [
        ("zero size", message(0, 4)),
        ("zero size", message(4, 0)),
        ("too large", message(1001, 1000, data=array.array("B"))),
        ("too large", message(1, 20_000)),
        ("too large", message(2**32 - 1, 2**32 - 1, step=2**32 - 1, data=array.array("B"))),
        ("step", message(4, 4, step=11)),
        ("step", message(4, 4, step=0)),
        ("data length", message(4, 4, data=array.array("B", bytes(47)))),
        ("data length", message(4, 4, data=array.array("B", bytes(49)))),
        ("data length", message(4, 4, data=array.array("B"))),
        ("encoding", message(4, 4, encoding="no such")),
        ("encoding", message(4, 4, encoding="")),
    ],
)
def test_what_disagrees_is_refused(reason, image):
    with pytest.raises(RefusedFrame) as refusal:
        view(image, MAX_PIXELS)
    assert refusal.value.reason == reason
    assert reason in REASONS
    assert "\n" not in str(refusal.value)


def test_missing_cv_bridge_costs_its_encodings_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)  # importing it fails
    with pytest.raises(RefusedFrame, match=r"'bayer_rggb8' .* needs cv_bridge, which cannot be imported"):
        view(message(4, 4, "bayer_rggb8", step=4), MAX_PIXELS)
    assert view(message(4, 4), MAX_PIXELS).pixels.shape == (4, 4, 3)


def test_cv_bridge_converts_the_other_encodings():
    pytest.importorskip("cv_bridge", reason="cv_bridge comes with ROS 2 and is on no package index")
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    image = sensor_msgs.Image(height=2, width=2, encoding="mono16", step=4, data=[0, 255] * 4)
    assert view(image, MAX_PIXELS).pixels.tolist() == [[[255] * 3] * 2] * 2


@given(st.sampled_from([".png", ".jpg"]), st.integers(1, 40), st.integers(1, 40))
def test_compressed_images_are_decoded(kind, height, width):
    cv2 = pytest.importorskip("cv2")
    pixels = np.full((height, width, 3), (200, 100, 50), np.uint8)
    data = cv2.imencode(kind, pixels)[1].tobytes()
    frame = decode(SimpleNamespace(format="", data=array.array("B", data)), MAX_PIXELS)
    assert frame.encoding == "bgr8"
    # JPEG rounds its coefficients, and the colour on the way to YCrCb and back.
    np.testing.assert_allclose(frame.pixels.astype(int), pixels, atol=0 if kind == ".png" else 4)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a"]),
)
def test_rubbish_is_refused(data, magic):
    pytest.importorskip("cv2")
    with pytest.raises(RefusedFrame) as refusal:
        decode(SimpleNamespace(format="jpeg", data=array.array("B", magic + data)), MAX_PIXELS)
    assert refusal.value.reason in ("undecodable", "data length")
    assert "\n" not in str(refusal.value)
