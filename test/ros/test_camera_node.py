"""The camera node as a process of its own, heard over real DDS."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import PATIENCE, ending, running, stamp
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Classification, Detection2DArray

from bnn_perception.scenes.drive import Scene
from bnn_perception.scenes.signs import ROAD_SIGNS

camera = functools.partial(running, "camera_node")

#: How the node publishes images; a reliable subscription gets none.
BEST_EFFORT = ReliabilityPolicy.BEST_EFFORT


def test_scene_arrives_with_its_truth_and_boxes(peer):
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    truths = peer.subscribe(Classification, "/truth")
    found = peer.subscribe(Detection2DArray, "/detections")
    with camera("source:=scene:3"):
        peer.until(
            lambda: (
                len(images) >= 10
                and all(heard and stamp(heard[-1]) >= stamp(images[9]) for heard in (truths, found))
            )
        )
    scene = Scene(3)
    drawn, boxes = {}, {}
    for _ in range(2000):  # some frames pass before the peer is discovered
        pixels, class_id = scene.next()
        drawn[pixels.tobytes()] = ROAD_SIGNS[class_id]
        boxes[pixels.tobytes()] = scene.sign_box
        if images[9].data.tobytes() in drawn:
            break
    answers = {stamp(truth): truth for truth in truths}
    for image in images[:10]:
        assert (image.height, image.width, image.encoding, image.step) == (480, 640, "rgb8", 1920)
        assert image.header.frame_id == "camera"
        truth = answers[stamp(image)]
        assert truth.header == image.header
        assert [result.class_id for result in truth.results] == [drawn[image.data.tobytes()]]
        assert truth.results[0].score == 1.0
        detections = next(message for message in found if message.header == image.header)
        (detection,) = detections.detections
        bbox = detection.bbox
        place = bbox.center.position
        assert (place.x, place.y, bbox.size_x, bbox.size_y, bbox.center.theta) == boxes[image.data.tobytes()]
        assert (detection.header, detection.id, detection.results) == (image.header, "0", [])
    # As a camera would, not when the scene began.
    assert abs(time.time_ns() - stamp(images[9])) < PATIENCE * 1e9


def test_a_parameter_of_a_type_that_there_is_not_does_not_end_the_node(peer):
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    with camera("source:=scene") as process:
        client = peer.node.create_client(SetParameters, "/camera/set_parameters")
        peer.until(client.service_is_ready)
        unknown = ParameterMessage(name="rate", value=ParameterValue(type=99))
        client.call_async(SetParameters.Request(parameters=[unknown]))
        peer.set_parameters("/camera", rate=20.0)
        images.clear()
        peer.until(lambda: len(images) >= 3)
        peer.node.destroy_client(client)
        os.killpg(process.pid, signal.SIGINT)
        output, code = ending(process)
    assert code == 0, output
    assert output.count("unexpected error: a callback: ") == 1


def test_folder_is_published_in_order_and_in_a_loop(peer, tmp_path):
    levels = [10, 20, 30]
    for level in levels:
        cv2.imwrite(str(tmp_path / f"{level}.png"), np.full((24, 32, 3), level, np.uint8))
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    truths = peer.subscribe(Classification, "/truth")
    with camera(f"source:={tmp_path}", "loop:=true", "rate:=50.0", "frame_id:=front"):
        peer.until(lambda: len(images) >= 7)
    seen = [image.data[0] for image in images]
    start = levels.index(seen[0])
    assert seen == [levels[(start + index) % 3] for index in range(len(seen))]
    assert images[0].header.frame_id == "front"
    assert truths == []  # nothing is known


def test_pace_of_the_source_is_kept(peer, tmp_path):
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((24, 32, 3), np.uint8))
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    with camera(f"source:={tmp_path}", "loop:=true"):
        peer.until(lambda: len(images) >= 6)
    steps = np.diff([stamp(image) for image in images]) * 1e-9
    # A folder has 10 images a second. A late frame moves those after it: on a busy machine steps only get longer.
    assert steps.mean() > 0.09
    # Not every one of them, though; test_camera_in_process.py has the pace on a scripted clock.
    assert steps.min() < 0.18


TYPES = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")


@pytest.fixture
def recording(tmp_path):
    """A function that records three images, raw with padded rows or compressed."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    store = TYPES.get_typestore(TYPES.Stores.ROS2_HUMBLE)
    header = store.types["std_msgs/msg/Header"](
        stamp=store.types["builtin_interfaces/msg/Time"](sec=7, nanosec=5), frame_id="front_left"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)

    def write(compressed):
        if compressed:
            kind = "sensor_msgs/msg/CompressedImage"
            _, data = cv2.imencode(".png", pixels)
            message = store.types[kind](
                header=header, format="bgr8; png compressed bgr8", data=data.reshape(-1)
            )
        else:
            kind = "sensor_msgs/msg/Image"
            rows = np.pad(pixels.reshape(24, 96), ((0, 0), (0, 4)), constant_values=7)
            message = store.types[kind](header, 24, 32, "bgr8", 1, 100, rows.reshape(-1))
        with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connection = writer.add_connection("/somewhere/image", kind, typestore=store)
            for index in range(3):
                data = store.serialize_cdr(message, kind)
                writer.write(connection, 1_000_000_000 + index * 20_000_000, data)
        return tmp_path / "bag", message, pixels

    return write


def test_raw_recording_is_published_bit_for_bit(peer, recording):
    path, recorded, _ = recording(compressed=False)
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    with camera(f"source:={path}", "loop:=true"):
        peer.until(lambda: len(images) >= 2)
    image = images[0]
    assert (image.height, image.width, image.encoding) == (24, 32, "bgr8")
    assert (image.is_bigendian, image.step) == (1, 100)
    assert image.data.tobytes() == recorded.data.tobytes()
    assert image.header.frame_id == "front_left"


def test_compressed_recording_is_published_compressed(peer, recording):
    path, recorded, _ = recording(compressed=True)
    images = peer.subscribe(CompressedImage, "/image_raw/compressed", BEST_EFFORT)
    with camera(f"source:={path}", "loop:=true"):
        peer.until(lambda: len(images) >= 1)
    assert images[0].format == "bgr8; png compressed bgr8"
    assert images[0].data.tobytes() == recorded.data.tobytes()


def test_compressed_recording_is_published_raw_if_asked(peer, recording):
    path, _, pixels = recording(compressed=True)
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    with camera(f"source:={path}", "loop:=true", "decode:=true"):
        peer.until(lambda: len(images) >= 1)
    assert images[0].encoding == "bgr8"
    assert images[0].data.tobytes() == pixels.tobytes()


def test_reliability_can_be_overridden(peer):
    images = peer.subscribe(Image, "/image_raw", ReliabilityPolicy.RELIABLE)
    with camera("source:=scene", "qos_overrides./image_raw.publisher.reliability:=reliable"):
        peer.until(lambda: len(images) >= 3)


def test_ends_with_its_source(tmp_path):
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((24, 32, 3), np.uint8))
    (tmp_path / "c.png").write_bytes(b"no picture")
    with camera(f"source:={tmp_path}") as process:
        output, code = ending(process)
    assert code == 0
    assert "2 frames published, 1 refused" in output
    assert output.count("c.png") == 1


def test_ends_after_so_many_frames():
    with camera("source:=scene", "frames:=5", "rate:=100.0") as process:
        output, code = ending(process)
    assert code == 0
    assert "5 frames published" in output


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_ends_quietly_when_told_to(peer, signals):
    images = peer.subscribe(Image, "/image_raw", BEST_EFFORT)
    with camera("source:=scene") as process:
        peer.until(lambda: len(images) >= 1)
        for number in signals:  # a launcher passes on what the terminal has sent to the group already
            os.killpg(process.pid, number)
        output, code = ending(process)
    assert code == 0, output
    assert "Traceback" not in output
    assert "rror" not in output


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("source:=/nowhere", "camera_node: '/nowhere': no such file or folder"),
        ("source:=scene:x", "camera_node: scene:x: the seed 'x'"),
        ("rate:=-1.0", "camera_node: rate must lie between"),
        ("frames:=many", "camera_node: frames must be a whole number like 0"),
    ],
)
def test_start_that_fails_says_why_in_one_line(parameter, reason):
    with camera(parameter) as process:
        output, code = ending(process)
    assert code == 1
    assert len(output.splitlines()) == 1, output
    assert output.startswith(reason)


def test_unknown_argument_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "bnn_perception", "camera_node", "--source", "scene"],
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "'--source' is no argument" in done.stderr
