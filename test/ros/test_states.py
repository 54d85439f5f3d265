"""The steady label over real DDS, and what diagnostics say of pictures that can show nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from hosted import LATCHED
from nodes import image, labels_of, picture, stamp
from vision_msgs.msg import Classification

from bnn_perception.ros import states

MS = 1_000_000


class Camera:
    """Sends pictures with stamps of its own, one after the answer to the other."""

    def __init__(self, peer, hosted, topic="/bnn/image"):
        self._peer = peer
        self._answers = hosted.answers
        self._publisher = hosted.camera(topic)
        self.now = time.time_ns() + 10 * 1_000_000_000  # after what was sent to find the node

    def see(self, colour, milliseconds=33):
        """A picture so long after the one before; returns its stamp."""
        self.now += milliseconds * MS
        message = image(picture(colour, 4, 4))
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.now, 1_000_000_000)
        self._publisher.publish(message)
        self._peer.until(lambda: self._answers and stamp(self._answers[-1]) == self.now)
        return self.now


@pytest.fixture
def camera(peer, host, patient, monkeypatch):
    """A function that starts the node; the camera, and the labels of its states so far."""
    monkeypatch.setattr(states, "GAP", 1e6)  # as long as the test is busy

    def start(**parameters):
        hosted = host(**parameters)
        heard = peer.subscribe(Classification, "/bnn/state", LATCHED)
        camera = Camera(peer, hosted)
        peer.until(lambda: heard)
        camera.see("green")
        peer.until(lambda: labels_of(heard[-1]) == ["green"])
        heard.clear()
        return camera, heard, hosted

    return start


def test_the_state_changes_with_the_label(peer, camera):
    camera, heard, hosted = camera()
    camera.see("green")
    at = camera.see("red")
    camera.see("red")
    peer.until(lambda: heard)
    assert [labels_of(message) for message in heard] == [["red"]]
    assert stamp(heard[0]) == at
    assert heard[0].results[0].score == pytest.approx(hosted.answers[-1].results[0].score)


def test_who_comes_later_gets_the_state(peer, camera):
    camera, _, _ = camera()
    camera.see("blue")
    later = peer.subscribe(Classification, "/bnn/state", LATCHED)
    peer.until(lambda: later)
    assert labels_of(later[0]) == ["blue"]


def test_what_flickers_does_not_reach_it(peer, camera):
    camera, heard, hosted = camera(hysteresis=0.2)
    seen = []
    for colour in ("red", "green", "blue", "green", "red", "green"):
        camera.see(colour)
        seen.append(labels_of(hosted.answers[-1]))
    assert seen == [["red"], ["green"], ["blue"], ["green"], ["red"], ["green"]]  # the raw answers stay
    for _ in range(8):
        camera.see("blue")
    peer.until(lambda: heard)
    assert [labels_of(message) for message in heard] == [["blue"]]


def test_stamps_that_stand_still_do_not_hold_it_up(peer, camera):
    """Some drivers leave them at 0; then the time of coming counts."""
    camera, heard, _ = camera(hysteresis=0.05)

    def seen():
        camera._publisher.publish(image(picture("red", 4, 4)))  # its stamp is 0
        peer.work(0.02)
        return heard and labels_of(heard[-1]) == ["red"]

    peer.until(seen)


def test_settings_hold_from_the_next_frame_on(peer, camera):
    camera, heard, hosted = camera(hysteresis=10.0)
    camera.see("red")
    hosted.set(hysteresis=0.0)
    camera.see("red")
    peer.until(lambda: heard)
    assert labels_of(heard[0]) == ["red"]


def test_below_the_threshold_the_state_is_unknown(peer, camera):
    camera, heard, hosted = camera(unknown_label="nothing")
    hosted.set(score_threshold=1.0)
    camera.see("red")
    peer.until(lambda: heard)
    assert [(r.class_id, r.score) for r in heard[0].results] == [("nothing", 0.0)]
    assert [(r.class_id, r.score) for r in hosted.answers[-1].results] == [("nothing", 0.0)]
    hosted.set(unknown_label="")
    camera.see("red")
    assert labels_of(hosted.answers[-1]) == []


def test_another_model_begins_anew(peer, camera, german):
    camera, heard, hosted = camera(hysteresis=10.0)
    hosted.set(model=str(german))
    peer.until(lambda: hosted.labels()[0] == "rot")
    camera.see("red")
    peer.until(lambda: heard)
    assert labels_of(heard[0]) == ["rot"]


def test_a_camera_that_sends_no_more_has_no_label(peer, camera, monkeypatch):
    _, heard, _ = camera(unknown_label="nothing")
    monkeypatch.setattr(states, "GAP", 0.1)
    peer.until(lambda: heard)
    assert labels_of(heard[-1]) == ["nothing"]
    count = len(heard)
    peer.work(0.5)
    assert len(heard) == count


def test_each_of_several_cameras_has_its_own(peer, host, patient):
    hosted = host(image_topics=["left", "right"], detection_topics=["", "boxes"])
    left = peer.subscribe(Classification, "/bnn/left/state", LATCHED)
    Camera(peer, hosted, "/bnn/left").see("blue")
    peer.until(lambda: left and labels_of(left[-1]) == ["blue"])
    topics = {name for name, _ in peer.node.get_topic_names_and_types()}
    assert not {"/bnn/state", "/bnn/right/state"} & topics


# Pictures.


def shows(peer, hosted, camera, pixels, text):
    """Send a picture until diagnostics say so of it."""

    def said():
        peer.send(camera, image(pixels))
        peer.work(0.05)
        return hosted.diagnostics.heard and text in hosted.diagnostics.status.message

    peer.until(said)
    assert hosted.diagnostics.status.level == DiagnosticStatus.WARN


def test_pictures_that_can_show_nothing_are_told(peer, host, patient):
    hosted = host(model="road_signs", backend="binary", threads=1)
    camera = hosted.camera()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    shows(peer, hosted, camera, noise // 64, "the picture of /bnn/image is too dark, 2 of 255")
    shows(peer, hosted, camera, 255 - noise // 64, "the picture of /bnn/image is too bright, 253 of 255")
    shows(
        peer,
        hosted,
        camera,
        picture("red", 48, 64),
        "the picture of /bnn/image is blurred or empty, sharpness 0.000",
    )
    hosted.set(frozen_after=0.2)
    shows(peer, hosted, camera, noise, "the picture of /bnn/image has not changed for ")
    hosted.set(frozen_after=0.0)
    told = "camera /bnn/image: sharpness"  # of a period in which a frame came
    hosted.diagnostics.until(
        lambda status, values: (
            peer.send(camera, image(noise)) and status.level == DiagnosticStatus.OK and told in values
        )
    )
    assert float(hosted.diagnostics.values[told]) > 0.3
