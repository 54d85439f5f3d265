"""A detector's boxes over real DDS: each is labelled, in one batch, and goes back under its own header and id."""

from __future__ import annotations

import math

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from hosted import NODE
from nodes import FRAME, image, picture, stamp
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import (
    BoundingBox2D,
    Classification,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)

from bnn_perception.ros import health
from bnn_perception.ros.boxes_msg import MAX_BOXES
from bnn_perception.ros.classifier_node import ClassifierNode
from bnn_perception.ros.diagnostics import as_mapping
from bnn_perception.ros.parameters import ParameterError


def box(x, y, width, height, name="", theta=0.0, says=()):
    """A detection; ``says`` are labels of the detector."""
    bbox = BoundingBox2D(size_x=float(width), size_y=float(height))
    bbox.center.position.x, bbox.center.position.y, bbox.center.theta = float(x), float(y), theta
    results = [ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id=s, score=0.5)) for s in says]
    return Detection2D(bbox=bbox, id=name, results=results)


def stripes():
    """Red, green and blue, 20 pixels each, from the left to the right."""
    return np.concatenate([picture(colour, 40, 20) for colour in ("red", "green", "blue")], axis=1)


def earlier(header, nanoseconds):
    """Put a stamp back."""
    now = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec - nanoseconds
    header.stamp.sec, header.stamp.nanosec = divmod(now, 1_000_000_000)


def labels(detection):
    return [result.hypothesis.class_id for result in detection.results]


class Detector:
    """A camera and its detector, and what comes back of their boxes."""

    def __init__(
        self, peer, hosted, camera="/bnn/image", boxes="/bnn/boxes", answers="/bnn/labeled_detections"
    ):
        self._peer = peer
        self.hosted = hosted
        self.answers = peer.subscribe(Detection2DArray, answers)
        self._images = peer.node.create_publisher(
            Image, camera, QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        )
        self._boxes = peer.node.create_publisher(Detection2DArray, boxes, 10)
        peer.until(lambda: self._images.get_subscription_count() and self._boxes.get_subscription_count())
        # What a side publishes before the other has found it is lost: ask until the first answer comes.
        while not self.answers:
            self.ask()
            peer.work(0.1)
        last = self.ask()
        peer.until(lambda: stamp(self.answers[-1]) == last)
        self.answers.clear()
        hosted.diagnostics.from_now_on()

    def image(self, pixels=None, frame_id="camera"):
        """Publish an image; returns its header."""
        message = image(stripes() if pixels is None else pixels, frame_id=frame_id)
        self._peer.send(self._images, message)
        return message.header

    def boxes(self, header, *detections):
        self._boxes.publish(Detection2DArray(header=header, detections=list(detections)))

    def ask(self, *detections, pixels=None):
        """Publish an image and boxes of it; returns the stamp."""
        header = self.image(pixels)
        self.boxes(header, *detections)
        return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec

    def answer(self, *detections, pixels=None):
        """The detections of the answer to an image and its boxes."""
        asked = self.ask(*detections, pixels=pixels)
        self._peer.until(lambda: self.answers and stamp(self.answers[-1]) == asked)
        return self.answers[-1].detections

    def counts(self, camera="/bnn/image"):
        """Numbers of the camera's status by name."""
        prefix = f"camera {camera}: "
        values = self.hosted.diagnostics.values
        return {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}


@pytest.fixture
def detector(peer, host, patient):
    def start(**parameters):
        return Detector(peer, host(detection_topics=["boxes"], **parameters))

    return start


def test_each_box_is_labelled_under_its_own_id(detector):
    detector = detector()
    header = detector.image(frame_id="front")
    detector.boxes(
        header,
        box(10, 20, 16, 16, "a", says=["sign", "thing"]),
        box(50, 20, 16, 16, "b"),
        box(30, 20, 16, 16, "c"),
    )
    detector._peer.until(lambda: detector.answers)
    answer = detector.answers[-1]
    assert answer.header == header
    assert [(d.id, labels(d)) for d in answer.detections] == [
        ("a", ["red", "sign", "thing"]),
        ("b", ["blue"]),
        ("c", ["green"]),
    ]
    first = answer.detections[0]
    assert (first.bbox.center.position.x, first.bbox.size_x) == (10.0, 16.0)
    assert [result.hypothesis.score for result in first.results[1:]] == [0.5, 0.5]
    assert 0.3 < first.results[0].hypothesis.score <= 1


def test_whole_images_are_not_labelled_where_boxes_are(peer, detector):
    heard = peer.subscribe(Classification, "/bnn/labels")
    detector = detector()
    detector.answer(box(10, 20, 16, 16))
    assert heard == []
    assert peer.node.count_publishers("/bnn/labels") == 0


def test_an_image_without_boxes_is_answered_by_none(detector):
    assert detector().answer() == []


def test_three_hundred_boxes_are_answered_in_order(detector):
    detector = detector()
    middles = np.random.default_rng(0).choice([10, 30, 50], 300)
    answer = detector.answer(*[box(x, 20, 8, 8, str(i)) for i, x in enumerate(middles)])
    colours = {10: "red", 30: "green", 50: "blue"}
    assert [(d.id, *labels(d)) for d in answer] == [(str(i), colours[x]) for i, x in enumerate(middles)]


@pytest.mark.parametrize(
    "bad",
    [
        box(math.nan, 20, 16, 16, "bad"),
        box(10, 20, math.inf, 16, "bad"),
        box(10, 20, 0, 16, "bad"),
        box(10, 20, -5, 16, "bad"),
        box(500, 20, 16, 16, "bad"),
        box(10, 20, 16, 16, "bad", theta=math.nan),
    ],
    ids=["nan", "inf", "empty", "negative", "outside", "nan theta"],
)
def test_a_box_that_holds_no_pixel_is_unknown(detector, bad):
    detector = detector()
    bad.results = [ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id="sign", score=0.5))]
    answer = detector.answer(box(10, 20, 16, 16, "good"), bad)
    assert [(d.id, labels(d)) for d in answer] == [("good", ["red"]), ("bad", ["unknown", "sign"])]
    assert answer[1].results[0].hypothesis.score == 0
    detector.hosted.diagnostics.until(
        lambda status, values: detector.counts()["boxes that hold no pixel of the image"] == "1"
    )
    assert int(detector.counts()["boxes answered"]) >= 2


def test_a_box_that_no_label_reaches_the_threshold_of_is_unknown(detector):
    detector = detector(score_threshold=1.0)
    (answer,) = detector.answer(box(30, 20, 60, 40, "all"))
    assert labels(answer) == ["unknown"]


def test_boxes_are_enlarged_by_the_margin(detector):
    detector = detector()
    pixels = np.concatenate([picture("red", 40, 18), picture("green", 40, 42)], axis=1)
    for margin, expected in ((0.0, "red"), (10.0, "green")):
        detector.hosted.set(box_margin=margin)
        assert labels(*detector.answer(box(14, 20, 8, 8), pixels=pixels)) == [expected]


def test_a_turned_box_takes_the_rectangle_around_it(detector):
    # As it lies 38 x 4 pixels of red and green; turned by a right angle 4 x 38 of green.
    assert labels(*detector().answer(box(25, 20, 38, 4, theta=math.pi / 2))) == ["green"]


def test_a_message_of_too_many_boxes_costs_itself(detector):
    detector = detector()
    detector.ask(*[box(10, 20, 8, 8)] * (MAX_BOXES + 1))
    detector.hosted.says(
        f"{MAX_BOXES + 1} boxes; at most {MAX_BOXES} an image are taken", DiagnosticStatus.WARN
    )
    assert labels(*detector.answer(box(10, 20, 8, 8))) == ["red"]


def test_boxes_that_come_late_find_their_image(peer, detector):
    detector = detector()
    headers = [detector.image() for _ in range(3) if peer.work(FRAME) is None]
    peer.work(0.3)
    detector.boxes(headers[1], box(10, 20, 8, 8, "late"))
    peer.until(lambda: detector.answers)
    assert detector.answers[-1].header == headers[1]
    detector.hosted.diagnostics.until(lambda status, values: detector.counts()["images without boxes"] != "0")


def test_boxes_whose_image_never_comes_are_named(peer, detector):
    detector = detector()
    heard = peer.subscribe(DiagnosticArray, "/diagnostics")
    header = detector.image()
    earlier(header, 1_048_576)
    detector.boxes(header, box(10, 20, 8, 8))
    # Until something newer is a pair they may still find each other.
    assert labels(*detector.answer(box(10, 20, 8, 8))) == ["red"]
    said = "1 messages on /bnn/boxes found no image of /bnn/image with their stamp (the nearest was 1.0 ms away); let "
    peer.until(lambda: any(said in status.message for array in heard for status in array.status))
    peer.until(lambda: as_mapping(heard[-1].status[1].values)["messages of boxes without an image"] == "1")


def test_stamps_within_the_tolerance_are_a_pair(peer, detector):
    detector = detector(sync_tolerance=0.01)
    header = detector.image()
    earlier(header, 1_048_576)
    detector.boxes(header, box(10, 20, 8, 8))
    peer.until(lambda: detector.answers)
    assert detector.answers[-1].header == header  # the detector's own


def test_one_camera_with_boxes_and_one_without(peer, host, patient):
    hosted = host(image_topics=["front", "rear"], detection_topics=["boxes", ""])
    camera = hosted.camera("/bnn/rear")
    own = peer.subscribe(Detection2DArray, "/bnn/front/labeled_detections")
    detector = Detector(peer, hosted, camera="/bnn/front")
    assert labels(*detector.answer(box(10, 20, 8, 8))) == ["red"]
    peer.until(lambda: own and own[-1] == detector.answers[-1])
    peer.send(camera, image(picture("blue", 4, 4)))
    peer.until(lambda: hosted.answers)
    topics = {name for name, _ in peer.node.get_topic_names_and_types()}
    assert {"/bnn/rear/labels", "/bnn/front/labeled_detections"} <= topics
    assert not {"/bnn/front/labels", "/bnn/rear/labeled_detections"} & topics


def test_a_detector_that_is_silent_is_named(peer, host, monkeypatch):
    monkeypatch.setattr(health, "SILENCE", 0.3)
    hosted = host(detection_topics=["boxes"])
    hosted.says("nobody publishes /bnn/boxes", DiagnosticStatus.WARN)
    publisher = peer.node.create_publisher(Detection2DArray, "/bnn/found", 10)
    hosted.says("nobody publishes /bnn/boxes; boxes are on /bnn/found")
    peer.node.destroy_publisher(publisher)
    peer.node.create_publisher(Detection2DArray, "/bnn/boxes", 10)
    hosted.says("no boxes on /bnn/boxes for ")


def test_boxes_that_never_find_their_image_are_named_at_once(peer, detector, monkeypatch):
    detector = detector()
    monkeypatch.setattr(health, "SILENCE", 0.3)

    def said():
        header = detector.image()
        header.stamp.sec ^= 1
        detector.boxes(header, box(10, 20, 8, 8))
        peer.work(0.1)
        return "have found their image on /bnn/image for " in detector.hosted.diagnostics.status.message

    peer.until(said)
    assert "let the detector copy the header of the image" in detector.hosted.diagnostics.status.message


def test_nothing_that_waits_outlives_a_deactivation(peer, detector):
    detector = detector()
    detector.image()
    peer.work(0.2)
    detector.hosted.node.trigger_deactivate()
    assert all(len(pairing) == 0 for pairing in detector.hosted.node._cameras._pairings.values())
    detector.hosted.node.trigger_activate()
    assert labels(*Detector(peer, detector.hosted).answer(box(10, 20, 8, 8))) == ["red"]


@pytest.mark.parametrize(
    ("topics", "reason"),
    [
        (["a", "b"], r"detection_topics \['a', 'b'\] must be as many as image_topics, 1"),
        (["a b"], "detection_topics: 'a b' is not a topic"),
    ],
)
def test_topics_that_do_not_fit_are_refused(peer, english, topics, reason):
    with pytest.raises(ParameterError, match=reason):
        peer.host(ClassifierNode, model=str(english), detection_topics=topics)


def test_the_topics_of_boxes_cannot_be_set_later(peer, host):
    host()
    (result,) = peer.set_parameters(NODE, detection_topics=["boxes"])
    assert not result.successful
