"""The command replay: what it labels, what it writes, and what it says of frames that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from models import PURE, colours_model
from recordings import (
    COMPRESSED,
    IMAGE,
    STORE,
    compressed_message,
    damage_chunks,
    detections,
    raw_message,
    record,
)

from bnn_perception.__main__ import main
from bnn_perception.cli import label_files, replay
from bnn_perception.frames.messages import CLASSIFICATION, DETECTIONS, LABEL_INFO, VISION_MSGS, message_types
from bnn_perception.net.folder import save_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "colours"
    save_model(colours_model(), folder)
    return folder


def picture(colour: str) -> np.ndarray:
    """(20, 30, 3) BGR of one colour."""
    return np.full((20, 30, 3), PURE[colour][::-1], np.uint8)


def images(*names, pack=raw_message, first=100):
    """Messages of one colour each, their headers a nanosecond over whole seconds apart."""
    return [pack(picture(name), stamp=(first + index) * 10**9 + 1) for index, name in enumerate(names)]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def run(colours, capsys):
    """A function that runs the command, and gives its exit code, output and errors."""

    def call(*arguments):
        code = main(["replay", *map(str, arguments), "--model", str(colours), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_every_frame_of_every_camera_gets_a_row_in_the_order_of_recording(tmp_path, run, storage):
    """Forty frames: more than one batch and than what is made ready ahead."""
    names = [name for name in ("red", "green", "blue", "blue") for _ in range(5)]
    bag = record(
        tmp_path / "bag",
        {
            "/left/image_raw": (IMAGE, images(*names)),
            "/right/image/compressed": (COMPRESSED, images(*names[::-1], pack=compressed_message, first=500)),
        },
        storage,
    )
    code, out, err = run(bag, "--top", 2)
    assert code == 0
    rows = rows_of(out)
    assert list(rows[0]) == ["topic", "stamp", "recorded", "label", "score", "label_2", "score_2"]
    times = [float(row["recorded"]) for row in rows]
    assert times == sorted(times)
    for topic, labels, first in (
        ("/left/image_raw", names, 100),
        ("/right/image/compressed", names[::-1], 500),
    ):
        mine = [row for row in rows if row["topic"] == topic]
        assert [row["label"] for row in mine] == labels
        assert [row["stamp"] for row in mine] == [f"{first + index}.000000001" for index in range(20)]
        assert [row["recorded"] for row in mine] == [f"1.{40 * index:03d}000000" for index in range(20)]
    assert float(rows[0]["score"]) == pytest.approx(0.964664, abs=2e-6)  # e^3 / (e^3 + 2 e^-1)
    assert float(rows[0]["score_2"]) == pytest.approx(0.017668, abs=2e-6)
    assert "colours, cpu_binary on " in err
    assert "/left/image_raw: 20 frames, 20 labels\n" in err
    assert "40 labels, " in err
    assert "frames/s" in err


def test_labels_are_those_of_the_classifier(tmp_path, run, colours):
    """Frames are brought to the model's input before they wait: no pixel may differ for it."""
    import bnn_perception

    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (30, 41, 3), dtype=np.uint8) for _ in range(20)]
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, [raw_message(each) for each in pictures])})
    _, out, _ = run(bag, "--top", 3, "--region", 0.2, 0.1, 0.5, 0.7)
    with bnn_perception.load_classifier(str(colours), device="cpu") as classifier:
        for row, each in zip(rows_of(out), pictures):
            frame = bnn_perception.Frame(each, "bgr8", (0.2, 0.1, 0.5, 0.7))
            expected = classifier.predict(frame, 3)
            assert [row["label"], row["label_2"], row["label_3"]] == [p.label for p in expected]
            assert float(row["score"]) == pytest.approx(expected[0].score, abs=1e-6)


def test_a_topic_is_labelled_by_itself(tmp_path, run):
    bag = record(tmp_path / "bag", {f"/{name}": (IMAGE, images(name)) for name in PURE})
    _, out, _ = run(bag, "--topic", "/blue", "--topic", "/red")
    assert {(row["topic"], row["label"]) for row in rows_of(out)} == {("/blue", "blue"), ("/red", "red")}
    code, out, err = run(bag, "--topic", "/grey")
    assert (code, out) == (1, "")
    assert "holds no images on '/grey'; it holds /blue, /green, /red" in err


def test_a_camera_is_labelled_once_and_depths_are_left_out(tmp_path, run):
    raw, packed = images("red"), images("red", "red", pack=compressed_message)
    topics = {
        "/a/image": (IMAGE, raw),
        "/a/image/compressed": (COMPRESSED, packed),
        "/depth": (IMAGE, [raw_message(picture("red"), encoding="16UC1")]),
        "/none": (IMAGE, []),
    }
    bag = record(tmp_path / "bag", topics)
    code, out, err = run(bag)
    assert code == 0
    assert [row["topic"] for row in rows_of(out)] == ["/a/image/compressed"] * 2
    assert "/depth is left out: its images hold no colours" in err
    assert "/a/image is left out: it is of the same camera as /a/image/compressed; --topic takes it" in err
    assert [row["topic"] for row in rows_of(run(bag, "--topic", "/a/image")[1])] == ["/a/image"]
    topics["/a/image"] = (IMAGE, raw * 2)  # as many: raw
    assert {row["topic"] for row in rows_of(run(record(tmp_path / "other", topics))[1])} == {"/a/image"}
    code, out, err = run(record(tmp_path / "depth", {"/depth": topics["/depth"]}))
    assert (code, out) == (1, "")
    assert "its images hold no colours (depth images?): /depth" in err


def test_frames_that_cannot_be_read_cost_themselves(tmp_path, run):
    good, short, odd = images("red", "green", "blue")
    short.data = short.data[:-1]
    odd.encoding = "thermal"
    cut = bytes(STORE.serialize_cdr(good, IMAGE))[:50]
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, [good, short, odd, cut, *[cut] * 6, good])})
    out_file = tmp_path / "labels.csv"
    code, out, err = run(bag, "--out", out_file, "--json")
    assert code == 1  # as classify says that not all were labelled
    assert [row["label"] for row in rows_of(out_file.read_text())] == ["red", "red"]
    lines = err.splitlines()
    assert any("/camera#1: 1899 bytes of data in an image of 20 rows of 95 bytes" in line for line in lines)
    assert any("/camera#2: encoding 'thermal' needs cv_bridge" in line for line in lines)
    named = [line for line in lines if "a message that cannot be read" in line]
    assert [line.split(":")[1] for line in named] == [f" /camera#{index}" for index in range(3, 8)]
    assert named[-1].endswith("; further ones are counted, not named")
    assert "/camera: 11 frames, 2 labels, 9 refused (7 undecodable, 1 data length, 1 encoding)" in err
    summary = json.loads(out)
    assert (summary["frames"], summary["labels"]) == (11, 2)
    assert summary["refused"] == {"undecodable": 7, "data length": 1, "encoding": 1}
    assert summary["topics"]["/camera"]["labels"] == 2
    assert summary["interrupted"] is False


def test_messages_in_damaged_chunks_are_counted(tmp_path, run):
    noise = np.random.default_rng(2).integers(0, 256, (8, 400, 500, 3), dtype=np.uint8)
    bag = record(
        tmp_path / "bag", {"/camera": (IMAGE, [raw_message(each) for each in noise])}, compress="STORAGE"
    )
    damage_chunks(next(bag.glob("*.mcap")), 1)
    code, out, err = run(bag, "--out", tmp_path / "labels.csv", "--json")
    assert code == 1
    summary = json.loads(out)
    assert (summary["frames"], summary["labels"], summary["lost"]) == (6, 6, 2)
    assert len(summary["damage"]) == 1
    assert summary["damage"][0] in err
    assert "2 messages in damaged chunks are lost" in err


def test_a_recording_that_ends_early_is_no_success(tmp_path, run):
    """Its index is whole; its messages cannot be read."""
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, images("red", "green"))}, "sqlite3")
    with contextlib.closing(sqlite3.connect(next(bag.glob("*.db3")))) as database:
        database.execute("ALTER TABLE messages RENAME COLUMN data TO lost")
    code, out, _ = run(bag, "--out", tmp_path / "labels.csv", "--json")
    assert code == 1
    summary = json.loads(out)
    assert (summary["frames"], summary["refused"], summary["lost"]) == (0, {}, 0)
    assert "ends after 0 messages" in summary["damage"][0]


# -- MCAP


@pytest.fixture
def labels(tmp_path, run):
    """A file of labels of two cameras and its recording."""
    pytest.importorskip("mcap", reason="mcap is not installed")
    bag = record(
        tmp_path / "bag",
        {
            "/left/image_raw": (IMAGE, images("red", "green")),
            "/right/image/compressed": (COMPRESSED, images("blue", pack=compressed_message, first=500)),
        },
    )
    path = tmp_path / "labels.mcap"
    assert run(bag, "--out", path, "--top", 2)[0] == 0
    return path


def test_labels_stand_in_mcap_as_ros_writes_them(labels):
    """Read back by rosbags: topics, types, definitions, headers, times, and the quality of service of rosbag2."""
    from rosbags.rosbag2 import Reader

    with Reader(labels) as reader:
        connections = {connection.topic: connection for connection in reader.connections}
        assert {topic: each.msgtype for topic, each in connections.items()} == {
            "/label_info": LABEL_INFO,
            "/left/image_raw/labels": CLASSIFICATION,
            "/right/image/labels": CLASSIFICATION,
        }
        assert "MSG: vision_msgs/ObjectHypothesis\n" in connections["/left/image_raw/labels"].msgdef.data
        assert "MSG: builtin_interfaces/Time\n" in connections["/label_info"].msgdef.data
        (latched,) = connections["/label_info"].ext.offered_qos_profiles
        (plain,) = connections["/left/image_raw/labels"].ext.offered_qos_profiles
        assert (latched.durability.name, plain.durability.name) == ("TRANSIENT_LOCAL", "VOLATILE")
        assert latched.reliability.name == plain.reliability.name == "RELIABLE"
        found = [
            (connection.topic, time, message_types().deserialize_cdr(data, connection.msgtype))
            for connection, time, data in reader.messages()
        ]
    info = next(message for topic, _, message in found if topic == "/label_info")
    assert [(each.class_id, each.class_name) for each in info.class_map] == [
        (0, "red"),
        (1, "green"),
        (2, "blue"),
    ]
    assert found[0][1] == 1_000_000_000
    left = [(time, message) for topic, time, message in found if topic == "/left/image_raw/labels"]
    assert [time for time, _ in left] == [1_000_000_000, 1_040_000_000]
    assert [(m.header.stamp.sec, m.header.stamp.nanosec, m.header.frame_id) for _, m in left] == [
        (100, 1, "front"),
        (101, 1, "front"),
    ]
    assert [[each.class_id for each in m.results] for _, m in left] == [["red", "green"], ["green", "red"]]
    assert left[0][1].results[0].score == pytest.approx(0.964664, abs=1e-6)


def test_the_file_is_one_that_the_format_s_own_reader_takes(labels):
    from mcap.reader import make_reader

    with labels.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert reader.get_header().profile == "ros2"
        assert summary.statistics.message_count == 4
        assert summary.chunk_indexes  # without them viewers read the whole file first
        for channel in summary.channels.values():
            schema = summary.schemas[channel.schema_id]
            assert (channel.message_encoding, schema.encoding) == ("cdr", "ros2msg")
            assert channel.metadata["topic_type_hash"] == message_types().hash_rihs01(schema.name)
        assert len(list(reader.iter_messages())) == 4
        # So rosbag2 reads the policies of topics as numbers, whatever its version.
        (metadata,) = reader.iter_metadata()
        assert (metadata.name, metadata.metadata["serialized_metadata"]) == ("rosbag2", "")


def test_definitions_and_hashes_are_those_of_vision_msgs():
    """The fields as the package that is built has them; the hash as ROS computes it of the real one."""
    for name, definition in VISION_MSGS.items():
        path = ROOT / "msgs" / "vision_msgs" / "msg" / f"{name.rpartition('/')[2]}.msg"
        lines = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
        assert [line for line in lines if line] == [line.split() for line in definition.splitlines()]
    assert message_types().hash_rihs01(CLASSIFICATION) == (
        "RIHS01_f74db28d0eaef3afb78f48bf2161cd709a1383a0309d3454383b25be11345143"
    )
    assert message_types().hash_rihs01(LABEL_INFO) == (
        "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783"
    )
    assert message_types().hash_rihs01(DETECTIONS) == (
        "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    )


def test_labels_are_replaced_and_recordings_are_not(labels, run, tmp_path):
    bag = tmp_path / "bag"
    before = labels.read_bytes()
    assert run(bag, "--out", labels, "--topic", "/left/image_raw")[0] == 0
    assert labels.read_bytes() != before
    recording = bag / "bag.mcap"
    content = recording.read_bytes()
    for arguments in ((bag, "--out", recording), (recording, "--out", recording)):
        code, _, err = run(*arguments)
        assert code == 1
        assert "is there, and is no file of labels that may be replaced; give another name" in err
        assert recording.read_bytes() == content


def test_without_the_package_mcap_the_line_says_what_to_install(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, images("red"))})
    code, _, err = run(bag, "--out", tmp_path / "labels.mcap")
    assert code == 1
    assert "writing .mcap takes mcap: pip install mcap; .csv takes nothing" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bag"]


# -- boxes

SECOND = 10**9
LEFT, RIGHT, OUTSIDE = (7.5, 10, 15, 20), (22.5, 10, 15, 20), (100, 100, 5, 5)


@pytest.fixture
def halves():
    """(20, 30, 3) BGR, red on the left and blue on the right."""
    return np.concatenate([picture("red")[:, :15], picture("blue")[:, :15]], axis=1)


def test_boxes_are_labelled_and_kept(tmp_path, run, halves):
    """Those of the image's own stamp; of the nearest of two; none; none near enough; damaged ones; earlier ones."""
    frames = [raw_message(halves, stamp=stamp * SECOND) for stamp in range(6)]
    found = [
        detections([LEFT, RIGHT, OUTSIDE, (float("nan"), 10, 15, 20)], 0),
        detections([RIGHT], SECOND - 15_000_000),
        detections([LEFT], SECOND + 10_000_000),
        detections([], 2 * SECOND),
        detections([LEFT], 3 * SECOND + 21_000_000),
        bytes(STORE.serialize_cdr(detections([LEFT], 4 * SECOND), DETECTIONS))[:40],
        b"",
        detections([LEFT], 5 * SECOND - 15_000_000),
    ]
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, frames), "/found": (DETECTIONS, found)})
    path = tmp_path / "labels.csv"
    code, out, err = run(bag, "--boxes", "/found", "--sync-tolerance", 0.02, "--out", path, "--json")
    assert code == 1
    rows = rows_of(path.read_text())
    assert list(rows[0])[3:] == ["box", "id", "x", "y", "width", "height", "theta", "label", "score"]
    assert [(row["stamp"], row["box"], row["id"], row["x"], row["label"]) for row in rows] == [
        ("0.000000000", "0", "track 0", "7.5", "red"),
        ("0.000000000", "1", "track 1", "22.5", "blue"),
        ("0.000000000", "2", "track 2", "100.0", "unknown"),
        ("0.000000000", "3", "track 3", "nan", "unknown"),
        ("1.000000000", "0", "track 0", "7.5", "red"),
        ("5.000000000", "0", "track 0", "7.5", "red"),
    ]
    assert [float(row["score"]) for row in rows[:3]] == pytest.approx([0.964664, 0.964664, 0.0], abs=2e-6)
    summary = json.loads(out)
    assert (summary["frames"], summary["labels"], summary["unknown"]) == (6, 6, 2)
    assert summary["refused"] == {"no boxes": 1, "undecodable": 1}
    assert "/camera#3: no boxes have its stamp, or one near it" in err
    assert "/camera#4: a message that cannot be read" in err
    assert "/found: a message that cannot be read" in err
    assert "6 labels (2 of them unknown: boxes without a part of the image), 2 refused" in err
    _, _, err = run(bag, "--boxes", "/found", "--sync-tolerance", 0.03)
    assert "/camera#3" not in err
    _, _, err = run(bag, "--boxes", "/found")
    assert "/camera#1: no boxes have its stamp" in err


def test_labelled_boxes_stand_in_mcap_before_what_their_detector_said(tmp_path, run, halves):
    pytest.importorskip("mcap", reason="mcap is not installed")
    from rosbags.rosbag2 import Reader

    frames = [raw_message(halves, stamp=stamp * SECOND) for stamp in range(3)]
    found = [detections([LEFT, OUTSIDE], 0), detections([RIGHT], SECOND, said=""), detections([], 2 * SECOND)]
    bag = record(tmp_path / "bag", {"/a/image": (IMAGE, frames), "/found": (DETECTIONS, found)})
    path = tmp_path / "labels.mcap"
    assert run(bag, "--boxes", "/found", "--out", path, "--top", 2)[0] == 0
    with Reader(path) as reader:
        wanted = [each for each in reader.connections if each.topic == "/a/image/labeled_detections"]
        assert [each.msgtype for each in wanted] == [DETECTIONS]
        answers = [
            message_types().deserialize_cdr(data, DETECTIONS) for _, _, data in reader.messages(wanted)
        ]
    assert [each.header.stamp.sec for each in answers] == [0, 1, 2]
    first, second, empty = (each.detections for each in answers)
    assert [each.id for each in first] == ["track 0", "track 1"]
    assert first[0].bbox.center.position.x == 7.5
    told = [[each.hypothesis.class_id for each in box.results] for box in (*first, *second)]
    assert told[0][0] == "red"
    assert told[0][2:] == ["thing"]
    assert told[1] == ["unknown", "thing"]
    assert told[2][0] == "blue"
    assert len(told[2]) == 2
    assert [each.pose.pose.position.z for each in first[0].results] == [0.0, 0.0, 3.0]
    turn = first[0].results[0].pose.pose.orientation
    assert (turn.x, turn.y, turn.z, turn.w) == (0.0, 0.0, 0.0, 1.0)
    assert list(empty) == []


def test_three_hundred_boxes_of_a_frame(tmp_path, run, halves):
    found = detections([LEFT, RIGHT] * 150, 7)
    bag = record(
        tmp_path / "bag",
        {"/camera": (IMAGE, [raw_message(halves, stamp=7)] * 2), "/found": (DETECTIONS, [found])},
    )
    code, out, _ = run(bag, "--boxes", "/found")
    assert code == 0
    assert [row["label"] for row in rows_of(out)] == ["red", "blue"] * 300


def test_more_boxes_than_an_image_can_need_cost_that_image(tmp_path, run, halves):
    topics = {
        "/camera": (IMAGE, [raw_message(halves, stamp=stamp) for stamp in (7, 8)]),
        "/found": (DETECTIONS, [detections([LEFT] * 1001, 7), detections([LEFT], 8)]),
    }
    code, out, err = run(record(tmp_path / "bag", topics), "--boxes", "/found")
    assert code == 1
    assert len(rows_of(out)) == 1
    assert "/camera#0: 1001 boxes; at most 1000 an image are taken" in err


def test_a_margin_takes_what_is_around_a_box(tmp_path, run, halves):
    """A blue box of 2x2 pixels, which a margin of ten widths makes the whole image: its mean is red as well as blue."""
    topics = {
        "/camera": (IMAGE, [raw_message(halves, stamp=7)]),
        "/found": (DETECTIONS, [detections([(17, 10, 2, 2)], 7)]),
    }
    bag = record(tmp_path / "bag", topics)
    (narrow,) = rows_of(run(bag, "--boxes", "/found")[1])
    assert (narrow["label"], float(narrow["score"])) == ("blue", pytest.approx(0.964664, abs=2e-6))
    (wide,) = rows_of(run(bag, "--boxes", "/found", "--box-margin", 10)[1])
    assert float(wide["score"]) < 0.6


def test_boxes_belong_to_the_topic_that_stands_in_their_place(tmp_path, run, halves):
    topics = {name: (IMAGE, [raw_message(halves, stamp=7)]) for name in ("/front", "/rear")}
    topics |= {
        "/front_boxes": (DETECTIONS, [detections([LEFT], 7)]),
        "/rear_boxes": (DETECTIONS, [detections([RIGHT], 7)]),
    }
    bag = record(tmp_path / "bag", topics)
    named = ["--topic", "/rear", "--topic", "/front", "--boxes", "/rear_boxes", "--boxes", "/front_boxes"]
    assert {(row["topic"], row["label"]) for row in rows_of(run(bag, *named)[1])} == {
        ("/front", "red"),
        ("/rear", "blue"),
    }
    code, out, err = run(bag)
    assert code == 0
    assert {row["topic"] for row in rows_of(out)} == {"/front", "/rear"}
    assert "whole images are labelled; /front_boxes has boxes: --boxes /front_boxes labels those" in err
    for arguments, reason in (
        (
            ["--boxes", "/front_boxes"],
            "it takes one for each --topic, in the same order; the topics are /front, /rear",
        ),
        (named[:-2], "--boxes /rear_boxes: it takes one for each --topic"),
        (
            ["--boxes", "/rear_boxes", "--boxes", "/front_boxes"],
            "it takes one for each --topic, in the same order",
        ),
        (
            ["--topic", "/rear", "--boxes", "/rear"],
            "holds no vision_msgs/Detection2DArray on '/rear'; topics with them: /front_boxes, /rear_boxes",
        ),
        ([*named, "--region", "0", "0", "1", "0.5"], "--boxes and --region both say which part of an image"),
        ([*named, "--box-margin", "-1"], "--box-margin -1: it takes 0 to 10"),
        ([*named, "--sync-tolerance", "nan"], "--sync-tolerance nan: it takes 0 to 10"),
    ):
        code, out, err = run(bag, *arguments)
        assert (code, out) == (1, "")
        assert reason in err


def test_ros_is_not_needed(tmp_path, colours, halves):
    topics = {
        "/camera": (IMAGE, [raw_message(halves, stamp=7)]),
        "/found": (DETECTIONS, [detections([LEFT, RIGHT], 7)]),
    }
    bag = record(tmp_path / "bag", topics)
    code = (
        "import sys\n"
        "ros = ('rclpy', 'sensor_msgs', 'std_msgs', 'vision_msgs', 'geometry_msgs', 'cv_bridge')\n"
        "sys.modules.update(dict.fromkeys(ros))\n"
        "from bnn_perception.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for command in (["replay", str(bag), "--boxes", "/found"], ["classify", str(bag)]):
        arguments = [*command, "--model", str(colours), "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, "red" in done.stdout or "blue" in done.stdout) == (0, True), done.stderr


# -- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "labels.txt"], "--out labels.txt: the ending says what is written: .csv or .mcap"),
        (["--out", "nowhere/labels.csv"], "--out nowhere/labels.csv: there is no folder nowhere"),
        (["--json"], "--json takes standard output; name a file for the labels: --out labels.csv"),
        (["--top", "0"], "--top 0: at least one class is shown"),
        (["--region", "0", "0", "2", "1"], "--region: region [0.0, 0.0, 2.0, 1.0] does not lie inside"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, run, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "bag", {"/camera": (IMAGE, images("red"))})
    code, out, err = run("bag", *arguments)
    assert (code, out) == (1, "")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", "is no recording: it has no metadata.yaml and no .mcap or .db3 file"),
        ("a.mp4", "is no recording; one is a rosbag2 folder, a .mcap or a .db3 file"),
        ("a.bag", "is a recording of ROS 1; convert it"),
        ("a.mcap", "cannot be opened as a recording"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, run, name, reason):
    (tmp_path / "empty").mkdir()
    if "." in name:
        (tmp_path / name).write_bytes(b"x" * 100)
    code, out, err = run(tmp_path / name)
    assert (code, out) == (1, "")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("ending", ["csv", "mcap"])
def test_ctrl_c_leaves_a_whole_file(tmp_path, run, monkeypatch, ending):
    """It is pressed within the second batch: two batches are written, and their index."""
    if ending == "mcap":
        pytest.importorskip("mcap", reason="mcap is not installed")
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, images(*["red"] * 100))})
    answer, calls = replay.answer, []

    def press(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        answer(*arguments)

    monkeypatch.setattr(replay, "answer", press)
    handler = signal.getsignal(signal.SIGINT)
    path = tmp_path / f"labels.{ending}"
    code, out, err = run(bag, "--out", path, "--json")
    assert code == 130
    assert "interrupted; the labels so far are whole" in err
    assert json.loads(out)["labels"] == 2 * replay.BATCH
    assert json.loads(out)["interrupted"] is True
    assert signal.getsignal(signal.SIGINT) is handler
    if ending == "csv":
        assert len(rows_of(path.read_text())) == 2 * replay.BATCH
    else:
        from rosbags.rosbag2 import Reader

        with Reader(path) as reader:
            assert len(list(reader.messages())) == 2 * replay.BATCH + 1  # and the label info
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_second_ctrl_c_ends_at_once_and_leaves_nothing(tmp_path, run, monkeypatch):
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, images("red"))})

    def press(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(replay, "answer", press)
    assert run(bag, "--out", tmp_path / "labels.csv")[0] == 130
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bag"]


def test_an_interrupt_that_is_ignored_stays_so():
    """As of a command that a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with replay.first_interrupt() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_full_disk_leaves_nothing(tmp_path, run, monkeypatch):
    bag = record(tmp_path / "bag", {"/camera": (IMAGE, images("red"))})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(label_files.CsvLabels, "write", full)
    code, _, err = run(bag, "--out", tmp_path / "labels.csv")
    assert code == 1
    assert err.endswith(f"{tmp_path / 'labels.csv'}: No space left on device\n")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bag"]


@pytest.mark.parametrize(
    ("terminals", "arguments", "drawn"),
    [
        ((), ["--out", "labels.csv"], False),
        (("stderr",), ["--out", "labels.csv"], True),
        (("stderr",), [], True),
        (("stdout",), ["--out", "labels.csv"], False),
        (("stderr", "stdout"), ["--out", "labels.csv"], True),
        (("stderr", "stdout"), [], False),  # the labels fill it
    ],
)
def test_a_bar_is_drawn_on_a_terminal_alone(tmp_path, run, monkeypatch, terminals, arguments, drawn):
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    record(tmp_path / "bag", {"/camera": (IMAGE, images("red", "green"))})
    for name in terminals:
        monkeypatch.setattr(f"sys.{name}.isatty", lambda: True)
    code, out, err = run("bag", *arguments)
    assert code == 0
    assert ("2/2" in err) == drawn
    assert len(rows_of(out or Path("labels.csv").read_text())) == 2


def test_recordings_of_real_cameras(data, run, tmp_path):
    """A robot's, with messages compressed one by one and types in the old spelling; and a traffic camera's."""
    code, out, _ = run(data("camera/soccer_goal_12.mcap"))
    assert code == 0
    assert [row["topic"] for row in rows_of(out)] == ["/camera/image_raw"] * 2
    code, out, _ = run(data("camera/bag_09747_mcap"), "--out", tmp_path / "labels.csv", "--json")
    assert code == 0
    assert json.loads(out)["labels"] == 115
