"""Image messages to frames: no copy, no trust."""

from __future__ import annotations

import array
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.frames.frame import ENCODINGS, MAX_SIDE
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
    pixels = np.array([[[65535, 0, 0], [0, 0, 65535]]], np.uint16)  # red and blue
    image = sensor_msgs.Image(height=1, width=2, encoding="rgb16", step=12, data=list(pixels.tobytes()))
    assert view(image, MAX_PIXELS).pixels.tolist() == [[[255, 0, 0], [0, 0, 255]]]


class Bridge:
    """Stands in for cv_bridge.CvBridge: gives what it is told to, or raises it."""

    answer = None
    asked = ()

    def imgmsg_to_cv2(self, message, desired_encoding="passthrough"):
        Bridge.asked += (desired_encoding,)
        if isinstance(Bridge.answer, Exception):
            raise Bridge.answer
        return Bridge.answer


@pytest.fixture
def bridge(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=Bridge))
    monkeypatch.setattr(Bridge, "asked", ())
    return Bridge


def test_what_cv_bridge_gives_is_a_frame_in_rgb(bridge):
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    bridge.answer = pixels[:, :, ::-1]  # a view, which is not contiguous
    region = (0.0, 0.5, 1.0, 0.5)
    frame = view(message(4, 4, "bayer_rggb8", step=4), MAX_PIXELS, region)
    assert bridge.asked == ("rgb8",)
    assert frame.encoding == "rgb8"
    assert frame.region == region
    np.testing.assert_array_equal(frame.pixels, pixels[:, :, ::-1])
    assert frame.pixels.flags["C_CONTIGUOUS"]


def test_what_cv_bridge_refuses_is_refused_with_its_words(bridge):
    bridge.answer = RuntimeError("cannot tell colours apart")
    with pytest.raises(RefusedFrame, match=r"'yuv9' *: cannot tell colours apart") as refusal:
        view(message(4, 4, "yuv9", step=4), MAX_PIXELS)
    assert refusal.value.reason == "encoding"


def test_cv_bridge_is_not_asked_for_what_is_too_large_or_known(bridge):
    with pytest.raises(RefusedFrame) as refusal:
        view(message(1001, 1000, "bayer_rggb8", step=1000, data=array.array("B")), MAX_PIXELS)
    assert refusal.value.reason == "too large"
    for encoding in ENCODINGS:
        view(message(2, 2, encoding), MAX_PIXELS)
    assert bridge.asked == ()


def test_limits_are_what_is_still_taken():
    side = MAX_SIDE
    assert view(message(1, side, "mono8"), MAX_PIXELS).pixels.shape == (1, side, 1)
    assert view(message(side, 1, "mono8"), MAX_PIXELS).pixels.shape == (side, 1, 1)
    for height, width in ((1, side + 1), (side + 1, 1)):
        with pytest.raises(RefusedFrame, match=f"{width}x{height} pixels; at most .* {side} a side"):
            view(message(height, width, "mono8"), MAX_PIXELS)
    assert view(message(4, 5), 20).pixels.shape == (4, 5, 3)
    with pytest.raises(RefusedFrame, match=r"5x4 pixels; at most 19 \(max_pixels\)"):
        view(message(4, 5), 19)


def encoded(pixels, kind=".png"):
    cv2 = pytest.importorskip("cv2")
    return SimpleNamespace(format="png", data=array.array("B", cv2.imencode(kind, pixels)[1].tobytes()))


def test_limits_of_compressed_images():
    region = (0.5, 0.0, 0.5, 1.0)
    assert decode(encoded(np.zeros((4, 5, 3), np.uint8)), 20, region).region == region
    with pytest.raises(RefusedFrame, match="5x4 pixels; at most 19") as refusal:
        decode(encoded(np.zeros((4, 5, 3), np.uint8)), 19)
    assert refusal.value.reason == "too large"


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 4), (1, 2, 3, 0), np.uint8), [1, 2, 3]),
        (np.full((2, 3, 3), 257 * 9, np.uint16), [9, 9, 9]),
    ],
    ids=["grey", "transparent", "16 bits"],
)
def test_compressed_images_of_any_depth_become_three_bytes_a_pixel(pixels, expected):
    frame = decode(encoded(pixels), MAX_PIXELS)
    assert frame.pixels.tolist() == [[expected] * 3] * 2


def test_a_small_message_is_not_unpacked_to_a_large_image(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    image = encoded(np.zeros((2000, 3000), np.uint8))
    assert len(image.data) < 20_000
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(
        RefusedFrame, match=r"an image of 3000x2000 pixels; at most 1000000 \(max_pixels\)"
    ) as refusal:
        decode(image, 1_000_000)
    assert refusal.value.reason == "too large"


def test_only_what_image_transport_sends_is_opened(monkeypatch):
    """OpenCV also opens PFM, whose sixteen bytes it makes an array of two dimensions of."""
    cv2 = pytest.importorskip("cv2")
    pfm = b"Pf\n1 1\n-1.0\n" + bytes(4)
    assert len(pfm) == 16
    others = {kind: encoded(np.zeros((4, 4, 3), np.uint8), kind).data for kind in (".bmp", ".ppm", ".tiff")}
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was opened"))
    for data in (pfm, *others.values()):
        with pytest.raises(RefusedFrame, match=r"can be decoded \(JPEG, PNG, WebP can\)") as refusal:
            decode(SimpleNamespace(format="pfm", data=array.array("B", data)), MAX_PIXELS)
        assert refusal.value.reason == "undecodable"


@pytest.mark.parametrize(
    ("format", "encoding"),
    [
        ("", "bgr8"),
        ("png", "bgr8"),
        ("rgb8; png compressed bgr8", "bgr8"),
        ("bgr8; jpeg compressed bgr8", "bgr8"),
        ("bayer_rggb8; jpeg compressed bgr8", "bgr8"),
        ("mono8; png compressed ", "bgr8"),
        ("rgb8; png compressed rgb8", "rgb8"),
    ],
)
def test_the_format_says_in_which_order_colours_were_stored(format, encoding):
    pixels = np.full((2, 3, 3), (200, 100, 50), np.uint8)
    frame = decode(SimpleNamespace(format=format, data=encoded(pixels).data), MAX_PIXELS)
    assert frame.encoding == encoding
    np.testing.assert_array_equal(frame.pixels, pixels)


def test_a_compressed_mosaic_is_refused():
    data = encoded(np.zeros((4, 4), np.uint8)).data
    with pytest.raises(
        RefusedFrame, match="'bayer_rggb8; png compressed bayer_rggb8' holds a mosaic"
    ) as refusal:
        decode(SimpleNamespace(format="bayer_rggb8; png compressed bayer_rggb8", data=data), MAX_PIXELS)
    assert refusal.value.reason == "encoding"


def test_texts_of_a_message_are_shown_on_one_line_and_not_whole():
    text = "a\nb" * 1000
    for refuse in (
        lambda: view(message(4, 4, text), MAX_PIXELS),
        lambda: decode(SimpleNamespace(format=text, data=array.array("B", bytes(7))), MAX_PIXELS),
    ):
        with pytest.raises(RefusedFrame) as refusal:
            refuse()
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_cv_bridge_makes_is_looked_at(bridge, pixels):
    bridge.answer = pixels
    with pytest.raises(RefusedFrame, match="cv_bridge made no picture of it: pixels are") as refusal:
        view(message(4, 4, "bayer_rggb8", step=4), MAX_PIXELS)
    assert refusal.value.reason == "encoding"


def test_a_compressed_image_without_data_is_refused_by_name():
    pytest.importorskip("cv2")
    with pytest.raises(RefusedFrame, match="without data") as refusal:
        decode(SimpleNamespace(format="jpeg", data=array.array("B")), MAX_PIXELS)
    assert refusal.value.reason == "data length"
    with pytest.raises(RefusedFrame, match="of 7 bytes and format 'jpeg' is not an image") as refusal:
        decode(SimpleNamespace(format="jpeg", data=array.array("B", bytes(7))), MAX_PIXELS)
    assert refusal.value.reason == "undecodable"


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
