"""What is published for who looks: annotated pictures and latencies, only while somebody subscribes them."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("cv2", reason="OpenCV is not installed")

from nodes import COLOURS, Diagnostics, image, labels_of, picture, send_and_wait, stamp
from scripted import PATIENCE, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Float32
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray

from bnn_perception.frames import annotate as drawing
from bnn_perception.ros import annotated, health
from bnn_perception.ros.classifier_node import ClassifierNode

ANNOTATED, LATENCY = "/bnn/image_annotated", "/bnn/latency"


def pixels_of(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


@pytest.fixture
def drawn(monkeypatch):
    """The answers that pictures are made of."""
    answers = []
    original = annotated.picture

    def record(answer, latency):
        answers.append(answer)
        return original(answer, latency)

    monkeypatch.setattr(annotated, "picture", record)
    return answers


@pytest.fixture
def halted(monkeypatch):
    """Lets every picture wait until the event is set."""
    go_on = threading.Event()
    entered = threading.Event()
    original = annotated.picture

    def wait(answer, latency):
        entered.set()
        assert go_on.wait(PATIENCE)
        return original(answer, latency)

    monkeypatch.setattr(annotated, "picture", wait)
    yield entered, go_on
    go_on.set()


def until_seen(peer, hosted, camera, heard, message=None):
    """Send frames until something is heard: discovery has no end that could be waited for."""
    message = message or image(picture("red"))

    def send():
        send_and_wait(peer, camera, message, hosted.answers)
        peer.work_for(0.2, lambda: heard)
        # What the camera began with may have been on its way.
        return heard and getattr(heard[-1], "height", message.height) == message.height

    peer.until(send)


def test_a_picture_has_the_frame_with_its_label_and_its_header(peer, host):
    hosted = host()
    camera = hosted.camera()
    pictures = peer.subscribe(Image, ANNOTATED)
    until_seen(peer, hosted, camera, pictures, image(picture("red"), frame_id="front"))
    shown = pictures[-1]
    assert (shown.height, shown.width, shown.encoding, shown.step) == (480, 640, "rgb8", 1920)
    assert shown.header.frame_id == "front"
    assert stamp(shown) in [stamp(answer) for answer in hosted.answers]
    assert labels_of(hosted.answers[-1]) == ["red"]
    pixels = pixels_of(shown)
    assert tuple(pixels[240, 320]) == COLOURS["red"]
    # The line around the whole frame has the colour of the score, and the tag lies in the upper left corner.
    colour = drawing.colour_of(hosted.answers[-1].results[0].score)
    assert tuple(pixels[240, 2]) == colour
    assert tuple(pixels[4, 8]) == colour


def test_nothing_is_drawn_while_nobody_looks(peer, host, drawn):
    hosted = host()
    camera = hosted.camera()
    send_and_wait(peer, camera, image(picture("red")), hosted.answers)
    assert drawn == []
    pictures = peer.subscribe(Image, ANNOTATED)
    until_seen(peer, hosted, camera, pictures)
    assert drawn


def test_the_messages_own_memory_is_not_drawn_into(peer, host, drawn):
    hosted = host()
    camera = hosted.camera()
    pictures = peer.subscribe(Image, ANNOTATED)
    until_seen(peer, hosted, camera, pictures)
    answers = [answer for answer in drawn if answer.frame.pixels.shape == (480, 640, 3)]
    assert answers
    for answer in answers:
        assert np.array_equal(answer.frame.pixels, picture("red"))
        assert np.shares_memory(answer.frame.pixels, np.frombuffer(answer.arrival.message.data, np.uint8))


def test_labels_do_not_wait_for_pictures_and_the_newest_is_drawn_next(peer, host, halted):
    entered, go_on = halted
    hosted = host()
    camera = hosted.camera()
    pictures = peer.subscribe(Image, ANNOTATED)
    peer.until(
        lambda: send_and_wait(peer, camera, image(picture("red")), hosted.answers) and entered.is_set()
    )
    for _ in range(5):  # the drawing thread stands still
        last = send_and_wait(peer, camera, image(picture("blue")), hosted.answers)
    assert pictures == []
    go_on.set()
    peer.until(lambda: len(pictures) == 2)
    assert stamp(pictures[-1]) == last
    peer.work(0.2)
    assert len(pictures) == 2


def test_a_picture_that_cannot_be_drawn_costs_itself(peer, host, monkeypatch):
    def fail(answer, latency):
        raise ValueError("no paint")

    monkeypatch.setattr(annotated, "picture", fail)
    hosted = host()
    camera = hosted.camera()
    peer.subscribe(Image, ANNOTATED)
    heard = []
    monkeypatch.setattr(hosted.node._annotated.worker, "_report", heard.append)
    peer.until(lambda: send_and_wait(peer, camera, image(picture("red")), hosted.answers) and heard)
    assert heard[0].startswith("drawing a picture: ValueError: no paint")
    send_and_wait(peer, camera, image(picture("red")), hosted.answers)


def test_one_warning_where_opencv_is_missing(peer, host, monkeypatch):
    warnings = []
    hosted = host()
    camera = hosted.camera()
    monkeypatch.setattr(hosted.node._annotated, "_warn", warnings.append)
    monkeypatch.setitem(sys.modules, "cv2", None)
    pictures = peer.subscribe(Image, ANNOTATED)
    peer.until(lambda: send_and_wait(peer, camera, image(picture("red")), hosted.answers) and warnings)
    for _ in range(3):
        send_and_wait(peer, camera, image(picture("red")), hosted.answers)
    wait_until(lambda: hosted.node._annotated.worker.state == "waiting")
    (warning,) = warnings
    assert "image_annotated stays empty: it needs OpenCV, which cannot be imported" in warning
    assert warning.endswith("sudo apt install python3-opencv")
    assert pictures == []


def test_boxes_are_drawn(peer, host):
    hosted = host(detection_topics=["detections"])
    boxes = peer.node.create_publisher(Detection2DArray, "/bnn/detections", 10)
    camera = hosted.unanswered()
    pictures = peer.subscribe(Image, ANNOTATED)
    pixels = picture("red")
    pixels[:, 320:] = COLOURS["blue"]
    message, detections = image(pixels), Detection2DArray()
    for x in (160.0, 480.0, 5000.0):  # the last lies outside
        box = BoundingBox2D(size_x=100.0, size_y=100.0)
        box.center.position.x, box.center.position.y = x, 240.0
        detections.detections.append(Detection2D(bbox=box))

    def send():
        peer.send(camera, message)
        detections.header = message.header
        boxes.publish(detections)
        peer.work_for(0.2, lambda: pictures)
        return pictures

    peer.until(send)
    shown = pixels_of(pictures[-1])
    for x in (160, 480):
        assert tuple(shown[240, x]) == tuple(pixels[240, x])
        assert tuple(shown[240, x - 50]) not in COLOURS.values()
        assert tuple(shown[240, x + 49]) not in COLOURS.values()
    assert tuple(shown[100, 480]) == COLOURS["blue"]


def test_latency_is_that_from_the_stamp_to_the_label(peer, host):
    hosted = host()
    camera = hosted.camera()
    heard = peer.subscribe(Float32, LATENCY)
    until_seen(peer, hosted, camera, heard)
    heard.clear()
    message = image(picture("red", 4, 4))
    now = peer.node.get_clock().now().nanoseconds - 2_000_000_000  # two seconds on its way
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 1_000_000_000)
    camera.publish(message)
    peer.until(lambda: heard)
    assert 2000 < heard[-1].data < 2000 + PATIENCE * 1e3


def test_each_of_several_cameras_has_topics_of_its_own(peer, english):
    node = peer.host(
        ClassifierNode,
        model=str(english),
        backend="reference",
        device="cpu",
        image_topics=["/front/image", "rear"],
    )
    node.start()
    topics = {publisher.topic_name for publisher in node.publishers}
    assert {topic for topic in topics if topic.endswith(("image_annotated", "latency"))} == {
        "/front/image/image_annotated",
        "/bnn/rear/image_annotated",
        "/front/image/latency",
        "/bnn/rear/latency",
    }


def test_who_looks_at_pictures_wakes_a_lazy_node(peer, english):
    diagnostics = Diagnostics(peer)
    node = peer.host(
        ClassifierNode,
        model=str(english),
        backend="reference",
        device="cpu",
        lazy=True,
        diagnostics_period=0.1,
    )
    node.start()
    diagnostics.until(lambda status, values: "idle: nobody subscribes" in status.message)
    peer.subscribe(Image, ANNOTATED)
    diagnostics.until(lambda status, values: "idle" not in status.message)


def test_the_topics_go_and_come_with_the_states(peer, host):
    hosted = host()
    for _ in range(2):
        hosted.node.trigger_deactivate()
        hosted.node.trigger_cleanup()
        assert ANNOTATED not in {publisher.topic_name for publisher in hosted.node.publishers}
        hosted.node.trigger_configure()
        hosted.node.trigger_activate()
        topics = [publisher.topic_name for publisher in hosted.node.publishers]
        assert topics.count(ANNOTATED) == topics.count(LATENCY) == 1
    camera = hosted.camera()
    pictures = peer.subscribe(Image, ANNOTATED)
    until_seen(peer, hosted, camera, pictures)


def test_a_picture_on_its_way_when_the_topics_go_is_dropped(peer, host, halted):
    entered, go_on = halted
    hosted = host()
    camera = hosted.camera()
    peer.subscribe(Image, ANNOTATED)
    peer.until(
        lambda: send_and_wait(peer, camera, image(picture("red")), hosted.answers) and entered.is_set()
    )
    hosted.node.trigger_deactivate()
    hosted.node.trigger_cleanup()
    go_on.set()
    wait_until(lambda: hosted.node._annotated.worker.state == "waiting")
    assert hosted.node._health.unforeseen.read() == (0, "")


def test_the_drawing_thread_is_watched(peer, host):
    hosted = host()
    hosted.diagnostics.until(lambda status, values: values.get("drawing thread") == "waiting")


def test_the_nodes_own_pictures_are_not_offered_as_a_camera(peer, host, monkeypatch):
    monkeypatch.setattr(health, "SILENCE", 0.1)
    peer.node.create_publisher(Image, "/bnn/image_raw", 1)
    hosted = host()
    hosted.diagnostics.until(
        lambda status, values: status.message.endswith(
            "nobody publishes /bnn/image; images are on /bnn/image_raw"
        )
    )
