"""Encoded images: what their bytes say is held against the bytes before OpenCV sees them."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.frames.encoded import FORMATS, EncodedError, check, decode, format_of

#: The ending by which OpenCV encodes each format.
ENDINGS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WebP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "PNM": ".ppm",
    "TIFF": ".tiff",
    "AVIF": ".avif",
}

WIDTH, HEIGHT = 37, 22
LIMIT = WIDTH * HEIGHT


def array(data):
    return np.frombuffer(data, np.uint8)


def file_of(name, pixels=None):
    """A picture of 37x22 pixels in a format, as bytes; skips where this OpenCV does not write it."""
    if pixels is None:
        pixels = np.tile(np.arange(WIDTH, dtype=np.uint8)[None, :, None] * 6, (HEIGHT, 1, 3))
    try:
        return cv2.imencode(ENDINGS[name], pixels)[1].tobytes()
    except cv2.error:
        pytest.skip(f"this OpenCV does not write {name}")


def chunk(kind, content=b"", length=None):
    """A chunk of a PNG; ``length`` is what it states, where that is not the truth."""
    stated = len(content) if length is None else length
    return struct.pack(">I", stated) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
DATA = chunk(b"IDAT", zlib.compress(bytes(2)))
END = chunk(b"IEND")


def test_every_format_has_a_test():
    assert list(ENDINGS) == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_told_by_its_first_bytes_and_its_size_is_found(name):
    data = file_of(name)
    assert format_of(data[:32]) == name
    assert decode(array(data), LIMIT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(EncodedError, match=f"{WIDTH}x{HEIGHT} pixels; at most {LIMIT - 1} and") as error:
        check(array(data), LIMIT - 1)
    assert error.value.reason == "too large"
    with pytest.raises(EncodedError, match=r"is not an image that can be decoded \(one can\)"):
        check(array(data), LIMIT, ("one",))


def test_pictures_that_ordinary_programs_write_are_taken():
    grey = np.zeros((HEIGHT, WIDTH), np.uint8)
    for data in (
        cv2.imencode(".pgm", grey)[1],
        cv2.imencode(".pbm", grey)[1],
        cv2.imencode(".png", grey.astype(np.uint16))[1],
        cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1],
        cv2.imencode(".webp", np.zeros((HEIGHT, WIDTH, 4), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 50])[1],
        cv2.imencode(".webp", np.zeros((HEIGHT, WIDTH, 4), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 101])[1],
        array(b"P2 # what it is\n37 # how wide\n22\n255\n" + b"7 " * LIMIT),
        # Fill bytes before a segment, and what a camera's buffer holds behind the picture.
        array((jpeg := file_of("JPEG"))[:2] + b"\xff\xff" + jpeg[2:] + bytes(100)),
        array(file_of("PNG") + b"behind the end"),
    ):
        assert decode(data.reshape(-1), LIMIT).shape == (HEIGHT, WIDTH, 3)


def test_a_chunk_that_states_more_than_there_is_takes_no_memory():
    """Forty-nine bytes for which OpenCV takes 4 GB."""
    data = png(HEADER, chunk(b"tEXt", b"", 0xFFFFFF00))[:49]
    assert len(data) < 50
    code = (
        "import resource, sys, numpy as np, cv2\n"
        "from bnn_perception.frames.encoded import EncodedError, decode\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(np.frombuffer(bytes.fromhex(sys.argv[1]), np.uint8), 10**6)\n"
        "except EncodedError as error: print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, data.hex()], capture_output=True, text=True, check=True
    )
    reason, kilobytes = done.stdout.split()
    assert reason == "undecodable"
    # What an import takes, far below the 4 GB.
    assert int(kilobytes) < 20_000


@pytest.mark.parametrize(
    "data",
    [
        png(HEADER, chunk(b"IDAT", b"", 0xFFFFFF00)),
        png(HEADER, DATA, chunk(b"fdAT", b"", 0x7FFFFFFF), END),
        png(HEADER, DATA),
        png(HEADER, END),
        png(DATA, END),
        png(HEADER, HEADER, DATA, END),
        png(chunk(b"IHDR", bytes(13)), DATA, END),
        png(HEADER, chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60000, 60000, 0, 0, 1, 1, 0, 0)), DATA, END),
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xe0\x00\x01",
        b"\xff\xd8\xff\xda\x00\x02\xff\xd9",
        b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(30),
        b"RIFF\x24\x00\x00\x00WEBPVP8 \xff\xff\xff\x7f" + bytes(24),
        b"RIFF\x04\x00\x00\x00WEBP",
        b"BM" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(40),
        b"GIF89a" + bytes(20),
        b"P6 " + b"9" * 30 + b" 1 255\n",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(24),
        b"\0\0\0\x20ftypavif" + bytes(20),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_disagrees_with_itself_is_refused_before_it_is_decoded(data, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(EncodedError):
        decode(array(data), 10**6)


def ihdr(width, height, bits, colour):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


@pytest.mark.parametrize(
    "data",
    [
        png(ihdr(6000, 6000, 8, 2), DATA, END),  # 40 bytes for 108 MB
        png(ihdr(6000, 6000, 16, 6), chunk(b"IDAT", bytes(200_000)), DATA, END),
        b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 6000, -6000, 1, 24, 0) + bytes(1000),
        b"BM" + bytes(8) + struct.pack("<IIHHHH", 26, 12, 6000, 6000, 1, 1) + bytes(1000),
        b"P6 6000 6000 255\n" + bytes(1000),
        b"P4 6000 6000\n" + bytes(1000),
        b"P2 6000 6000 9\n" + b"1 " * 500,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_too_little_data_takes_no_memory(data, monkeypatch):
    """OpenCV takes memory for all of the pixels, and leaves black what is missing."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(EncodedError, match="bytes of data cannot fill its size") as error:
        decode(array(data), 1 << 26)
    assert error.value.reason == "undecodable"


def test_what_packs_well_is_taken():
    """Deflate makes at most 1032 bytes of one, and nearly so many of zeros."""
    for black in (np.zeros((3000, 4000, 3), np.uint8), np.zeros((3000, 4000), np.uint8)):
        content = cv2.imencode(".png", black, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
        assert decode(content.reshape(-1), 1 << 26).shape == (3000, 4000, 3)
    bits = cv2.imencode(".png", np.zeros((3000, 4000), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])[1]
    assert decode(bits.reshape(-1), 1 << 26).shape == (3000, 4000, 3)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP"])
def test_a_picture_that_is_cut_short_is_refused_whatever_opencv_would_make_of_it(name, monkeypatch):
    data = file_of(name)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for length in (len(data) - 3, len(data) * 9 // 10, len(data) // 2, 40, 12, 3):
        with pytest.raises(EncodedError) as error:
            decode(array(data[:length]), LIMIT)
        assert error.value.reason == "undecodable"


@pytest.mark.parametrize(
    "data",
    [
        png(HEADER, *[chunk(b"tEXt")] * 200_000),
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000,
        b"\xff\xd8\xff" + b"\xff\x00" * 5_000_000,
        b"\xff\xd8\xff" + b"\xff" * 10_000_000,
        b"RIFF" + struct.pack("<I", 8_000_004) + b"WEBP" + (b"EXIF" + bytes(4)) * 1_000_000,
        b"\0\0\0\x20ftypavif" + b"ispe\0\0\0\0\0\0\0\x01\0\0\0\x01" * 500_000,
    ],
    ids=["PNG", "JPEG", "JPEG escaped", "JPEG fill", "WebP", "AVIF"],
)
def test_a_walk_over_many_parts_ends_soon(data):
    start = time.process_time()
    with pytest.raises(EncodedError):
        check(array(data), 10**6)
    # A tenth of it on this machine; without a limit several seconds.
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "made", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_the_decoder_gives_is_looked_at(made, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: made)
    with pytest.raises(EncodedError, match="is decoded to .* no picture in colour") as error:
        decode(array(png(HEADER, DATA, END)), LIMIT)
    assert error.value.reason == "undecodable"


def test_a_decoder_that_gives_more_than_the_header_states_is_refused(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(EncodedError, match=f"{WIDTH + 1}x{HEIGHT} pixels") as error:
        decode(array(png(HEADER, DATA, END)), LIMIT)
    assert error.value.reason == "too large"


@pytest.mark.parametrize("error", [cv2.error("no"), MemoryError(), ValueError("negative dimensions")])
def test_whatever_the_decoder_raises_is_one_error(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(EncodedError, match="cannot be decoded: "):
        decode(array(png(HEADER, DATA, END)), LIMIT)


@given(st.sampled_from(list(FORMATS)), st.data())
def test_damaged_files_are_decoded_or_refused(name, data):
    whole = bytearray(file_of(name))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(array(bytes(whole)), 100_000)
    except EncodedError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] * pixels.shape[1] <= 100_000
