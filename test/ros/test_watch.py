"""`watch` as a user starts it, over real DDS."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("rich", reason="rich is not installed")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from nodes import PATIENCE, image, picture
from vision_msgs.msg import Classification, Detection2DArray

from bnn_perception.ros.classifier_node import ClassifierNode
from bnn_perception.ros.diagnostics import ANSWERED, CameraState, State
from bnn_perception.ros.overview import Overview
from bnn_perception.ros.watcher import listening

#: Seconds between two frames of the camera, and how long what is read is waited for.
PACE = 0.05

ENGINE_STATE = State("active", "m", "b", "d", "auto", "", 30.0, 30.0, {}, {}, latency={}).values()


def as_pairs(values):
    """The values of a DiagnosticStatus."""
    return [KeyValue(key=key, value=str(value)) for key, value in values.items()]


def command(*arguments, **environment):
    """The command line of `watch`, and its environment."""
    line = [sys.executable, "-m", "bnn_perception", "watch", "--wait", str(PATIENCE), *arguments]
    return line, {**os.environ, "COLUMNS": "80", **environment}


def start(*arguments, **environment):
    line, variables = command(*arguments, **environment)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)


def until_it_ends(peer, process, send=lambda: None):
    """What it wrote and its exit code; frames are sent meanwhile."""
    try:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline, "watch does not end"
            send()
            peer.work(PACE)
    finally:
        process.kill()
    output, _ = process.communicate()
    return output, process.returncode


@pytest.mark.parametrize(
    "environment", [{}, {"LANG": "C", "LC_ALL": ""}, {"TERM": "dumb"}], ids=lambda e: "-".join(e) or "plain"
)
def test_once(peer, host, environment):
    hosted = host()
    camera = hosted.camera()
    process = start("--once", **environment)
    output, code = until_it_ends(peer, process, lambda: peer.send(camera, image(picture("red", 4, 4))))
    assert code == 0, output
    lines = output.splitlines()
    assert lines[0].startswith("/bnn/classifier  active  ")
    assert lines[1].startswith("red-green-blue on reference, ")
    (row,) = [line for line in lines if line.startswith("/bnn/image ")]
    assert "red" in row.split()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in output
    if "LANG" in environment:
        assert output.isascii()


def test_each_camera_has_its_own_label(peer, english):
    node = peer.host(
        ClassifierNode,
        model=str(english),
        backend="reference",
        device="cpu",
        image_topics=["/front/image", "/rear/image"],
        detection_topics=["", "/rear/boxes"],
        diagnostics_period=0.1,
    )
    node.start()
    labels = peer.subscribe(Classification, "/front/image/labels")
    detections = peer.subscribe(Detection2DArray, "/rear/image/labeled_detections")
    camera = peer.node.create_publisher(type(image(picture("blue", 4, 4))), "/front/image", 1)
    rear = peer.node.create_publisher(type(image(picture("blue", 4, 4))), "/rear/image", 1)
    boxes = peer.node.create_publisher(Detection2DArray, "/rear/boxes", 1)

    def send():
        peer.send(camera, image(picture("blue", 4, 4)))
        message = image(picture("blue", 4, 4))
        peer.send(rear, message)
        boxes.publish(Detection2DArray(header=message.header))

    def both_have_answered():
        send()
        peer.work(PACE)
        return labels and detections

    peer.until(both_have_answered)
    output, code = until_it_ends(peer, start("--once", "--node", "/bnn"), send)
    assert code == 0, output
    rows = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert rows["front"].split()[1] == "blue"
    assert "no boxes" in rows["rear"]


def test_what_a_node_answers_after_it_was_started_anew_is_seen():
    """One camera more gives each camera's answers a topic of their own; boxes are of another type."""

    def hear(overview, **boxes_of):
        statuses = [DiagnosticStatus(name="/bnn/classifier: engine", values=as_pairs(ENGINE_STATE))]
        for topic, boxes in boxes_of.items():
            camera = CameraState(30.0, 30.0, {}, 0.0, None, {ANSWERED: 1} if boxes else {})
            statuses.append(
                DiagnosticStatus(
                    name=f"/bnn/classifier: camera /{topic}/image", values=as_pairs(camera.values())
                )
            )
        overview._on_diagnostics(DiagnosticArray(status=statuses))
        return {
            each.topic_name: each.msg_type
            for each in overview.subscriptions
            if each.msg_type in (Classification, Detection2DArray)
        }

    with listening(Overview) as overview:
        assert hear(overview, front=False) == {"/bnn/labels": Classification}
        assert hear(overview, front=True) == {"/bnn/labeled_detections": Detection2DArray}
        assert hear(overview, front=True, rear=False) == {
            "/front/image/labeled_detections": Detection2DArray,
            "/rear/image/labels": Classification,
        }
        subscriptions = list(overview.subscriptions)
        hear(overview, front=True, rear=False)
        assert list(overview.subscriptions) == subscriptions


def test_nothing_to_watch_is_told_in_one_line(peer):
    output, code = until_it_ends(peer, start("--wait", "0.5", "--once"))
    assert code == 1
    (line,) = output.splitlines()
    assert line.startswith("bnn_perception watch: no classifier node was heard for 0.5 s (ROS_DOMAIN_ID=")
    assert "nobody publishes /diagnostics; start one with ros2 launch" in line


def test_another_node_than_the_one_that_is_asked_for(peer, host):
    hosted = host()
    hosted.diagnostics.until(lambda status, values: True)
    output, code = until_it_ends(peer, start("--wait", "5", "--node", "/arm", "--once"))
    assert code == 1
    assert "no classifier node /arm was heard for 5 s" in output
    assert "the classifier nodes here are /bnn/classifier;" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_until_it_is_told_to_end(peer, host, number):
    """In a pipe one view follows another."""
    hosted = host()
    hosted.camera()
    process = start()
    first = process.stdout.readline  # comes once the node has been heard
    os.set_blocking(process.stdout.fileno(), False)
    peer.until(first)
    process.send_signal(number)
    output, code = until_it_ends(peer, process)
    assert code == 0, output
    assert "Traceback" not in output


def test_in_a_terminal_it_draws_over_and_over_and_ctrl_c_ends_it(peer, host):
    hosted = host()
    camera = hosted.camera()
    ours, theirs = pty.openpty()
    line, variables = command(TERM="xterm-256color", LINES="24")
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = b""

    def read():
        nonlocal seen
        try:
            seen += os.read(ours, 1 << 16)
        except BlockingIOError:
            pass
        except OSError:  # the terminal has gone with the process
            return False
        return seen

    def send_and_read():
        peer.send(camera, image(picture("green", 4, 4)))
        read()
        return seen.count(b"/bnn/classifier") >= 3 and b"green" in seen

    try:
        peer.until(send_and_read)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline, "watch does not end"
            read()
            peer.work(PACE)
        read()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0, seen.decode()
    # The terminal's own screen is back, its cursor too, and the last view stays on it.
    assert seen.rindex(b"\x1b[?1049l") < seen.rindex(b"/bnn/classifier")
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
