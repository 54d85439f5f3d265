"""The collect node over real DDS: what it saves under which label, what it refuses, and how it ends."""

from __future__ import annotations

import os
import resource
import signal
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from nodes import PATIENCE, Diagnostics, ending, image, running, stamp
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2DArray

from bnn_perception.collection import CollectionError, stamp_name
from bnn_perception.frames.boxes import Box
from bnn_perception.frames.images import class_folders, read_image
from bnn_perception.ros import collect_node, saving
from bnn_perception.ros.collect_node import CollectNode
from bnn_perception.ros.detections import as_message
from bnn_perception.ros.parameters import ParameterError

NODE = "/bnn/collector"


def shot(seed, height=24, width=32):
    """A picture that is like no other."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Collector:
    """A node in this process that saves every frame, and what is heard of it."""

    def __init__(self, peer, tmp_path, **parameters):
        self.folder = folder = tmp_path / "images"
        self._peer = peer
        self.diagnostics = Diagnostics(peer)
        values = {"every": 1, "diagnostics_period": 0.1, **parameters}
        self.node = peer.host(CollectNode, **{"folder": str(folder), **values})

    def camera(self, topic="/bnn/image", kind=Image):
        """A publisher that the node has found; it is reliable, and nothing of it gets lost."""
        publisher = self._peer.node.create_publisher(
            kind, topic, QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        )
        self._peer.until(lambda: publisher.get_subscription_count())
        return publisher

    def send(self, publisher, message):
        """Publish a frame and wait until the node has received it; returns its stamp."""
        before = sum(self.node._reports.seen)
        sent = self._peer.send(publisher, message)
        # Best effort may lose it, on whichever side.
        deadline = 50
        while sum(self.node._reports.seen) == before and deadline:
            self._peer.work_for(0.5, lambda: sum(self.node._reports.seen) > before)
            if sum(self.node._reports.seen) == before:
                publisher.publish(message)
                deadline -= 1
        return sent

    def set(self, **values):
        return self._peer.set_parameters(NODE, **values)

    def until_saved(self, **counts):
        self._peer.until(lambda: self.node._saver.collection.counts == counts)

    def became(self, key, number):
        """Wait until diagnostics count so many."""
        self.diagnostics.until(lambda status, values: values.get(key) == str(number))

    def files(self, label):
        return [file.path.name for file in class_folders(self.folder).get(label, [])]


@pytest.fixture
def collector(peer, tmp_path):
    """A function that starts the node."""
    return lambda **parameters: Collector(peer, tmp_path, **parameters)


def test_what_is_seen_is_saved_under_the_label_of_the_moment(collector):
    node = collector(label="forklift")
    camera = node.camera()
    first = node.send(camera, image(shot(0)))
    (result,) = node.set(label="person")
    assert result.successful
    second = node.send(camera, image(shot(1), "bgr8"))
    node.until_saved(forklift=1, person=1)
    assert np.array_equal(read_image(node.folder / "forklift" / f"{stamp_name(first)}.png"), shot(0))
    assert np.array_equal(
        read_image(node.folder / "person" / f"{stamp_name(second)}.png"), shot(1)[..., ::-1]
    )


def test_an_empty_label_pauses(collector, peer):
    node = collector()
    node.diagnostics.until(lambda status, values: status.message == "paused: label is empty")
    assert not node.node.subscriptions or all(
        "image" not in each.topic_name for each in node.node.subscriptions
    )
    node.set(label="a")
    camera = node.camera()
    node.send(camera, image(shot(0)))
    node.set(label="")
    node.send(camera, image(shot(1)))
    node.set(label="a")
    node.send(camera, image(shot(2)))
    node.until_saved(a=2)
    assert np.array_equal(read_image(node.folder / "a" / node.files("a")[1]), shot(2))


def test_images_are_not_even_subscribed_after_a_pause(collector, peer, monkeypatch):
    monkeypatch.setattr(collect_node, "IDLE", 0.2)
    node = collector(label="a")
    camera = node.camera()
    node.set(label="")
    peer.until(lambda: camera.get_subscription_count() == 0)
    node.set(label="a")
    peer.until(lambda: camera.get_subscription_count() == 1)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("../../etc", "label '../../etc' holds '/'; "),
        ("..", "label '..' begins with a point: the folder would be hidden; a label names a folder"),
        ("a\nb", "label 'a\\nb' holds a character that is not shown"),
        ("NUL", "label 'NUL' is the name of a device on Windows"),
        ("x" * 500, "is longer than 200 characters"),
    ],
)
def test_a_label_that_names_no_folder_is_refused_in_one_line(collector, label, reason):
    node = collector(label="a")
    (result,) = node.set(label=label)
    assert not result.successful
    assert reason in result.reason
    assert result.reason.isprintable()
    assert node.node._settings.label == "a"


def test_the_folder_is_set_at_the_start_only(collector, tmp_path):
    node = collector()
    (result,) = node.set(folder=str(tmp_path / "elsewhere"))
    assert not result.successful
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("parameters", "error", "said"),
    [
        ({"folder": ""}, ParameterError, "folder is empty"),
        ({"label": "a/b"}, ParameterError, "label 'a/b' holds '/'"),
        ({"folder": "/proc/nothing"}, CollectionError, "/proc/nothing: cannot be used: "),
        ({"every": 0}, ParameterError, "every must lie between 1 and 1000000"),
    ],
)
def test_a_start_that_cannot_be_is_refused(collector, parameters, error, said):
    with pytest.raises(error) as caught:
        collector(**parameters)
    assert str(caught.value).startswith(said)


def test_near_duplicates_are_refused_and_counted(collector):
    node = collector(label="a")
    camera = node.camera()
    grey = np.full((24, 32, 3), 100, np.uint8)
    for level in (0, 4, 9, 50):
        node.send(camera, image(grey + np.uint8(level)))
    node.became("near-duplicates", 2)
    node.until_saved(a=2)
    node.set(difference=0.0)
    node.send(camera, image(grey))
    node.until_saved(a=3)


def test_every_so_many_th_frame_is_saved_from_the_first_under_a_label_on(collector):
    node = collector(label="a", every=3)
    camera = node.camera()
    sent = [node.send(camera, image(shot(number))) for number in range(5)]
    node.set(label="b")
    sent += [node.send(camera, image(shot(number))) for number in range(5, 7)]
    node.until_saved(a=2, b=1)
    assert node.files("a") == [f"{stamp_name(sent[0])}.png", f"{stamp_name(sent[3])}.png"]
    assert node.files("b") == [f"{stamp_name(sent[5])}.png"]


def test_the_region_is_saved(collector):
    node = collector(label="a", region=[0.5, 0.0, 0.5, 0.5])
    node.send(node.camera(), image(shot(0)))
    node.until_saved(a=1)
    assert np.array_equal(read_image(node.folder / "a" / node.files("a")[0]), shot(0)[:12, 16:])


def test_boxes_are_saved_instead_of_the_region(collector, peer):
    node = collector(label="a", detection_topics=["boxes"], box_margin=0.5)
    camera = node.camera()
    boxes = node.camera("/bnn/boxes", Detection2DArray)
    message = image(shot(0, 100, 100))
    message.header.stamp = peer.node.get_clock().now().to_msg()
    # The second has no pixel in the image.
    places = [Box(30.0, 20.0, 10.0, 10.0), Box(-500.0, 0.0, 10.0, 10.0), Box(80.0, 80.0, 10.0, 20.0)]
    found = as_message(places, message.header)
    camera.publish(message)
    peer.work(0.1)
    boxes.publish(found)
    node.until_saved(a=2)
    name = stamp_name(stamp(message))
    assert node.files("a") == [f"{name}-box0.png", f"{name}-box2.png"]
    assert np.array_equal(read_image(node.folder / "a" / f"{name}-box0.png"), shot(0, 100, 100)[10:30, 20:40])
    assert read_image(node.folder / "a" / f"{name}-box2.png").shape == (40, 20, 3)
    node.became("boxes unusable", 1)


def test_two_cameras_share_the_folder(collector):
    node = collector(label="a", image_topics=["left", "right"])
    left, right = node.camera("/bnn/left"), node.camera("/bnn/right")
    one = node.send(left, image(shot(0)))
    two = node.send(right, image(shot(1)))
    node.until_saved(a=2)
    assert sorted(node.files("a")) == sorted([f"{stamp_name(one)}-0.png", f"{stamp_name(two)}-1.png"])
    node.became("images", 2)
    names = [status.name for status in node.diagnostics.statuses]
    assert names == [f"{NODE}: collection", f"{NODE}: camera /bnn/left", f"{NODE}: camera /bnn/right"]


def test_compressed_images_are_taken(collector):
    import cv2

    node = collector(label="a", image_transport="compressed")
    camera = node.camera("/bnn/image/compressed", CompressedImage)
    encoded = cv2.imencode(".png", shot(0)[..., ::-1])[1]
    node.send(camera, CompressedImage(format="rgb8; png compressed bgr8", data=encoded.tobytes()))
    node.until_saved(a=1)
    assert np.array_equal(read_image(node.folder / "a" / node.files("a")[0]), shot(0))


def test_a_frame_that_cannot_be_used_costs_itself(collector):
    node = collector(label="a")
    camera = node.camera()
    broken = image(shot(0))
    broken.step = 5
    node.send(camera, broken)
    node.diagnostics.until(
        lambda status, values: (
            "1 frames refused, the last on /bnn/image: step 5 is less than" in status.message
        )
    )
    node.send(camera, image(shot(1)))
    node.until_saved(a=1)


def test_images_without_a_stamp_get_the_time_of_the_node(collector, peer):
    node = collector(label="a")
    camera = node.camera()
    for seed in range(2):
        before = node.node._reports.seen[0]
        while node.node._reports.seen[0] == before:
            camera.publish(image(shot(seed)))
            peer.work(0.1)
    node.until_saved(a=2)
    assert not any(name.startswith("0000000000.") for name in node.files("a"))


def test_a_full_folder_is_said(collector):
    node = collector(label="a", max_images=1)
    camera = node.camera()
    node.send(camera, image(shot(0)))
    node.until_saved(a=1)
    node.send(camera, image(shot(1)))
    node.diagnostics.until(
        lambda status, values: "is full, with 1 images of 0 MB; train on" in status.message
    )
    (result,) = node.set(max_images=2)  # the disk is not everybody's
    assert not result.successful


def test_callbacks_do_not_wait_for_a_slow_disk(collector, monkeypatch):
    import threading

    node = collector(label="a")
    camera = node.camera()
    go_on = threading.Event()
    add = node.node._saver.collection.add

    def slow(*arguments):
        assert go_on.wait(PATIENCE)
        return add(*arguments)

    monkeypatch.setattr(node.node._saver.collection, "add", slow)
    for number in range(saving.MAX_WAITING + 3):  # one is being saved, or about to be
        node.send(camera, image(shot(number)))
    node.diagnostics.until(lambda status, values: int(values["dropped"]) in (2, 3))
    assert node.node._saver.worker.state.startswith("saving an image of camera 0 for ")
    go_on.set()
    node.until_saved(a=saving.MAX_WAITING + 3 - node.node._saver.dropped)


def test_counts_are_told_on_request(collector, peer):
    node = collector(label="a")
    node.send(node.camera(), image(shot(0)))
    node.until_saved(a=1)
    answer = peer.call(Trigger, f"{NODE}/counts", Trigger.Request())
    assert answer.success
    assert answer.message == f"{node.folder} holds 1 a; 0 near-duplicates left out"


# As a process.


def collecting(folder, *parameters):
    common = (f"folder:={folder}", "every:=1", "difference:=0.0", "diagnostics_period:=0.1")
    return running("collect_node", *common, *parameters)


def show_until(peer, camera, message, condition):
    """Publish a picture over and over, at the pace of a camera, until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        peer.send(camera, message)
        peer.work(1 / 30)


def found(peer):
    """A camera that the node has found."""
    camera = peer.node.create_publisher(Image, "/bnn/image", QoSProfile(depth=5))
    peer.until(lambda: camera.get_subscription_count())
    return camera


def test_ctrl_c_ends_it_with_every_file_whole(peer, tmp_path):
    large = image(shot(0, 480, 640))
    with collecting(tmp_path / "images", "label:=a") as process:
        camera = found(peer)
        show_until(peer, camera, large, lambda: len(list(tmp_path.rglob("*.png"))) > 20)
        os.killpg(process.pid, signal.SIGINT)  # in the midst of a file, as likely as not
        show_until(peer, camera, large, lambda: process.poll() is not None)
        output, code = ending(process)
    assert code == 0, output
    (files,) = class_folders(tmp_path / "images").values()
    assert {read_image(file).shape for file in files} == {(480, 640, 3)}
    assert list(tmp_path.rglob(".*")) == []
    assert f"{tmp_path / 'images'} holds {len(files)} a; 0 near-duplicates left out" in output


def test_a_file_that_cannot_be_written_is_an_error_and_costs_that_image(peer, tmp_path):
    """A limit of the process on the size of files stands for a full disk."""
    diagnostics = Diagnostics(peer)
    with collecting(tmp_path / "images", "label:=a") as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        camera = found(peer)
        show_until(
            peer,
            camera,
            image(shot(1, 480, 640)),
            lambda: diagnostics.heard and "could not be saved" in diagnostics.status.message,
        )
        said = diagnostics.status
        show_until(peer, camera, image(shot(0)), lambda: list(tmp_path.rglob("*.png")))
        os.killpg(process.pid, signal.SIGINT)
        output, code = ending(process)
    assert code == 0, output
    assert said.level == DiagnosticStatus.ERROR
    assert "images could not be saved, the last: " in said.message
    assert "File too large; make room, or start with another folder" in said.message
    assert "[ERROR]" in output
    assert "an image could not be saved: " in output
    assert {read_image(path).shape for path in tmp_path.rglob("*.png")} == {(24, 32, 3)}
    assert list(tmp_path.rglob(".*")) == []


def test_a_folder_that_cannot_be_made_ends_it_with_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with collecting(tmp_path / "file") as process:
        output, code = ending(process)
    assert code == 1
    assert f"collect_node: {tmp_path / 'file'}: cannot be used: File exists; name another folder" in output
    assert "Traceback" not in output
