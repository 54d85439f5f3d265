"""Images collected under labels: what is kept, what is left out and why, and what stays when writing fails."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bnn_perception import collection as module
from bnn_perception.collection import (
    RECENT,
    SEEN,
    Collection,
    CollectionError,
    Limits,
    Outcome,
    check_label,
    difference,
    encode,
    in_words,
    stamp_name,
)
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import class_folders, read_image
from bnn_perception.frames.preprocess import prepare

ALL = Limits(difference=0.0)


def noise(seed, height=40, width=60, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def grey(level):
    return Frame(np.full((40, 60, 3), level, np.uint8))


@pytest.fixture
def collected(tmp_path):
    return Collection(tmp_path / "images")


# Labels.


@pytest.mark.parametrize(
    "label", ["forklift", "Gabelstapler, groß", "speed limit 50", "7", "a.b", "人", "console"]
)
def test_a_label_that_can_name_a_folder_is_taken(label, collected):
    assert check_label(label) == label
    assert collected.add(label, "0", Frame(noise(0)), ALL) is Outcome.SAVED
    assert list(class_folders(collected.folder)) == [label]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a/b", "holds '/'"),
        ("../../etc", "holds '/'"),
        ("a\\b", "holds '\\'"),
        ("a:b", "holds ':'"),
        ("..", "begins with a point"),
        (".hidden", "begins with a point"),
        ("a\nb", "holds a character that is not shown"),
        ("a\0", "holds a character that is not shown"),
        ("a\x1b[2J", "holds a character that is not shown"),
        ("a\u2028b", "holds a character that is not shown"),
        ("\ud800", "holds a character that is not shown"),
        (" a", "begins or ends with a space"),
        ("a.", "ends with a point"),
        ("NUL", "is the name of a device on Windows"),
        ("com1.txt", "is the name of a device on Windows"),
        ("a" * 201, "is longer than 200 characters"),
        ("人" * 86, "or 255 bytes"),
    ],
)
def test_a_label_that_cannot_is_refused_in_one_line(label, reason):
    with pytest.raises(CollectionError) as caught:
        check_label(label)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; a label names a folder, such as forklift")
    assert str(caught.value).isprintable()


# What is saved.


def test_the_region_is_saved_with_its_very_pixels(collected):
    frame = Frame(noise(1), "bgr8", (0.25, 0.5, 0.5, 0.25))
    assert collected.add("a", "first", frame, ALL) is Outcome.SAVED
    saved = read_image(collected.folder / "a" / "first.png")
    assert np.array_equal(saved, noise(1)[20:30, 15:45, ::-1])
    assert np.array_equal(prepare(Frame(saved), SEEN), prepare(frame, SEEN))


@pytest.mark.parametrize(
    ("encoding", "order"), [("rgb8", [0, 1, 2]), ("rgba8", [0, 1, 2]), ("bgra8", [2, 1, 0])]
)
def test_colours_keep_their_places(collected, encoding, order):
    pixels = noise(2, channels=len(encoding) - 1)
    collected.add("a", "0", Frame(pixels, encoding), ALL)
    assert np.array_equal(read_image(collected.folder / "a" / "0.png"), pixels[..., order])


def test_a_grey_frame_is_saved_grey():
    pixels = noise(3, channels=1)
    content = np.frombuffer(encode(Frame(pixels, "mono8")), np.uint8)
    assert np.array_equal(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), pixels[..., 0])


def test_names_are_in_the_order_of_their_stamps():
    stamps = [0, 999_999_999, 1_000_000_000, 9_000_000_001, 10_000_000_000, 1_700_000_000_123_456_789]
    names = [stamp_name(stamp) for stamp in stamps]
    assert names == sorted(names)
    assert names[-1] == "1700000000.123456789"


def test_a_frame_that_has_been_saved_is_known(collected):
    assert collected.add("a", "0", Frame(noise(0)), ALL) is Outcome.SAVED
    assert collected.add("a", "0", Frame(noise(1)), ALL) is Outcome.KNOWN
    assert collected.add("b", "0", Frame(noise(1)), ALL) is Outcome.SAVED
    assert collected.counts == {"a": 1, "b": 1}
    assert np.array_equal(read_image(collected.folder / "a" / "0.png"), noise(0))


# Near-duplicates.


def test_the_difference_is_that_of_the_part_that_differs_most():
    black = np.zeros((32, 32, 3), np.uint8)
    even, spot = black + 3, black.copy()
    spot[8:16, 24:32] = 90  # exactly one of the sixteen parts
    assert difference(black, np.stack([black, even, spot])).tolist() == [0.0, 3.0, 90.0]
    # Without a wrap where the one is darker than the other.
    assert difference(black + 200, black[None]).tolist() == [200.0]


def test_what_is_nearly_a_recent_image_of_its_label_is_left_out(collected):
    limits = Limits(difference=10.0)
    became = [
        collected.add("a", str(n), grey(level), limits) for n, level in enumerate([100, 109, 91, 110, 100])
    ]
    assert became == [Outcome.SAVED, Outcome.DUPLICATE, Outcome.DUPLICATE, Outcome.SAVED, Outcome.DUPLICATE]
    assert collected.add("b", "9", grey(100), limits) is Outcome.SAVED  # another label


def test_only_the_newest_images_are_compared_with(collected):
    limits = Limits(difference=1.0)
    for level in range(RECENT + 1):
        assert collected.add("a", f"{level:03}", grey(level), limits) is Outcome.SAVED
    assert collected.add("a", "again", grey(1), limits) is Outcome.DUPLICATE
    assert collected.add("a", "forgotten", grey(0), limits) is Outcome.SAVED


def test_noise_of_a_camera_that_stands_still_is_left_out():
    """What a sensor adds to a picture is far below what is asked for by default."""
    rng = np.random.default_rng(0)
    still = noise(0, 480, 640).astype(float)
    shots = [
        prepare(Frame(np.clip(still + rng.normal(0, 10, still.shape), 0, 255).astype(np.uint8)), SEEN)
        for _ in range(5)
    ]
    assert difference(shots[0], np.stack(shots[1:])).max() < module.DIFFERENCE / 4


# A folder that is there.


def test_a_folder_is_gone_on_with(tmp_path):
    first = Collection(tmp_path)
    first.add("a", "0", grey(10), ALL)
    first.add("b", "1", Frame(noise(0)), ALL)
    (tmp_path / "b" / "notes.txt").write_text("none of ours")
    (tmp_path / "b" / "2.png").write_bytes(b"no image")
    again = Collection(tmp_path)
    assert again.counts == {"a": 1, "b": 2}
    assert again.bytes == first.bytes + len(b"no image")
    limits = Limits(difference=10.0)
    assert again.add("a", "5", grey(11), limits) is Outcome.DUPLICATE
    assert again.add("b", "5", Frame(noise(0)), limits) is Outcome.DUPLICATE


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CollectionError, match="file: cannot be used: .*; name another folder"):
        Collection(tmp_path / "file")
    with pytest.raises(CollectionError, match="holds no folders.*; images are collected in an empty folder"):
        Collection(tmp_path)


# Limits, and disks.


def test_a_folder_holds_so_many_images(collected):
    limits = Limits(0.0, images=2)
    assert [collected.add("a", str(n), Frame(noise(n)), limits) for n in range(3)] == [
        Outcome.SAVED,
        Outcome.SAVED,
        Outcome.FULL,
    ]
    assert len(list(collected.folder.rglob("*.png"))) == len(collected) == 2
    assert collected.add("a", "2", Frame(noise(2)), ALL) is Outcome.SAVED


def test_a_folder_holds_so_many_bytes(collected):
    size = len(encode(Frame(noise(0))))
    for limit, outcome in [(size - 1, Outcome.FULL), (size, Outcome.SAVED), (size, Outcome.FULL)]:
        assert collected.add("a", "0", Frame(noise(0)), Limits(0.0, bytes=limit)) is outcome
    assert collected.bytes == size


def test_a_file_that_cannot_be_written_costs_that_image(collected, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*0\.png"):
            collected.add("a", "0", grey(10), Limits())
    assert [path for path in collected.folder.rglob("*") if path.is_file()] == []
    assert (len(collected), collected.bytes) == (0, 0)
    # It was not saved, so it is no duplicate.
    assert collected.add("a", "1", grey(10), Limits()) is Outcome.SAVED


def test_counts_in_words():
    assert in_words({}) == "no images"
    assert in_words({"b": 2, "a": 2, "c": 30}) == "30 c, 2 a, 2 b"
