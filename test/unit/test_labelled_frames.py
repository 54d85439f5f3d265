"""Evaluating on recordings that tell the truth, and on folders of videos."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from models import PURE, colours_model
from recordings import COMPRESSED, IMAGE, STORE, compressed_message, raw_message, record

from bnn_perception.__main__ import main
from bnn_perception.cli.labelled_frames import LabelledFrames, open_labelled
from bnn_perception.frames.messages import CLASSIFICATION, HYPOTHESIS, header
from bnn_perception.net.folder import save_model


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "colours"
    save_model(colours_model(), folder)
    return folder


@pytest.fixture
def run(colours, capsys):
    """A function that runs evaluate, and gives its exit code, the JSON of its end and errors."""

    def call(*arguments):
        code = main(["evaluate", *map(str, arguments), "--model", str(colours), "--device", "cpu", "--json"])
        captured = capsys.readouterr()
        said = [line for line in captured.err.splitlines(keepends=True) if "cpu_binary on" not in line]
        return code, json.loads(captured.out.splitlines()[-1]) if code == 0 else None, "".join(said)

    return call


def picture(colour):
    """(20, 30, 3) BGR of one colour."""
    return np.full((20, 30, 3), PURE[colour][::-1], np.uint8)


def truth(label, stamp):
    results = [STORE.types[HYPOTHESIS](class_id=label, score=1.0)]
    return STORE.types[CLASSIFICATION](header=header(stamp, ""), results=results)


def write_video(path, *colours):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 48))
    for colour in colours:
        writer.write(cv2.resize(picture(colour), (64, 48)))
    writer.release()


def test_a_recording_is_evaluated_on_the_frames_whose_truth_it_tells(tmp_path, run):
    """Shown red, green, blue, blue; told red, blue, blue and nothing."""
    shown = [
        compressed_message(picture(name), stamp)
        for stamp, name in enumerate(("red", "green", "blue", "blue"))
    ]
    told = [truth(name, stamp) for stamp, name in enumerate(("red", "blue", "BLUE"))]
    bag = record(tmp_path / "bag", {"/image": (COMPRESSED, shown), "/truth": (CLASSIFICATION, told)})
    code, report, err = run(bag)
    assert code == 0
    assert (report["n"], report["correct"], report["left_out"]) == (3, 2, 0)
    assert report["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert err == ""


def test_frames_that_cannot_be_read_are_left_out(tmp_path, run):
    images = [raw_message(picture("red"), stamp=stamp) for stamp in range(3)]
    images[1].step = 1
    images[2] = b"\0\1\0\0"
    told = [truth("red", stamp) for stamp in range(3)]
    bag = record(tmp_path / "bag", {"/image": (IMAGE, images), "/truth": (CLASSIFICATION, told)})
    code, report, err = run(bag)
    assert code == 0
    assert (report["n"], report["left_out"]) == (1, 2)
    assert f"left out: {bag}:/image#1: step 1 is less than a row" in err
    assert f"left out: {bag}:/image#2: " in err


def test_a_recording_of_which_nothing_can_be_read_says_why(tmp_path, run):
    image = raw_message(picture("red"), stamp=1)
    image.step = 1
    topics = {"/image": (IMAGE, [image]), "/truth": (CLASSIFICATION, [truth("red", 1)])}
    code, _, err = run(record(tmp_path / "bag", topics))
    assert code == 1
    assert "none of the 1 images could be read; the first: " in err
    assert "step 1 is less than a row" in err


def test_one_camera_of_several_is_evaluated_on_the_truth_that_is_named(tmp_path, run):
    topics = {f"/{name}/image": (IMAGE, [raw_message(picture(name), stamp=1)]) for name in PURE}
    topics |= {f"/{name}/truth": (CLASSIFICATION, [truth("red", 1)]) for name in PURE}
    topics["/odd"] = (CLASSIFICATION, [truth("violet", 1)])
    topics["/late"] = (CLASSIFICATION, [truth("red", 2)])
    bag = record(tmp_path / "bag", topics)
    code, report, err = run(bag, "--topic", "/green/image", "--truth", "/red/truth")
    assert code == 0
    assert report["confusion"] == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    for arguments, reason in (
        ((), "has not just one topic of vision_msgs/Classification that is called truth; --truth names"),
        (
            ("--truth", "/truth"),
            "holds no vision_msgs/Classification on '/truth'; topics with them: /blue/truth",
        ),
        (("--truth", "/odd"), "/blue/image#0: its truth 'violet' is no label of the model"),
        (("--truth", "/late"), "no truth has the stamp of a frame"),
    ):
        code, _, err = run(bag, *arguments)
        assert code == 1
        assert reason in err


def test_what_is_chosen_is_said_and_is_nothing_left_out(tmp_path, run):
    topics = {
        f"/{name}": (IMAGE, [raw_message(picture("red"), stamp=1)] * (name == "b" or 2)) for name in "ab"
    }
    bag = record(tmp_path / "bag", {**topics, "/truth": (CLASSIFICATION, [truth("red", 1)])})
    code, report, err = run(bag)
    assert (code, report["n"], report["left_out"]) == (0, 2, 0)
    assert f"bnn_perception evaluate: {bag}: plays /a; name a topic for another: /b\n" == err


def test_videos_in_class_folders(tmp_path, run):
    data = tmp_path / "data"
    write_video(data / "red" / "deep" / "a.avi", "red", "red", "green")
    write_video(data / "blue" / "b.avi", "blue")
    write_video(data / ".hidden" / "c.avi", "blue")
    write_video(data / "d.avi", "blue")
    (data / "red" / "notes.txt").write_text("text")
    record(data / "green" / "bag", {"/image": (COMPRESSED, [compressed_message(picture("green"))])})
    code, report, _ = run(data)
    assert code == 0
    assert report["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
    code, _, err = run(data / "d.avi")
    assert code == 1
    assert "a video has no labels; name a folder that has a folder of videos for each class" in err
    write_video(data / "violet" / "e.avi", "blue")
    code, _, err = run(data)
    assert code == 1
    assert f"{data / 'violet'}: the model has no class 'violet'; it has red, green, blue" in err


def test_images_in_class_folders_go_before_videos(tmp_path, run):
    write_video(tmp_path / "data" / "red" / "a.avi", "red", "red")
    cv2.imwrite(str(tmp_path / "data" / "red" / "a.png"), picture("red"))
    code, report, err = run(tmp_path / "data")
    assert (code, report["n"]) == (0, 1)
    assert "its videos are left out" in err


def test_mistakes_are_drawn_from_one_pass(tmp_path, run):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    data, sheet = tmp_path / "data", tmp_path / "mistakes.png"
    write_video(data / "red" / "a.avi", "red", "green", "red", "blue")
    assert run(data, "--mistakes", sheet)[0] == 0
    assert sheet.stat().st_size > 1000
    frames = open_labelled(str(data), list(PURE), None, None, print)
    assert isinstance(frames, LabelledFrames)
    assert [index for index, _ in frames] == [0, 1, 2, 3]
    chosen = frames.read_some([3, 1])
    assert sorted(chosen) == [1, 3]
    # JPEG keeps a uniform colour to a few units.
    assert np.abs(chosen[3].astype(int) - PURE["blue"]).max() < 8
    assert np.abs(chosen[1].astype(int) - PURE["green"]).max() < 8
    assert frames.labels.tolist() == [0] * 4


def test_a_damaged_video_costs_itself(tmp_path, run):
    data = tmp_path / "data"
    write_video(data / "red" / "a.avi", "red")
    bag = record(data / "blue" / "bag", {"/image": (IMAGE, [b"\0\1\0\0"])})
    code, report, err = run(data)
    assert (code, report["n"], report["left_out"]) == (0, 1, 2)
    assert f"left out: {bag / 'bag.mcap'}: not one frame could be read" in err
