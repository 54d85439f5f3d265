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
from bnn_perception.frames.raw import RAW
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
    with pytest.raises(RefusedFrame, match=r"'nv24' needs cv_bridge, which cannot be imported"):
        view(message(4, 4, "nv24", step=4), MAX_PIXELS)
    assert view(message(4, 4), MAX_PIXELS).pixels.shape == (4, 4, 3)


def test_other_names_of_known_encodings_are_read_in_place():
    for name, encoding in (("8UC1", "mono8"), ("8UC3", "bgr8"), ("8UC4", "bgra8")):
        image = message(4, 6, name, step=26)
        frame = view(image, MAX_PIXELS)
        assert frame.encoding == encoding
        image.data[0] ^= 0xFF
        assert frame.pixels[0, 0, 0] == image.data[0]


#: One colour in the encodings of cameras: of YUV the limited range of BT.601, which OpenCV takes.
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
YUV = {RED: (81, 90, 240), GREEN: (145, 54, 34), BLUE: (41, 240, 110)}
PATTERNS = {
    "rggb": ((0, 1), (1, 2)),
    "bggr": ((2, 1), (1, 0)),
    "gbrg": ((1, 2), (0, 1)),
    "grbg": ((1, 0), (2, 1)),
}


def filled(encoding, colour, height, width):
    """(rows, values a row) of an image of one colour."""
    y, u, v = YUV[colour]
    if encoding.startswith("bayer_"):
        tile = np.array(colour)[np.array(PATTERNS[encoding[6:10]])]
        values = np.tile(tile, (height // 2, width // 2))
        return (values * 257).astype(np.uint16) if encoding.endswith("16") else values.astype(np.uint8)
    if encoding in ("nv12", "nv21"):
        pair = (u, v) if encoding == "nv12" else (v, u)
        chroma = np.tile(np.array(pair, np.uint8), (height // 2, width // 2))
        return np.concatenate([np.full((height, width), y, np.uint8), chroma])
    if encoding in ("uyvy", "yuv422", "yuyv", "yuv422_yuy2"):
        four = (y, u, y, v) if encoding.startswith(("yuyv", "yuv422_")) else (u, y, v, y)
        return np.tile(np.array(four, np.uint8), (height, width // 2))
    order = {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}[encoding[:3]]
    pixel = [257 * colour[channel] for channel in order] + [9] * ("a" in encoding)
    return np.tile(np.array(pixel, np.uint16), (height, width))


@pytest.mark.parametrize("colour", YUV, ids=["red", "green", "blue"])
@pytest.mark.parametrize("encoding", [name for name in RAW if name != "mono16"])
def test_raw_encodings_show_the_colour_that_was_filmed(encoding, colour):
    """Rows are longer than their pixels, and 16-bit values come in either byte order."""
    pytest.importorskip("cv2")
    values = filled(encoding, colour, 4, 6)
    for big_endian in (0, 1) if values.itemsize == 2 else (0,):
        ordered = values.astype(">u2" if big_endian else "<u2") if values.itemsize == 2 else values
        rows = np.ascontiguousarray(ordered).view(np.uint8).reshape(len(values), -1)
        padded = np.pad(rows, ((0, 0), (0, 5)), constant_values=99)
        data = array.array("B", padded.tobytes())
        image = message(4, 6, encoding, padded.shape[1], data, big_endian)
        frame = view(image, MAX_PIXELS)
        assert (frame.encoding, frame.pixels.shape) == ("rgb8", (4, 6, 3))
        # The table above rounds YUV to whole numbers, each of which is up to two levels of a colour.
        np.testing.assert_allclose(frame.pixels.astype(int), np.full((4, 6, 3), colour), atol=4)


def test_16_bits_are_rounded_to_8():
    values = np.array([[0, 128, 129, 257, 65535, 65407]], "<u2")
    data = array.array("B", values.tobytes())
    frame = view(message(1, 6, "mono16", 12, data), MAX_PIXELS)
    assert frame.encoding == "mono8"
    assert frame.pixels[..., 0].tolist() == [[0, 0, 1, 1, 255, 255]]


@pytest.mark.parametrize(
    ("encoding", "height", "width", "step", "length", "reason"),
    [
        ("bayer_rggb8", 480, 640, 3, 1440, "step"),
        ("bayer_rggb16", 4, 4, 4, 16, "step"),
        ("nv12", 4, 4, 4, 16, "data length"),
        ("yuyv", 4, 4, 8, 31, "data length"),
        ("yuyv", 4, 3, 6, 24, "encoding"),
        ("nv21", 3, 4, 4, 16, "encoding"),
        ("rgb16", 4, 4, 23, 92, "step"),
        ("nv24", 4, 4, 0, 0, "step"),
        ("nv24", 4, 4, 4, 15, "data length"),
    ],
)
def test_sizes_are_held_to_every_encoding(encoding, height, width, step, length, reason):
    with pytest.raises(RefusedFrame) as refusal:
        view(message(height, width, encoding, step, array.array("B", bytes(length))), MAX_PIXELS)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "8UC2", "64FC3"])
def test_measurements_are_no_pictures(encoding):
    with pytest.raises(RefusedFrame, match=rf"'{encoding}' holds no colours \(a depth image\?\); take"):
        view(message(4, 4, encoding, step=8), MAX_PIXELS)


def test_a_misspelt_encoding_is_answered_with_the_nearest(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    with pytest.raises(RefusedFrame, match="'RGB8' needs cv_bridge.*; is rgb8 meant?"):
        view(message(4, 4, "RGB8"), MAX_PIXELS)
    with pytest.raises(RefusedFrame, match="'bayer_rggb' needs cv_bridge.*; is bayer_rggb8 meant?"):
        view(message(4, 4, "bayer_rggb", step=4), MAX_PIXELS)


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
    frame = view(message(4, 4, "nv24", step=4), MAX_PIXELS, region)
    assert bridge.asked == ("rgb8",)
    assert frame.encoding == "rgb8"
    assert frame.region == region
    np.testing.assert_array_equal(frame.pixels, pixels[:, :, ::-1])
    assert frame.pixels.flags["C_CONTIGUOUS"]


def test_what_cv_bridge_refuses_is_refused_with_its_words(bridge):
    bridge.answer = RuntimeError("cannot tell colours apart")
    with pytest.raises(RefusedFrame, match=r"'yuv9' \(cannot tell colours apart\)") as refusal:
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
        (np.full((2, 3, 3), 257 * 29, np.uint16), [29, 29, 29]),
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


@pytest.mark.parametrize(
    "format", ["16UC1; png compressed ", "32FC1; compressedDepth png", "16UC1; compressedDepth rvl", "32SC2"]
)
def test_a_compressed_depth_image_is_refused(format):
    """Its PNG can be decoded, to a picture of distances."""
    data = encoded(np.full((4, 4), 40_000, np.uint16)).data
    with pytest.raises(
        RefusedFrame, match=rf"'{format}' holds no colours \(a depth image\?\); take"
    ) as refusal:
        decode(SimpleNamespace(format=format, data=data), MAX_PIXELS)
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
        view(message(4, 4, "nv24", step=4), MAX_PIXELS)
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
