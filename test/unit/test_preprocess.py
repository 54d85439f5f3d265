"""The compiled preprocessing against its definition, and the definition against what it should mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_frame
from numpy.typing import NDArray

from bnn_perception.frames.frame import ENCODINGS, WHOLE, Frame, check_region
from bnn_perception.frames.preprocess import LUMA, area_weights, prepare, prepare_reference, source_rect
from bnn_perception.net.model import InputSpec

sides = st.one_of(st.integers(1, 12), st.integers(1, 90))


@st.composite
def regions(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x, y = draw(st.floats(0, 0.99)), draw(st.floats(0, 0.99))
    return check_region((x, y, draw(st.floats(1e-3, 1)) * (1 - x), draw(st.floats(1e-3, 1)) * (1 - y)))


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Frames of any size, encoding, region and row stride, upside down too."""
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    height, width, channels = draw(sides), draw(sides), ENCODINGS[encoding].channels
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    memory = rng.integers(0, 256, (height, width * channels + draw(st.integers(0, 7))), dtype=np.uint8)
    if draw(st.booleans()):
        memory = np.where(memory < 128, 0, 255).astype(np.uint8)  # the largest sums
    if draw(st.booleans()):
        memory = memory[::-1]
    pixels = np.lib.stride_tricks.as_strided(
        memory, (height, width, channels), (memory.strides[0], channels, 1), writeable=False
    )
    return Frame(pixels, encoding, draw(regions()))


specs = st.builds(
    InputSpec,
    height=sides,
    width=sides,
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["crop", "stretch"]),
)


@given(frames(), specs)
@settings(max_examples=200, deadline=None)
def test_prepare_equals_its_definition(frame: Frame, spec: InputSpec) -> None:
    np.testing.assert_array_equal(prepare(frame, spec), prepare_reference(frame, spec))


@pytest.mark.parametrize(
    ("height", "width", "spec"),
    [
        (1, 1, InputSpec(1, 1)),
        (1, 1, InputSpec(32, 32)),
        (1, 16384, InputSpec(32, 32, fit="stretch")),
        (16384, 1, InputSpec(32, 32, fit="stretch")),
        (1500, 3, InputSpec(2, 2, fit="stretch")),  # more rows in one pixel than 16-bit sums hold
        (3, 3, InputSpec(512, 300, fit="stretch")),
        (480, 640, InputSpec(32, 32)),
        (240, 320, InputSpec(96, 96, channels=1)),
    ],
)
@pytest.mark.parametrize("white", [False, True])
def test_prepare_at_the_ends_of_its_range(height: int, width: int, spec: InputSpec, white: bool) -> None:
    frame = random_frame(np.random.default_rng(1), height, width)
    if white:
        frame = Frame(np.full_like(frame.pixels, 255))
    np.testing.assert_array_equal(prepare(frame, spec), prepare_reference(frame, spec))


def test_prepare_writes_where_it_is_told() -> None:
    frame, spec = random_frame(np.random.default_rng(1), 20, 30), InputSpec(8, 8)
    memory = np.full((3, *spec.shape), 77, np.uint8)
    assert prepare(frame, spec, memory[1]) is not None
    np.testing.assert_array_equal(memory[1], prepare_reference(frame, spec))
    assert np.all(memory[[0, 2]] == 77)


def test_prepare_takes_pixels_that_are_not_adjacent() -> None:
    pixels = random_frame(np.random.default_rng(1), 20, 40).pixels[:, ::2]
    np.testing.assert_array_equal(
        prepare(Frame(pixels), InputSpec(8, 8)), prepare_reference(Frame(pixels), InputSpec(8, 8))
    )


def test_same_size_is_the_identity() -> None:
    frame = random_frame(np.random.default_rng(2), 32, 24)
    np.testing.assert_array_equal(prepare_reference(frame, InputSpec(32, 24)), frame.pixels)


def test_a_whole_factor_is_the_rounded_mean() -> None:
    frame = random_frame(np.random.default_rng(2), 60, 80)
    means = frame.pixels.reshape(12, 5, 16, 5, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(prepare_reference(frame, InputSpec(12, 16)), np.floor(means + 0.5))


def test_enlarging_by_a_whole_factor_repeats_pixels() -> None:
    frame = random_frame(np.random.default_rng(2), 5, 4)
    expected = frame.pixels.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(prepare_reference(frame, InputSpec(15, 12)), expected)


@given(st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_area_weights(source: int, destination: int) -> None:
    weights = area_weights(source, destination)
    assert weights.shape == (destination, source)
    assert np.all(weights >= 0)
    assert np.all(weights.sum(axis=1) == source)
    assert np.all(weights.sum(axis=0) == destination)


def rgb(frame: Frame) -> NDArray[np.uint8]:
    return frame.pixels[..., list(ENCODINGS[frame.encoding].rgb)]


def test_encodings_are_those_of_ros() -> None:
    """As sensor_msgs/image_encodings names them: letters in the order of the bytes."""
    expected = {"mono8": (1, (0, 0, 0))}
    for name in ("rgb8", "bgr8", "rgba8", "bgra8"):
        letters = name[:-1]
        expected[name] = (len(letters), tuple(letters.index(colour) for colour in "rgb"))
    assert expected == ENCODINGS


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_colour_order(encoding: str) -> None:
    frame = random_frame(np.random.default_rng(2), 8, 8, encoding)
    np.testing.assert_array_equal(prepare_reference(frame, InputSpec(8, 8)), rgb(frame))
    grey = prepare_reference(frame, InputSpec(8, 8, channels=1))[..., 0]
    # Integer luma against the real one of BT.601: weights are rounded to 1/256 and so is the result.
    np.testing.assert_allclose(grey, rgb(frame) @ np.array([0.299, 0.587, 0.114]), atol=1.5)


def test_luma_keeps_grey() -> None:
    assert sum(LUMA) == 256
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    grey = prepare_reference(Frame(pixels), InputSpec(16, 16, channels=1))
    np.testing.assert_array_equal(grey, pixels[..., :1])


@pytest.mark.parametrize(
    ("size", "region", "spec", "rect"),
    [
        ((480, 640), (0, 0, 1, 1), InputSpec(32, 32), (80, 0, 480, 480)),
        ((480, 640), (0, 0, 1, 1), InputSpec(32, 32, fit="stretch"), (0, 0, 640, 480)),
        ((480, 640), (0.5, 0.5, 0.5, 0.5), InputSpec(32, 32), (360, 240, 240, 240)),
        ((480, 640), (0, 0, 1, 1), InputSpec(16, 64), (0, 160, 640, 160)),
        ((480, 640), (0.999, 0.999, 1e-9, 1e-9), InputSpec(32, 32), (639, 479, 1, 1)),
        ((1, 1), (0.3, 0.3, 0.3, 0.3), InputSpec(32, 32), (0, 0, 1, 1)),
        # The model's shape is further from a square than the frame's: a crop of no pixel becomes one.
        ((1, 10), (0, 0, 1, 1), InputSpec(32, 8), (4, 0, 1, 1)),
        ((10, 1), (0, 0, 1, 1), InputSpec(8, 32), (0, 4, 1, 1)),
        # Position and size are both rounded up, which together would be a pixel too many.
        ((3, 8), (0, 0.5, 1, 0.5), InputSpec(32, 32, fit="stretch"), (0, 2, 8, 1)),
        ((8, 3), (0.5, 0, 0.5, 1), InputSpec(32, 32, fit="stretch"), (2, 0, 1, 8)),
    ],
)
def test_source_rect(
    size: tuple[int, int], region: tuple[float, ...], spec: InputSpec, rect: tuple[int, ...]
) -> None:
    assert source_rect(size[0], size[1], region, spec) == rect


@given(sides, sides, regions(), specs)
@settings(max_examples=200, deadline=None)
def test_source_rect_lies_in_the_frame(
    height: int, width: int, region: tuple[float, ...], spec: InputSpec
) -> None:
    rect = source_rect(height, width, region, spec)
    assert min(rect) >= 0
    assert rect.width >= 1
    assert rect.height >= 1
    assert rect.x + rect.width <= width
    assert rect.y + rect.height <= height


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 1), "3 numbers"),
        ((0, 0, 0, 1), "does not lie inside"),
        ((0, 0, 1, 0), "does not lie inside"),
        ((0, 0, 1, -0.5), "does not lie inside"),
        ((-0.1, 0, 1, 1), "does not lie inside"),
        ((0, -0.1, 1, 1), "does not lie inside"),
        ((0.5, 0, 0.6, 1), "does not lie inside"),
        ((0, 0.5, 1, 0.6), "does not lie inside"),
        ((0, 0, 1 + 2e-9, 1), "does not lie inside"),
        ((0, 0, 1, 1 + 2e-9), "does not lie inside"),
        ((0, 0, 1, 1, 1), "5 numbers"),
        ((0, 0, float("nan"), 1), "not finite"),
    ],
)
def test_check_region_refuses(region: tuple[float, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_region(region)


@pytest.mark.parametrize(
    "region",
    [
        WHOLE,
        (0, 0, 1, 1),
        (0.7, 0.2, 0.3, 0.8),
        (0.9, 0, 0.1, 1),
        (0, 0, 1e-9, 1e-9),
        (0, 0, 1 + 1e-9, 1 + 1e-9),
    ],
)
def test_check_region_takes_what_touches_the_edge(region: tuple[float, ...]) -> None:
    """0.7 + 0.3 and the like may come out a rounding above 1."""
    assert check_region(region) == region
    assert all(type(value) is float for value in check_region(region))
    assert WHOLE == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("pixels", "encoding", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), "yuv422", "encoding 'yuv422' is not one of"),
        (np.zeros((4, 4, 3), np.uint16), "rgb8", "not uint8"),
        (np.zeros((4, 4), np.uint8), "mono8", "not uint8"),
        (np.zeros((4, 4, 4), np.uint8), "rgb8", "4 channels in an image of encoding rgb8"),
        (np.zeros((0, 4, 3), np.uint8), "rgb8", "4x0 pixels"),
        (np.zeros((1, 16385, 3), np.uint8), "rgb8", "sides must be 1 to 16384"),
    ],
)
def test_a_frame_refuses(pixels: NDArray[np.uint8], encoding: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Frame(pixels, encoding)
