"""Damaged messages: a frame comes out, or :class:`RefusedFrame`."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
from fuzzing import Generator, assert_one_line, damaged, number, one_of, run

from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.frames.raw import ALIASES, RAW
from bnn_perception.ros.image_msg import RefusedFrame, decode, view

MAX_PIXELS = 1 << 16

SPELLINGS = [
    *ENCODINGS,
    *ALIASES,
    *RAW,
    "32FC1",
    "16UC1",
    "64FC3",
    "",
    "rgb",
    "RGB8",
    "\0",
    "x" * 100_000,
    "\ud800",
    "mono8 ",
]
FORMATS = [
    "",
    "jpeg",
    "png",
    "rgb8; jpeg compressed rgb8",
    "bgr8; png compressed bayer_rggb8",
    ";;;",
    "\x1b[2J" * 1000,
]


def pictures() -> list[bytes]:
    """Small pictures in every format that is sent, and in some that are not."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (24, 20, 3), np.uint8)
    encoded = []
    for suffix, pixels, options in (
        (".jpg", colour, []),
        (".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        (".jpg", colour[..., 0], []),
        (".png", colour, []),
        (".png", colour.astype(np.uint16) * 257, []),
        (".png", np.dstack([colour, colour[..., :1]]), []),
        (".webp", colour, [cv2.IMWRITE_WEBP_QUALITY, 50]),
        (".webp", colour, [cv2.IMWRITE_WEBP_QUALITY, 101]),
        (".bmp", colour, []),
        (".tiff", colour, []),
        (".ppm", colour, []),
    ):
        done, content = cv2.imencode(suffix, pixels, options)
        assert done
        encoded.append(content.tobytes())
    return [*encoded, b"GIF89a" + bytes(20), b"Pf\n20 24\n1\n" + bytes(2000), b""]


PICTURES = pictures()


def touched(frame: Frame) -> None:
    """Every pixel of a frame can be read."""
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.ndim == 3
    assert frame.pixels.shape[0] * frame.pixels.shape[1] <= MAX_PIXELS
    frame.pixels.sum()


def raw(rng: Generator) -> None:
    """A raw image, of which up to all fields are wrong."""
    height, width = (int(rng.integers(0, 40)) for _ in range(2))
    step = width * int(rng.choice([1, 2, 3, 4, 6, 8])) + int(rng.choice([0, 0, 1, 13]))
    length = step * (height if rng.random() < 0.8 else height * 3 // 2)
    if rng.random() < 0.3:
        height, width, step = (
            number(rng) % 2**32 if rng.random() < 0.5 else v for v in (height, width, step)
        )
    if rng.random() < 0.2:
        length = int(rng.integers(0, 5000))
    message = SimpleNamespace(
        height=height,
        width=width,
        step=step,
        encoding=one_of(rng, SPELLINGS),
        is_bigendian=int(rng.integers(0, 256)),
        data=rng.bytes(length),
    )
    touched(view(message, MAX_PIXELS))


def compressed(rng: Generator) -> None:
    content = PICTURES[int(rng.integers(len(PICTURES)))]
    if rng.random() < 0.95:
        content = damaged(rng, content, PICTURES)
    touched(decode(SimpleNamespace(format=one_of(rng, FORMATS), data=content), MAX_PIXELS))


def test_messages() -> None:
    frames = 0

    def case(rng: Generator) -> None:
        nonlocal frames
        try:
            (raw if rng.random() < 0.4 else compressed)(rng)
            frames += 1
        except RefusedFrame as error:
            assert_one_line(error)

    run("messages", case)
    assert frames > 0
