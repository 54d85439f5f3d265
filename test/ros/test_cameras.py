"""Several cameras at one classifier: which of them an answer, a number and a refusal belong to."""

from __future__ import annotations

import platform

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import Diagnostics, image, labels_of, picture
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification

from bnn_perception.ros.classifier_node import ClassifierNode

TOPICS = ("/front/image", "/bnn/rear")


@pytest.fixture
def start(peer, english):
    """A function that hosts a node with these topics, and returns it when it answers, with its diagnostics."""

    def start(*topics):
        diagnostics = Diagnostics(peer)
        node = peer.host(
            ClassifierNode,
            model=str(english),
            backend="reference",
            device="cpu",
            diagnostics_period=0.1,
            image_topics=list(topics),
        )
        node.start()
        peer.until(lambda: not node.pipeline.is_loading)
        return node, diagnostics

    return start


def test_each_of_several_cameras_has_a_topic_of_its_own(peer, start):
    heard = {topic: peer.subscribe(Classification, f"{topic}/labels") for topic in TOPICS}
    everything = peer.subscribe(Classification, "/bnn/labels")
    start("/front/image", "rear")
    colours = dict(zip(TOPICS, ("red", "blue")))
    cameras = {
        topic: peer.camera(image(picture(colour, 4, 4), frame_id=topic), topic, heard[topic])
        for topic, colour in colours.items()
    }
    for topic, colour in colours.items():
        peer.send(cameras[topic], image(picture(colour, 4, 4), frame_id=topic))
        peer.until(lambda topic=topic: heard[topic])
        assert {(message.header.frame_id, *labels_of(message)) for message in heard[topic]} == {
            (topic, colour)
        }
    said = {(message.header.frame_id, *labels_of(message)) for message in everything}
    assert said == set(colours.items())


def test_one_camera_alone_has_the_labels_topic_alone(peer, start):
    node, _ = start("image")
    topics = {publisher.topic_name for publisher in node.publishers}
    assert {topic for topic in topics if topic.endswith("/labels")} == {"/bnn/labels"}


def test_diagnostics_count_for_each_camera(peer, start):
    _, diagnostics = start("/front/image", "rear")
    profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    camera = peer.node.create_publisher(Image, "/bnn/rear", profile)
    peer.until(camera.get_subscription_count)
    bad = image(picture("green", 4, 4))
    bad.step = 1
    peer.send(camera, bad)
    diagnostics.until(lambda status, values: values["camera /bnn/rear: frames received"] == "1")
    # The topic as it is resolved, and not as the parameter has it.
    assert "refused, the last on /bnn/rear: step 1 is less" in diagnostics.status.message
    values = diagnostics.values
    assert values["camera /front/image: frames received"] == "0"
    assert values["camera /front/image: rate in (Hz)"] == "0.000"
    assert float(values["camera /bnn/rear: rate in (Hz)"]) > 0
    assert values["camera /bnn/rear: frames lost in transport"] == "0"
    silent, heard = (float(values[f"camera {topic}: since the last frame (s)"]) for topic in TOPICS)
    assert 0 <= heard < silent


def test_the_hardware_is_this_computer_before_and_after_a_swap(peer, start):
    """Monitors group what they show by it."""
    _, diagnostics = start("image")
    diagnostics.until(lambda status, values: values["backend"] == "reference")
    assert diagnostics.status.hardware_id == platform.node() != ""
    peer.set_parameters("/bnn/classifier", model="road_signs")
    diagnostics.until(lambda status, values: values["model"] == "road_signs")
    assert diagnostics.status.hardware_id == platform.node()
