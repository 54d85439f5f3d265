"""JPEGs that are cut short or damaged are told by their data, whatever a decoder would make of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.frames import encoded, jpeg
from bnn_perception.frames.encoded import EncodedError, decode
from bnn_perception.frames.jpeg import Jpeg, JpegError

LIMIT = 1 << 20

KINDS = {
    "plain": [],
    "optimized": [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
    "progressive restarts": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    "coarse": [cv2.IMWRITE_JPEG_QUALITY, 1],
    "fine": [cv2.IMWRITE_JPEG_QUALITY, 100],
}


def array(data):
    return np.frombuffer(data, np.uint8)


def picture(width, height, seed=0, channels=3):
    """Smooth and rough parts, as photographs have them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(
        height, width, channels
    )
    rough = rng.normal(0, 12, (height, width, channels)) * (np.arange(width) > width / 2)[None, :, None]
    return np.clip(smooth + rough, 0, 255).astype(np.uint8)


def jpeg_of(pixels, kind="plain"):
    return cv2.imencode(".jpg", pixels, KINDS[kind])[1].tobytes()


def verdict(data):
    """None for a whole file."""
    try:
        assert list(Jpeg(array(data)).sizes())
    except (JpegError, struct.error, IndexError, AssertionError) as error:
        return str(error) or "cut short"
    return None


def scan_begin(data):
    """Where the data of the first scan begins."""
    at = data.index(b"\xff\xda") + 2
    return at + int.from_bytes(data[at : at + 2], "big")


def needs_walk():
    pytest.importorskip("numba", reason="the data of a JPEG is walked by numba")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_files_are_decoded(kind, channels, monkeypatch):
    needs_walk()
    for width, height in ((1, 1), (8, 8), (17, 16), (37, 22), (65, 130), (300, 200)):
        for pixels in (
            picture(width, height, width, channels),
            np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8),
            np.zeros((height, width, channels), np.uint8),
            np.full((height, width, channels), 255, np.uint8),
        ):
            data = jpeg_of(pixels, kind)
            expected = cv2.imdecode(array(data), cv2.IMREAD_COLOR)
            for large in (0, 1 << 30):  # with a thread for the walk, and without
                monkeypatch.setattr(encoded, "LARGE", large)
                np.testing.assert_array_equal(decode(array(data), LIMIT), expected)
            # Without its end marker it is as whole.
            np.testing.assert_array_equal(decode(array(data[:-2]), LIMIT), expected)


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_a_decoder_gets_an_end_marker_whatever_the_file_has(monkeypatch, large):
    """Without one OpenCV 4.5 and 4.6 leave rows as the memory was."""
    needs_walk()
    monkeypatch.setattr(encoded, "LARGE", large)
    data = jpeg_of(picture(37, 22))
    expected, seen = cv2.imdecode(array(data), cv2.IMREAD_COLOR), []
    imdecode = cv2.imdecode
    monkeypatch.setattr(
        cv2, "imdecode", lambda content, flags: seen.append(content) or imdecode(content, flags)
    )
    for content in (data, data[:-2], data[:-1], data + bytes(3)):
        np.testing.assert_array_equal(decode(array(content), LIMIT), expected)
    assert [bytes(content[-2:]) for content in seen] == [END] * 4
    assert seen[0].size == len(data)  # which has one, and is not copied


@pytest.mark.parametrize("sampling", ["411", "420", "422", "440", "444"])
def test_channels_of_every_resolution_are_walked(sampling):
    needs_walk()
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}", None)
    if factor is None:
        pytest.skip("this OpenCV cannot choose the resolution of colours")
    for progressive in (0, 1):
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
        data = cv2.imencode(".jpg", picture(67, 45), options)[1].tobytes()
        assert verdict(data) is None
        assert verdict(data[:-40]) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_anywhere_is_refused(kind, monkeypatch):
    needs_walk()
    data = jpeg_of(picture(48, 40), kind)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for length in range(3, len(data) - 2):
        with pytest.raises(EncodedError) as error:
            decode(array(data[:length]), LIMIT)
        assert error.value.reason == "undecodable"
        if length > scan_begin(data):
            # A driver that closes what it has cut helps nobody.
            assert verdict(data[:length].rstrip(b"\xff") + b"\xff\xd9") is not None


def test_damage_in_the_midst_is_refused_where_it_spoils_the_picture():
    """Sixteen bytes of a picture are replaced. What stays unseen leaves every code in its place, or found it again."""
    needs_walk()
    rng = np.random.default_rng(2)
    spoilt = refused = 0
    for index in range(120):
        data = bytearray(jpeg_of(picture(96, 96, index), ("plain", "progressive", "optimized")[index % 3]))
        good = cv2.imdecode(array(bytes(data)), cv2.IMREAD_COLOR).astype(int)
        place = int(rng.integers(scan_begin(bytes(data)), len(data) - 18))
        data[place : place + 16] = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        made = cv2.imdecode(array(bytes(data)), cv2.IMREAD_COLOR)
        if made is not None and (np.abs(made - good).max(2) > 32).mean() > 0.1:
            spoilt += 1
            refused += verdict(bytes(data)) is not None
    assert spoilt > 40
    assert refused >= 0.8 * spoilt


def test_a_lost_packet_is_refused():
    """What a webcam sends whose packet was lost: the rest moves up, or zeros stand there."""
    needs_walk()
    whole = [jpeg_of(picture(320, 240, seed)) for seed in range(20)]
    for data in whole:
        middle = (scan_begin(data) + len(data)) // 2
        assert verdict(data[:middle] + bytes(512) + data[middle + 512 :]) is not None
    missed = [
        data for data in whole if verdict(data[: len(data) // 2] + data[len(data) // 2 + 512 :]) is None
    ]
    # What moves up is codes again; once in a while they end with the last block.
    assert len(missed) <= 2


#: A grey picture of 16x8 pixels by the tables of annex K: two blocks, each 00 (no change of the mean) 1010 (end).
HEADER = bytes.fromhex("ffd8 ffc0000b 08 0008 0010 01 011100")
SCAN = bytes.fromhex("ffda0008 01 0100 003f00")
BLOCKS = bytes([0b00101000, 0b10101111])
END = b"\xff\xd9"
INTERVAL = bytes.fromhex("ffdd0004 0001")
BLOCK = bytes([0b00101011])


def quantizer(step):
    return bytes.fromhex("ffdb004300") + bytes([step] * 64)


def bits(text):
    text = text.replace(" ", "")
    text += "1" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")


@pytest.mark.parametrize(
    "data",
    [
        HEADER + SCAN + BLOCKS + END,
        HEADER + SCAN + BLOCKS,
        HEADER + SCAN + BLOCKS[:1] + bytes([0b10100000]) + END,  # filled with zeros
        HEADER + SCAN + BLOCKS + bytes(3) + END,  # whole words
        HEADER + SCAN + BLOCKS + b"\xff\xff" + END,  # fill bytes before a marker
        HEADER + SCAN + BLOCKS + END + b"what follows",
        HEADER + INTERVAL + SCAN + BLOCK + b"\xff\xd0" + BLOCK + END,
        HEADER + INTERVAL + SCAN + BLOCK + b"\xff\xff\xd0" + BLOCK,
        HEADER[:2] + quantizer(1) + HEADER[2:] + SCAN + BLOCKS + END,
        # The 63rd coefficient: three runs of 16 zeros, one of 14, a value.
        HEADER + SCAN + bits("00" + "11111111001" * 3 + "11111111111010111" + "00 1010") + END,
    ],
)
def test_what_is_whole_passes(data):
    needs_walk()
    assert verdict(data) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEADER + SCAN + BLOCKS[:1], "data ends before its picture"),
        (HEADER + SCAN + BLOCKS[:1] + END, "data is damaged"),
        (HEADER + SCAN + BLOCKS + b"\x28\xab" * 5 + END, "data is damaged"),  # blocks that nobody asked for
        (HEADER + SCAN + bytes([0b00101000, 0b10100010]) + END, "data is damaged"),  # half a block too many
        (HEADER + INTERVAL + SCAN + BLOCK + b"\xff\xd1" + BLOCK + END, "data is damaged"),  # the marker after next
        (HEADER + INTERVAL + SCAN + BLOCK + BLOCK + END, "data is damaged"),
        (HEADER + INTERVAL + SCAN + BLOCK + b"\x55\xff\xd0" + BLOCK + END, "data is damaged"),  # stray in the midst
        (HEADER + INTERVAL + SCAN + BLOCK, "data ends before its picture"),
        (HEADER + INTERVAL + SCAN + BLOCK + END, "data is damaged"),
        (HEADER + SCAN + BLOCK + b"\xff\xd0" + BLOCK + END, "data is damaged"),  # a marker that nobody announced
        (HEADER + SCAN + bits("111111111" * 4) + END, "data is damaged"),  # a code that is none
        # A value beyond the 63rd coefficient; a run of zeros beyond it.
        (HEADER + SCAN + bits("00" + "11111111001" * 3 + "1111111111110101" * 2 + "1" * 40) + END, "data is damaged"),
        (HEADER + SCAN + bits("00" + "11111111001" * 4 + "1010" + "1" * 40) + END, "data is damaged"),
        # A mean of 11 bits, 1024 and more, with quantizers of 16: brighter than white.
        (
            HEADER[:2] + quantizer(16) + HEADER[2:] + SCAN + bits("111111110 11111111111 1010 00 1010") + END,
            "data is damaged",
        ),
        # A coefficient of 10 bits with quantizers of 255.
        (
            HEADER[:2] + quantizer(255) + HEADER[2:] + SCAN + bits("00 1111111110000011" + "1" * 10) + BLOCKS + END,
            "data is damaged",
        ),
        (HEADER + END, "data ends before its picture"),
        (HEADER + SCAN + BLOCKS + SCAN + BLOCKS + END, "do not follow from one another"),
        (HEADER[:2] + SCAN + BLOCKS + END, "disagree with its header"),
        (HEADER + HEADER[2:] + SCAN + BLOCKS + END, "two headers"),
        (HEADER.replace(b"\xff\xc0", b"\xff\xc9") + SCAN + BLOCKS + END, r"of a kind that nobody sends \(SOF9\)"),
        (HEADER.replace(b"\x0b\x08", b"\x0b\x0c") + SCAN + BLOCKS + END, "1 channels of 12 bits"),
        (HEADER.replace(b"\x01\x11", b"\x01\x51") + SCAN + BLOCKS + END, "header disagrees with itself"),
        # Three codes of one bit, with fewer and with as many symbols; a table of no kind; four quantizers.
        (HEADER + b"\xff\xc4\x00\x14\x00\x03" + bytes(15) + bytes(1) + SCAN + BLOCKS + END, "with themselves"),
        (HEADER + b"\xff\xc4\x00\x16\x00\x03" + bytes(15) + bytes(3) + SCAN + BLOCKS + END, "with themselves"),
        (HEADER + b"\xff\xc4\x00\x13\x20" + bytes(16) + SCAN + BLOCKS + END, "with themselves"),
        (HEADER + b"\xff\xdb\x00\x07\x00" + bytes(4) + SCAN + BLOCKS + END, "with themselves"),
        (HEADER + SCAN.replace(b"\x01\x01\x00", b"\x01\x02\x00") + BLOCKS + END, "disagree with its header"),
        (HEADER + SCAN.replace(b"\x01\x01\x00", b"\x01\x01\x22") + BLOCKS + END, "data is damaged"),  # no such tables
    ],
)  # fmt: skip
def test_what_disagrees_is_refused_by_name(data, reason):
    needs_walk()
    with pytest.raises((JpegError, struct.error, IndexError), match=reason):
        list(Jpeg(array(data)).sizes())
    with pytest.raises(EncodedError):
        decode(array(data), LIMIT)


def test_frames_of_webcams_that_bring_no_tables_are_walked():
    needs_walk()
    data = jpeg_of(picture(64, 48))
    while (at := data.find(b"\xff\xc4")) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert verdict(data) is None
    assert verdict(data[:-20]) is not None


def test_progressive_scans_follow_from_one_another():
    needs_walk()
    data = jpeg_of(picture(64, 48), "progressive")
    places = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    assert verdict(data[: places[0]] + data[places[1] :]) is not None
    for end in (b"", END):
        assert "ends before its picture" in verdict(data[: places[-1]] + end)


def test_without_numba_the_end_marker_tells(monkeypatch):
    monkeypatch.setattr(jpeg, "_walker", lambda: None)
    data = jpeg_of(picture(64, 48))
    assert verdict(data) is None
    assert verdict(data[:-2]) == "without its end"
    assert verdict(data[:-300]) == "without its end"


def test_a_picture_that_a_child_process_decodes():
    """The thread of the parent is not there; it is made anew."""
    needs_walk()
    data = jpeg_of(picture(300, 200))
    assert len(data) >= encoded.LARGE
    decode(array(data), LIMIT)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        shape = pool.apply_async(_decoded_shape, (data,)).get(timeout=60)
    assert shape == (200, 300, 3)


def _decoded_shape(data):
    return decode(array(data), LIMIT).shape


@given(st.binary(max_size=80), st.booleans(), st.integers(0, 600))
def test_any_bytes_are_whole_or_refused(data, progressive, place):
    header = HEADER.replace(b"\xff\xc0", b"\xff\xc2") if progressive else HEADER
    for candidate in (
        header + data + END,
        header + SCAN + data + END,
        jpeg_of(picture(16, 16), "progressive" if progressive else "plain")[:place] + data,
    ):
        with contextlib.suppress(JpegError, struct.error, IndexError):
            list(Jpeg(array(candidate)).sizes())


@pytest.mark.parametrize("kind", ["plain", "optimized"])
def test_stray_bytes_behind_the_last_block_pass(kind):
    """As webcams send them with pictures that are whole; more of them would be data that no block took."""
    data = jpeg_of(picture(64, 48), kind)
    assert data.endswith(b"\xff\xd9")
    for count in (1, 4, 8):
        assert verdict(data[:-2] + b"\x55" * count + b"\xff\xd9") is None
    assert verdict(data[:-2] + b"\x55" * 40 + b"\xff\xd9") is not None
