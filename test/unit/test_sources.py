"""Frame sources on real files: made here, and the recordings of the development data where they are."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import sys
from typing import ClassVar

import cv2
import numpy as np
import pytest
from recordings import (
    COMPRESSED,
    IMAGE,
    STORE,
    compressed_message,
    damage_chunks,
    raw_message,
    record,
)

from bnn_perception.frames.messages import CLASSIFICATION, HYPOTHESIS, header
from bnn_perception.frames.source import CompressedImage, RawImage, SourceError
from bnn_perception.frames.sources import open_source
from bnn_perception.scenes.drive import Scene
from bnn_perception.scenes.signs import ROAD_SIGNS


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture
def warnings():
    return []


def pixels(image: RawImage) -> np.ndarray:
    return image.data.reshape(image.height, image.step)[:, : image.width * 3].reshape(
        image.height, image.width, 3
    )


# -- folders


def test_folder_is_sorted_and_recursive(tmp_path, picture):
    for name in ("b/2.png", "b/1.png", "a.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text") if path.suffix == ".txt" else cv2.imwrite(str(path), picture)
    frames = list(open_source(str(tmp_path)))
    assert [frame.name for frame in frames] == [
        str(tmp_path / name) for name in ("a.png", "b/1.png", "b/2.png")
    ]
    assert [frame.stamp for frame in frames] == [0, 100_000_000, 200_000_000]
    assert [frame.truth for frame in frames] == [None] * 3  # a.png lies beside the only folder: no classes
    image = frames[0].image
    assert (image.height, image.width, image.encoding, image.step) == (24, 32, "rgb8", 96)
    assert np.array_equal(pixels(image), picture[..., ::-1])


def test_class_folders_give_the_truth(tmp_path, picture):
    for name in ("stop/1.png", "yield/1.png", "yield/wet/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture)
    assert [frame.truth for frame in open_source(str(tmp_path))] == ["stop", "yield", "yield"]


def test_one_image_is_a_source(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    assert len(list(open_source(str(tmp_path / "a.png")))) == 1


def test_unreadable_image_costs_that_image(tmp_path, picture, warnings):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    cv2.imwrite(str(tmp_path / "c.png"), picture)
    source = open_source(str(tmp_path), warn=warnings.append)
    assert len(list(source)) == 2
    assert source.refused == 1
    assert len(warnings) == 1
    assert "b.png" in warnings[0]


def test_loop_goes_on_with_rising_stamps(tmp_path, picture):
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    stamps = [frame.stamp for frame in itertools.islice(open_source(str(tmp_path), loop=True), 7)]
    assert stamps == [index * 100_000_000 for index in range(7)]


def test_one_image_in_a_loop_comes_at_the_rate_of_a_folder(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "a.PNG"), picture)
    frames = list(itertools.islice(open_source(str(tmp_path / "a.PNG"), loop=True), 3))
    assert [frame.stamp for frame in frames] == [0, 100_000_000, 200_000_000]
    assert {frame.name for frame in frames} == {str(tmp_path / "a.PNG")}
    assert {frame.truth for frame in frames} == {None}


@pytest.mark.parametrize("files", [["a/1.png"], ["a/1.png", "a/2.png"], ["a/1.png", "b/2.png", "3.png"]])
def test_folders_that_are_no_classes_give_no_truth(tmp_path, picture, files):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / file), picture)
    frames = list(open_source(str(tmp_path)))
    assert [frame.truth for frame in frames] == [None] * len(files)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, picture, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    assert len(list(open_source("~/a.png"))) == 1


def test_folder_without_a_readable_image_ends_even_in_a_loop(tmp_path, warnings):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match="not one frame could be read"):
        list(open_source(str(tmp_path), loop=True, warn=warnings.append))
    assert len(warnings) == 1


# -- videos


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 48))
    assert writer.isOpened()
    for level in range(0, 250, 10):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return path


def test_video_plays_at_its_rate(video):
    frames = list(open_source(str(video)))
    assert [frame.stamp for frame in frames] == [index * 50_000_000 for index in range(25)]
    assert frames[0].image.encoding == "bgr8"
    levels = [int(frame.image.data.mean()) for frame in frames]
    assert levels == pytest.approx(
        list(range(0, 250, 10)), abs=4
    )  # JPEG keeps a uniform level to a few units


def test_video_in_a_loop_goes_on_at_its_rate(video):
    frames = list(itertools.islice(open_source(str(video.rename(video.with_suffix(".AVI"))), loop=True), 60))
    assert [frame.stamp for frame in frames] == [index * 50_000_000 for index in range(60)]
    assert frames[26].name.endswith("clip.AVI#1")


def test_video_that_is_cut_short_plays_as_far_as_it_goes(video, warnings):
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 7 // 10])
    source = open_source(str(video), warn=warnings.append)
    assert 10 <= len(list(source)) < 20
    assert source.refused == 1
    assert "damaged or cut short" in warnings[0]


def test_file_that_is_no_video_is_refused(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video" * 100)
    with pytest.raises(SourceError, match=r"clip\.mp4: is not a video"):
        open_source(str(path))


# -- cameras


class Camera:
    """What cv2.VideoCapture is to a camera that delivers three pictures and is then unplugged."""

    opened: ClassVar[list[int]] = []

    def __init__(self, index):
        self.opened.append(index)
        self.settings = {}
        self.left = 3

    def isOpened(self):  # noqa: N802
        return True

    def set(self, key, value):
        self.settings[key] = value

    def read(self):
        # A driver that keeps several pictures would give old ones.
        assert self.settings[cv2.CAP_PROP_BUFFERSIZE] == 1
        self.left -= 1
        return self.left >= 0, np.full((4, 6, 3), max(0, self.left), np.uint8)


@pytest.mark.parametrize(("uri", "index"), [("webcam", 0), ("webcam:2", 2), ("/dev/video13", 13)])
def test_webcam_delivers_until_it_is_unplugged(monkeypatch, uri, index):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    source = open_source(uri, loop=True)
    assert Camera.opened.pop() == index
    assert source.live
    frames = iter(source)
    taken = [next(frames) for _ in range(3)]
    assert [frame.name for frame in taken] == [f"{uri}#{index}" for index in range(3)]
    assert [int(frame.image.data[0]) for frame in taken] == [2, 1, 0]
    assert {frame.image.encoding for frame in taken} == {"bgr8"}
    stamps = [frame.stamp for frame in taken]
    assert sorted(set(stamps)) == stamps
    with pytest.raises(SourceError, match=f"{uri}: the camera stopped delivering after 3 frames"):
        next(frames)


# -- recordings


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compress", [None, "MESSAGE", "FILE"])
def test_recorded_image_comes_back_bit_for_bit(tmp_path, picture, storage, compress):
    message = raw_message(picture)
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [message, message])}, storage, compress)
    frames = list(open_source(str(path)))
    assert [frame.stamp for frame in frames] == [1_000_000_000, 1_040_000_000]
    for frame in frames:
        assert frame.frame_id == "front"
        assert frame.truth is None
        image = frame.image
        assert (image.height, image.width, image.encoding) == (24, 32, "bgr8")
        assert (image.is_bigendian, image.step) == (1, 101)
        assert np.array_equal(image.data, message.data)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_file_without_its_folder_is_enough(tmp_path, picture, storage):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)])}, storage, "MESSAGE")
    file = next(entry for entry in path.iterdir() if entry.suffix in (".mcap", ".db3"))
    alone = file.rename(tmp_path / file.name)
    frames = list(open_source(str(alone)))  # nothing but the bytes tells that messages are compressed
    assert len(frames) == 1
    assert frames[0].image.step == 101


def test_compressed_images_stay_compressed_unless_asked(tmp_path, picture):
    message = compressed_message(picture)
    path = record(tmp_path / "bag", {"/camera/compressed": (COMPRESSED, [message])})
    (frame,) = open_source(str(path))
    assert isinstance(frame.image, CompressedImage)
    assert frame.image.format == "png"
    assert np.array_equal(frame.image.data, message.data)
    (frame,) = open_source(str(path), decode=True)
    assert isinstance(frame.image, RawImage)
    assert frame.image.encoding == "bgr8"
    assert np.array_equal(pixels(frame.image), picture)


def test_a_compressed_image_is_decoded_as_its_format_says(tmp_path, picture, warnings):
    """The order of its colours as image_transport stores it; depths are no picture."""
    data = cv2.imencode(".png", picture)[1].reshape(-1)
    messages = [
        STORE.types[COMPRESSED](header=header(7, "front"), format=text, data=data)
        for text in (
            "rgb8; png compressed rgb8",
            "rgb8; png compressed bgr8",
            "16UC1; png compressed ",
            "\x1b" * 500,
        )
    ]
    path = record(tmp_path / "bag", {"/camera": (COMPRESSED, [*messages, b"\0\1\0\0"])})
    frames = list(open_source(str(path), decode=True, warn=warnings.append))
    assert [frame.image.encoding for frame in frames] == ["rgb8", "bgr8", "bgr8"]
    assert "format '16UC1; png compressed ' holds no colours (a depth image?)" in warnings[0]
    empty = STORE.types[COMPRESSED](header=header(7, "front"), format="\x1b" * 500, data=data[:0])
    path = record(tmp_path / "other", {"/camera": (COMPRESSED, [messages[0], empty])})
    list(open_source(str(path), decode=True, warn=warnings.append))
    assert warnings[-1].isprintable()
    assert len(warnings[-1]) < 600


def test_what_a_recording_yields_is_said_beforehand(tmp_path, picture):
    raw = record(tmp_path / "raw", {"/camera": (IMAGE, [raw_message(picture)])})
    packed = record(tmp_path / "packed", {"/camera": (COMPRESSED, [compressed_message(picture)])})
    assert not open_source(str(raw)).compressed
    assert open_source(str(packed)).compressed
    assert not open_source(str(packed), decode=True).compressed
    assert not open_source(str(packed)).live


def test_recording_in_a_loop_goes_on_at_its_pace(tmp_path, picture, warnings):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)] * 3)})
    frames = list(itertools.islice(open_source(str(path), loop=True, warn=warnings.append), 7))
    assert [frame.stamp for frame in frames] == [1_000_000_000 + index * 40_000_000 for index in range(7)]
    assert [frame.name for frame in frames[:4]] == [f"{path}:/camera#{index}" for index in (0, 1, 2, 0)]
    assert warnings == []  # there is one topic: nothing to choose


def test_types_may_be_written_as_older_recorders_did(tmp_path, picture):
    from rosbags.rosbag2 import StoragePlugin, Writer

    message = STORE.serialize_cdr(raw_message(picture), IMAGE)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = [
            writer.add_connection(topic, kind, msgdef="of an image", rihs01="RIHS01_0")
            for topic, kind in (("/old", "sensor_msgs/Image"), ("/other", "my_msgs/Image"))
        ]
        for connection in (*connections, connections[1]):
            writer.write(connection, 1, message)
    (frame,) = open_source(str(tmp_path / "bag"))
    assert frame.image.step == 101
    with pytest.raises(SourceError, match="no images on '/other'; it holds /old$"):
        open_source(str(tmp_path / "bag"), topic="/other")


def test_a_message_that_unpacks_to_too_much_costs_that_message(tmp_path, picture, warnings):
    """3e8 bytes, a picture of 100 megapixels, are unpacked, and no more: zeros take a ten-thousandth of that here."""
    zstd = pytest.importorskip("backports.zstd")
    good = raw_message(picture)
    bomb = bytes(zstd.compress(bytes(300_000_001)))
    cut = bytes(zstd.compress(bytes(STORE.serialize_cdr(good, IMAGE)))[:-10])
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [bomb, cut, good])})
    source = open_source(str(path), warn=warnings.append)
    assert [frame.name for frame in source] == [f"{path}:/camera#2"]
    reason = "is cut short, or unpacks to more than 300000000 bytes"
    assert warnings == [f"{path}:/camera#{index}: {reason}" for index in range(2)]


def test_topic_is_chosen_or_the_fullest_is_taken(tmp_path, picture, warnings):
    raw, packed = raw_message(picture), compressed_message(picture)
    path = record(tmp_path / "bag", {"/left": (IMAGE, [raw]), "/right": (COMPRESSED, [packed] * 2)})
    assert len(list(open_source(str(path), topic="/left", warn=warnings.append))) == 1
    assert warnings == []
    other = record(tmp_path / "other", {"/left": (IMAGE, [raw] * 2), "/right": (IMAGE, [raw])})
    assert len(list(open_source(str(other)))) == 2
    assert len(list(open_source(str(path), warn=warnings.append))) == 2
    assert "plays /right" in warnings[0]
    assert "/left" in warnings[0]
    with pytest.raises(SourceError, match=r"no images on '/middle'; it holds /left, /right"):
        open_source(str(path), topic="/middle")


def test_a_depth_image_is_not_taken_for_a_picture(tmp_path, picture, warnings):
    """Equally many of both; the name of depth comes first, and is the larger one too."""
    depth = raw_message(picture, encoding="16UC1")
    for name in ("/camera/a_depth", "/camera/z_depth"):
        path = record(
            tmp_path / name[8:],
            {name: (IMAGE, [depth] * 3), "/camera/color": (IMAGE, [raw_message(picture)] * 2)},
        )
        frames = list(open_source(str(path), warn=warnings.append))
        assert {frame.image.encoding for frame in frames} == {"bgr8"}
        assert f"plays /camera/color; name a topic for another: {name}" in warnings[-1]
        assert {f.image.encoding for f in open_source(str(path), topic=name)} == {"16UC1"}


def test_a_topic_without_messages_says_so(tmp_path):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [])})
    with pytest.raises(SourceError, match="no image was recorded on any of /camera; was the camera on?"):
        open_source(str(path))
    with pytest.raises(SourceError, match="no image was recorded on /camera; was the camera on?"):
        open_source(str(path), topic="/camera")


def test_a_recording_that_is_compressed_as_a_whole_says_how_to_unpack_it(tmp_path):
    (tmp_path / "r_0.db3.zstd").write_bytes(b"")
    with pytest.raises(
        SourceError, match="r_0.db3.zstd: is compressed as a whole; unpack it: unzstd r_0.db3.zstd"
    ):
        open_source(str(tmp_path / "r_0.db3.zstd"))
    with pytest.raises(
        SourceError, match="unpack one, such as 'unzstd r_0.db3.zstd', and name the file itself"
    ):
        open_source(str(tmp_path))


def test_metadata_without_a_storage_identifier_names_the_file_to_play(tmp_path, picture):
    """What `ros2 bag reindex` leaves on Humble."""
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)])})
    metadata = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(
        metadata.replace("storage_identifier: mcap", 'storage_identifier: ""')
    )
    with pytest.raises(SourceError, match=r"name the file itself: .*bag.mcap"):
        open_source(str(path))
    assert len(list(open_source(str(path / "bag.mcap")))) == 1


def test_a_recording_of_another_tool_is_named(tmp_path, picture):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)])}) / "bag.mcap"
    path.write_bytes(path.read_bytes().replace(b"\x04\0\0\0ros2", b"\x04\0\0\0ros1"))
    with pytest.raises(
        SourceError, match="was not recorded by ROS 2; one of ROS 1 is converted by 'rosbags-convert"
    ):
        open_source(str(path))


def test_broken_message_costs_that_message(tmp_path, picture, warnings):
    good = raw_message(picture)
    whole = bytes(STORE.serialize_cdr(good, IMAGE))
    path = record(
        tmp_path / "bag", {"/camera": (IMAGE, [good, whole[:90], b"\x28\xb5\x2f\xfd" + bytes(30), good])}
    )
    source = open_source(str(path), warn=warnings.append)
    assert [frame.stamp for frame in source] == [1_000_000_000, 1_120_000_000]
    assert source.refused == 2
    assert len(warnings) == 2
    assert "/camera#1" in warnings[0]
    assert "/camera#2" in warnings[1]


def test_undecodable_image_costs_that_image(tmp_path, picture, warnings):
    good, bad, empty = (compressed_message(picture) for _ in range(3))
    bad.data = np.arange(50, dtype=np.uint8)
    empty.data = np.zeros(0, np.uint8)
    path = record(tmp_path / "bag", {"/camera": (COMPRESSED, [bad, empty, good])})
    source = open_source(str(path), decode=True, warn=warnings.append)
    assert len(list(source)) == 1
    assert source.refused == 2


def test_recording_that_is_cut_short_is_refused_with_the_remedy(tmp_path, picture):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)] * 3)})
    (file,) = path.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-200])
    for uri in (path, file):
        with pytest.raises(SourceError, match="mcap recover"):
            open_source(str(uri))


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("damaged", [(1,), (0,), (0, 2), (3,)])
def test_a_damaged_chunk_costs_its_images(tmp_path, warnings, damaged, folder):
    """Chunks of a megabyte hold two images of 600 kB each."""
    pictures = np.random.default_rng(2).integers(0, 256, (8, 400, 500, 3), dtype=np.uint8)
    path = record(
        tmp_path / "bag", {"/camera": (IMAGE, [raw_message(each) for each in pictures])}, compress="STORAGE"
    )
    (file,) = path.glob("*.mcap")
    assert damage_chunks(file, *damaged) == 4
    source = open_source(str(path if folder else file), warn=warnings.append)
    played = [
        np.asarray(frame.image.data).reshape(400, -1)[:, :1500].reshape(400, 500, 3) for frame in source
    ]
    left = [picture for index, picture in enumerate(pictures) if index // 2 not in damaged]
    assert len(played) == len(left)
    assert all(np.array_equal(one, other) for one, other in zip(played, left))
    assert source.refused == 1
    assert f"{2 * len(damaged)} messages lie in damaged chunks and are lost" in warnings[0]


def test_messages_of_one_stamp_are_played_once_where_a_chunk_is_damaged(tmp_path, warnings):
    """Two topics of the same type and stamps, of which one is played; its last stamp before the damage comes again."""
    pictures = np.random.default_rng(2).integers(0, 256, (8, 400, 500, 3), dtype=np.uint8)
    messages = [raw_message(each) for each in pictures]
    path = record(tmp_path / "bag", {"/a": (IMAGE, messages), "/b": (IMAGE, messages)}, compress="STORAGE")
    (file,) = path.glob("*.mcap")
    damage_chunks(file, 6)  # of the second topic
    source = open_source(str(path), topic="/b", warn=warnings.append)
    assert len(list(source)) == 6
    assert "2 messages lie in damaged chunks" in warnings[-1]
    assert len(list(open_source(str(path), topic="/a", warn=warnings.append))) == 8


def test_damage_is_counted_in_every_pass(tmp_path, warnings):
    """Of the images too, though the truths in the same chunk are read before them."""
    pictures = np.random.default_rng(2).integers(0, 256, (8, 400, 500, 3), dtype=np.uint8)
    messages = [raw_message(each, stamp=index) for index, each in enumerate(pictures)]
    truths = [classification("stop", index) for index in range(8)]
    topics = {"/camera": (IMAGE, messages), "/truth": (CLASSIFICATION, truths)}
    path = record(tmp_path / "bag", topics, compress="STORAGE")
    (file,) = path.glob("*.mcap")
    damage_chunks(file, 1)
    source = open_source(str(path), warn=warnings.append)
    for _ in range(2):
        assert [frame.truth for frame in source] == ["stop"] * 6
        assert [line.split(": ")[1].split(" ")[0] for line in warnings] == ["2"]
        warnings.clear()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_cut_file_does_not_cost_the_others(tmp_path, picture, storage, warnings):
    """A recording in two files whose last one was cut when the robot's battery was empty."""
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)] * 3)}, storage)
    (first,) = [file for file in path.iterdir() if file.suffix in (".mcap", ".db3")]
    second = first.with_name(f"later{first.suffix}")
    second.write_bytes(first.read_bytes()[: 200 if storage == "mcap" else 50])
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    assert text.count(f"- {first.name}\n") == 1
    metadata.write_text(text.replace(f"- {first.name}\n", f"- {first.name}\n  - {second.name}\n"))
    source = open_source(str(path), warn=warnings.append)
    assert len(list(source)) == 3
    assert f"{second}: cannot be opened as a recording" in warnings[0]
    assert warnings[0].endswith(f"the other files of {path} are played")


def test_damage_in_the_middle_ends_the_recording(tmp_path, picture, warnings):
    """The index is whole, so that the recording opens; the data of its messages is not."""
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)] * 3)}, "sqlite3")
    (file,) = path.glob("*.db3")
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("ALTER TABLE messages RENAME COLUMN data TO lost")
    source = open_source(str(path), warn=warnings.append)
    with pytest.raises(SourceError, match="not one frame could be read"):
        list(source)
    assert source.refused == 1
    assert "ends after 0 messages" in warnings[0]


def test_recording_without_rosbags_says_what_to_install(tmp_path, picture, monkeypatch):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)])})
    monkeypatch.setitem(sys.modules, "rosbags.rosbag2", None)
    with pytest.raises(SourceError, match="reading recordings takes rosbags: pip install 'rosbags"):
        open_source(str(path))


def test_recording_without_images_is_refused(tmp_path):
    kind = "std_msgs/msg/Header"
    path = record(tmp_path / "bag", {"/heartbeat": (kind, [header(7, "front")])})
    with pytest.raises(SourceError, match=r"holds no topic of sensor_msgs .* /heartbeat"):
        open_source(str(path))


def test_recording_folder_without_metadata_names_the_remedy(tmp_path, picture):
    path = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(picture)])})
    (path / "metadata.yaml").unlink()
    with pytest.raises(SourceError, match="reindex"):
        open_source(str(path))


# -- the truth


def classification(label, stamp):
    results = [STORE.types[HYPOTHESIS](class_id=each, score=1.0) for each in label.split()]
    return STORE.types[CLASSIFICATION](header=header(stamp, "front"), results=results)


def test_a_recording_tells_the_truth_by_the_stamps_of_headers(tmp_path, picture, warnings):
    """As the camera node publishes it; frame 3 has two truths, frame 4 an empty one and frame 5 none."""
    images = [raw_message(picture, stamp=stamp) for stamp in range(6)]
    truths = [
        *(classification(name, stamp) for name, stamp in (("yield", 1), ("stop", 0), ("stop sign", 2))),
        *(classification(name, stamp) for name, stamp in (("stop", 3), ("yield", 3), ("", 4))),
        b"\0\1\0\0",
    ]
    path = record(tmp_path / "bag", {"/image": (IMAGE, images), "/camera/truth": (CLASSIFICATION, truths)})
    source = open_source(str(path), warn=warnings.append)
    assert [frame.truth for frame in source] == ["stop", "yield", "stop", None, None, None]
    assert source.truth_topic == "/camera/truth"
    assert source.refused == 1
    assert "/camera/truth: " in warnings[0]


def test_of_several_truths_one_is_named(tmp_path, picture):
    image = raw_message(picture, stamp=1)
    topics = {
        name: (CLASSIFICATION, [classification(name, 1)]) for name in ("/a/truth", "/b/truth", "/labels")
    }
    path = record(tmp_path / "bag", {"/image": (IMAGE, [image]), **topics})
    assert [frame.truth for frame in open_source(str(path))] == [None]
    for name in topics:
        assert [frame.truth for frame in open_source(str(path), truth=name)] == [name]
    with pytest.raises(
        SourceError,
        match="no vision_msgs/Classification on '/image'; topics with them: /a/truth, /b/truth, /labels",
    ):
        open_source(str(path), truth="/image")


# -- recordings and clips of real cameras


@pytest.mark.parametrize("name", ["bag_09747_mcap", "bag_09747_mcap/bag_09747_mcap.mcap"])
def test_recording_of_a_traffic_camera(data, name):
    frames = list(open_source(str(data(f"camera/{name}"))))
    assert len(frames) == 115
    assert all(frame.image.format == "jpeg" for frame in frames)
    assert frames[-1].stamp - frames[0].stamp == 9_120_000_000
    image = frames[57].image.decode()
    assert (image.height, image.width) == (288, 352)
    assert image.data.std() > 20  # a picture, not a grey field


def test_recording_of_a_robot(data):
    """Its messages are compressed one by one, and its type is written without /msg."""
    frames = list(open_source(str(data("camera/soccer_goal_12.mcap"))))
    assert [(frame.image.width, frame.image.height, frame.image.encoding) for frame in frames] == [
        (640, 480, "rgb8")
    ] * 2
    assert all(frame.image.data.size == frame.image.step * 480 for frame in frames)


def test_clip_of_a_traffic_camera(data):
    clip = sorted(data("camera/clips").glob("*.mp4"))[0]
    source = open_source(str(clip))
    frames = list(source)
    assert source.refused == 0
    assert len(frames) > 150
    assert frames[1].stamp == 40_000_000  # 25 frames a second


# -- the scene, and addresses


def test_scene_knows_the_truth():
    frames = list(itertools.islice(open_source("scene:4", width=160, height=120), 40))
    scene = Scene(4, 160, 120)
    for frame in frames:
        expected, class_id = scene.next()
        assert frame.truth == ROAD_SIGNS[class_id]
        assert frame.image.encoding == "rgb8"
        assert np.array_equal(pixels(frame.image), expected)
    assert frames[30].stamp == 1_000_000_000


def test_scene_has_a_seed_and_a_size():
    image = next(iter(open_source("scene"))).image
    assert (image.width, image.height) == (640, 480)
    assert np.array_equal(pixels(image), Scene(0, 640, 480).next()[0])


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("a" * 5000, "File name too long"),
        ("", "no such file or folder; a source is scene"),
        ("nowhere", "'nowhere': no such file or folder"),
        ("scene:", "the seed ''"),
        ("scene:-1", "the seed '-1'"),
        ("webcam:front", "the index 'front'"),
        ("webcam:97", "camera 97 cannot be opened"),
        ("/dev/video97", "camera 97 cannot be opened"),
    ],
)
def test_address_that_leads_nowhere(uri, reason):
    with pytest.raises(SourceError, match=reason) as refusal:
        open_source(uri)
    assert "\n" not in str(refusal.value)


def test_other_files_are_refused(tmp_path):
    for name, reason in (("a.bag", "ROS 1"), ("a.txt", r"ending '\.txt'"), ("a", "ending ''")):
        (tmp_path / name).write_text("text")
        with pytest.raises(SourceError, match=reason):
            open_source(str(tmp_path / name))


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no images"):
        open_source(str(tmp_path))
