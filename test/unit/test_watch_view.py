"""What `watch` makes of diagnostics and labels, and how it looks in a small terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("rich", reason="rich is not installed")

from rich.console import Console

from bnn_perception.__main__ import main
from bnn_perception.cli.watch import is_plain
from bnn_perception.cli.watch_view import ASCII, bar, short_names, view
from bnn_perception.ros.diagnostics import CLASSIFIED, ERROR, LOST, OK, STALE, WARN, CameraState, State
from bnn_perception.ros.latency import Percentiles
from bnn_perception.ros.watched import Watched

NOW = 100.0
LATENCY = Percentiles(1.234, 2.5, 10.0, 20.0)


def state(**fields):
    values = {
        "lifecycle": "active",
        "model": "road_signs",
        "backend": "cpu_binary",
        "device": "a processor",
        "device_wanted": "auto",
        "why_not_gpu": "",
        "rate_in": 30.0,
        "rate_out": 29.5,
        "frames": {},
        "refused": {},
        "latency": {},
    }
    return State(**{**values, **fields})


def camera_state(latency=LATENCY, **frames):
    counts = {name.replace("_", " "): count for name, count in frames.items()}
    return CameraState(30.0, 29.5, counts, 0.03, latency)


def status(name, values, level=OK, message="OK"):
    """A diagnostic_msgs DiagnosticStatus, its level as bytes, as some distributions have it."""
    text = {key: f"{value:.3f}" if isinstance(value, float) else str(value) for key, value in values.items()}
    pairs = [SimpleNamespace(key=key, value=value) for key, value in text.items()]
    return SimpleNamespace(name=name, level=bytes([level]), message=message, values=pairs)


def watched(*cameras, only="", name="/bnn/classifier", level=OK, message="OK", **fields):
    """What is known after one message of a node with cameras: (topic, state, level, message)."""
    result = Watched(only)
    statuses = [status(f"{name}: engine", state(**fields).values(), level, message)]
    statuses += [status(f"{name}: camera {topic}", s.values(), *rest) for topic, s, *rest in cameras]
    result.take(statuses, NOW)
    return result


def shown(what, width=80, plain=False, now=NOW):
    """The lines of a view in a terminal without colours."""
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, color_system=None)
    console.print(view(what, now, plain))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def answer(camera, label, score=0.75, boxes=None, at=NOW - 0.04):
    camera.label, camera.score, camera.boxes, camera.answered_at = label, score, boxes, at


# What is known.


def test_a_node_and_its_cameras_are_read_from_diagnostics():
    known = watched(("/front", camera_state(received=7)), ("/rear", camera_state(), WARN, "dark"))
    (node,) = known.nodes.values()
    assert (node.name, node.state.model, node.level) == ("/bnn/classifier", "road_signs", OK)
    assert [camera.topic for camera in known.cameras] == ["/front", "/rear"]
    assert node.cameras["/front"].state.frames == {"received": 7}
    assert (node.cameras["/rear"].level, node.cameras["/rear"].message) == (WARN, "dark")


def test_what_was_answered_stays_with_the_next_diagnostics():
    known = watched(("/front", camera_state()))
    answer(known.cameras[0], "stop")
    statuses = [
        status("/bnn/classifier: engine", state(rate_out=12.0).values()),
        status("/bnn/classifier: camera /front", camera_state(received=9).values(), ERROR, "gone"),
    ]
    known.take(statuses, NOW + 0.5)
    (camera,) = known.cameras
    assert (camera.label, camera.message, camera.state.frames["received"]) == ("stop", "gone", 9)
    (node,) = known.nodes.values()
    assert (node.state.rate_out, node.period) == (12.0, 0.5)


def test_a_node_that_was_started_anew_has_its_new_cameras_alone():
    known = watched(("/front", camera_state()), ("/rear", camera_state()))
    statuses = [
        status("/bnn/classifier: engine", state().values()),
        status("/bnn/classifier: camera /rear", camera_state().values()),
    ]
    known.take(statuses, NOW + 1)
    assert [camera.topic for camera in known.cameras] == ["/rear"]


def test_others_are_passed_over():
    known = Watched()
    known.take(
        [
            status("/engine: engine", {"temperature": 90}),
            status("/driver: camera /front", camera_state().values()),
            status("motor", {}),
            SimpleNamespace(name="arm: engine", level=2, message="hot", values=[]),
        ],
        NOW,
    )
    assert known.nodes == {}
    assert known.passed_over == set()


@pytest.mark.parametrize(
    ("only", "counts"),
    [
        ("", True),
        ("/", True),
        ("/robot/classifier", True),
        ("robot/classifier", True),
        ("/robot", True),
        ("/robot/", True),
        ("/rob", False),
        ("/bnn/classifier", False),
    ],
)
def test_a_node_or_a_namespace_is_chosen(only, counts):
    known = watched(("/front", camera_state()), only=only, name="/robot/classifier")
    assert bool(known.nodes) is bool(known.cameras) is counts
    assert known.passed_over == (set() if counts else {"/robot/classifier"})


def test_a_node_is_silent_after_three_of_its_periods():
    (node,) = watched().nodes.values()
    assert node.silent_for(NOW + 4.9) == 0
    assert node.silent_for(NOW + 6) == 6
    node.period = 60.0
    assert node.silent_for(NOW + 170) == 0
    assert node.silent_for(NOW + 190) == 190


# What is shown.


def test_a_view_of_one_camera():
    frames = {CLASSIFIED: 7, STALE: 3, LOST: 2}
    known = watched(("/bnn/image", CameraState(30.0, 29.5, frames, 0.03, LATENCY)))
    answer(known.cameras[0], "Stop")
    lines = shown(known)
    assert lines[0] == "/bnn/classifier  active  OK"
    assert lines[1] == "road_signs on cpu_binary, a processor"
    assert " ".join(lines[2].split()) == "camera label score Hz age to 10 ms p50 p95 p99 drops"
    assert " ".join(lines[3].split()) == "/bnn/image Stop 0.75 29.5 0.0s ██▓░░░░░░░░░░ 1.2 2.5 10.0 5"
    assert len(lines) == 4


@pytest.mark.parametrize("plain", [False, True])
def test_eight_cameras_fit_a_small_terminal(plain):
    cameras = [(f"/robot/cam{number}/image_raw", camera_state()) for number in range(8)]
    cameras[3] = (*cameras[3], WARN, "nobody publishes it; " + "near it: /robot/camera " * 5)
    known = watched(*cameras, level=WARN, message="auto took the CPU though there is a GPU: no driver")
    for camera in known.cameras:
        answer(camera, "Straße [bold] mit Vorfahrt und noch viel längerem Namen als hineinpasst")
    lines = shown(known, plain=plain)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "".join(lines).isascii() is plain
    rows = [line for line in lines if line.startswith("cam") and not line.startswith("camera")]
    assert [row.split()[0] for row in rows] == [f"cam{number}" for number in range(8)]
    assert all(
        row.split()[1:4] == [*("Strasse" if plain else "Straße").split(), "[bold]", "mit"] for row in rows
    )
    assert "WARN  auto took the CPU though there is a GPU: no driver" in lines
    assert any(line.startswith("WARN  /robot/cam3/image_raw: nobody publishes it") for line in lines)


def test_what_is_too_long_is_folded_and_not_cut():
    known = watched(level=ERROR, message="x" * 200)
    assert sum(line.count("x") for line in shown(known)) >= 200
    assert any(line.startswith("ERROR xxx") for line in shown(known))


def test_what_is_not_there_yet():
    known = watched(
        ("/front", camera_state(latency=None)), backend="none", device="none", lifecycle="inactive"
    )
    lines = shown(known)
    assert lines[:2] == ["/bnn/classifier  inactive  OK", "road_signs: no engine"]
    assert lines[3].split() == ["/front", "-", "-", "29.5", "-", "-", "-", "-", "0"]


@pytest.mark.parametrize(
    ("label", "boxes", "text"),
    [
        ("", None, "no label"),
        ("stop", 1, "stop"),
        ("stop", 3, "3 boxes: stop"),
        ("", 0, "no boxes"),
        ("a\x1b[31m", None, "a\\x1b[31m"),
    ],
)
def test_labels(label, boxes, text):
    known = watched(("/front", camera_state()))
    answer(known.cameras[0], label, boxes=boxes)
    assert f"/front {text}  " in shown(known, 100)[3]


def test_a_silent_node_is_told():
    assert "ERROR no diagnostics for 9 s: has the node ended?" in shown(watched(), now=NOW + 9)


def test_two_nodes_stand_below_one_another():
    known = watched()
    known.take([status("/arm/classifier: engine", state(model="vehicles").values())], NOW)
    assert shown(known)[2:4] == ["", "/arm/classifier  active  OK"]


def test_bars():
    assert bar(Percentiles(1, 2, 4, 9), 4.0, 8, ASCII) == "##==----"
    assert bar(Percentiles(0.001, 0.001, 0.001, 1), 4.0, 8, ASCII) == "#"
    assert bar(Percentiles(4, 4, 4, 9), 4.0, 8, ASCII) == "########"
    assert bar(Percentiles(0, 0, 0, 0), 0.0, 8, ASCII) == ""


@pytest.mark.parametrize(
    ("topics", "names"),
    [
        (["/bnn/image"], ["/bnn/image"]),
        (["/bnn/front/image", "/bnn/rear/image"], ["front", "rear"]),
        (["/front/image", "/bnn/rear"], ["front/image", "bnn/rear"]),
        (["/a/image", "/image"], ["a/image", "image"]),
        (["/image", "/image"], ["image", "image"]),
    ],
)
def test_names_of_cameras_are_what_differs(topics, names):
    assert short_names(topics) == names


@pytest.mark.parametrize(
    ("environment", "encoding", "plain"),
    [
        ({}, "utf-8", False),
        ({"LANG": "de_DE.UTF-8"}, "utf-8", False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, "utf-8", True),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}, "utf-8", True),
        ({"LANG": "C", "LC_ALL": "C.UTF-8"}, "utf-8", False),
        ({"LANG": "de_DE"}, "iso-8859-1", True),
    ],
)
def test_a_terminal_without_unicode_is_known(environment, encoding, plain):
    assert is_plain(environment, encoding) is plain


def test_without_rich_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich" or ".cli.watch" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["watch"]) == 1
    assert "is not installed: sudo apt install python3-rich" in capsys.readouterr().err
