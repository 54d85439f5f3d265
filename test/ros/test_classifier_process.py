"""The classifier node from start to end: what it is started with, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from models import binary_conv, input_conv, make_model, output_dense
from nodes import Diagnostics, apart, ending, image, labels_of, picture, running, send_and_wait, stamp
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Classification

from bnn_perception.backends.cuda.device import why_unusable
from bnn_perception.net.checks import MAX_OPERATIONS
from bnn_perception.net.folder import save_model
from bnn_perception.net.layer import Pool
from bnn_perception.net.model import InputSpec
from bnn_perception.resources import find_model
from bnn_perception.ros.classifier_node import ENDING
from bnn_perception.scenes.drive import Scene
from bnn_perception.scenes.signs import ROAD_SIGNS


def test_shipped_model_changes_between_its_precisions_without_losing_a_frame(peer):
    """As `ros2 param set /bnn/classifier backend float` does while a camera runs."""
    if find_model("road_signs") == Path("road_signs"):
        pytest.skip("the model road_signs does not ship yet")
    answers = peer.subscribe(Classification, "/bnn/labels")
    diagnostics = Diagnostics(peer)
    scene = Scene(0)
    region = f"region:={list(Scene.region)}"
    sent, right = [], {"cpu_binary": [], "cpu_float": []}
    with running("classifier_node", region, "device:=cpu", "diagnostics_period:=0.1"):
        images = peer.camera(image(scene.next()[0]), "/bnn/image", answers)
        for kind in ("binary", "float") * 2:
            (result,) = peer.set_parameters("/bnn/classifier", backend=kind)
            assert result.successful, result.reason
            for count in range(400):
                pixels, class_id = scene.next()
                sent.append(send_and_wait(peer, images, image(pixels), answers))
                if diagnostics.heard and diagnostics.values["backend"] == f"cpu_{kind}":
                    right[f"cpu_{kind}"].append(labels_of(answers[-1]) == [ROAD_SIGNS[class_id]])
                    if count >= 20:
                        break
            else:
                pytest.fail(f"the backend did not become {kind}")
    assert [stamp(answer) for answer in answers] == sent
    for backend, correct in right.items():
        # Frames of few signs: far from the model's accuracy, and as far from the 2 % of chance.
        assert np.mean(correct) > 0.7, backend


def test_frames_lost_in_transport_are_counted(peer, english, tmp_path):
    """A camera with the default shared memory segment, which a frame does not fit into."""
    if "fastrtps" not in rclpy.get_rmw_implementation_identifier():
        pytest.skip("the segment is Fast DDS's")
    nothing = tmp_path / "default.xml"
    nothing.write_text('<dds xmlns="http://www.eprosima.com"><profiles/></dds>')
    names = dict.fromkeys(("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"), str(nothing))
    diagnostics = Diagnostics(peer)
    remap = ["-r", "image_raw:=/bnn/image"]
    with (
        running("classifier_node", f"model:={english}", "diagnostics_period:=0.2"),
        running("camera_node", "source:=scene", arguments=remap, environment=names),
    ):
        diagnostics.until(lambda status, values: int(values["frames lost in transport"]) >= 5)
    assert diagnostics.status.level == DiagnosticStatus.WARN
    assert "lost in transport" in diagnostics.status.message
    assert "fastdds.xml" in diagnostics.status.message


def test_cameras_share_one_engine(peer, english):
    answers = peer.subscribe(Classification, "/bnn/labels")
    with running("classifier_node", f"model:={english}", "image_topics:=['/front/image', '/rear/image']"):
        cameras = {
            "front": (peer.camera(image(picture("red")), "/front/image", answers), "red"),
            "rear": (peer.camera(image(picture("red")), "/rear/image", answers), "blue"),
        }
        for count in range(2, 42, 2):
            for frame_id, (publisher, colour) in cameras.items():
                peer.send(publisher, image(picture(colour), frame_id=frame_id))
            peer.until(lambda: len(answers) == count)  # noqa: B023 - called here
    for frame_id, (_, colour) in cameras.items():
        own = [labels_of(answer) for answer in answers if answer.header.frame_id == frame_id]
        assert own == [[colour]] * 20


def compressed(pixels, kind="png"):
    _, data = cv2.imencode(f".{kind}", pixels[..., ::-1])
    return CompressedImage(format=f"rgb8; {kind} compressed bgr8", data=data.tobytes())


def test_compressed_images(peer, english):
    answers = peer.subscribe(Classification, "/bnn/labels")
    diagnostics = Diagnostics(peer)
    parameters = (f"model:={english}", "image_transport:=compressed", "diagnostics_period:=0.2")
    with running("classifier_node", *parameters):
        images = peer.camera(compressed(picture("red")), "/bnn/image/compressed", answers)
        for kind in ("jpeg", "png"):
            send_and_wait(peer, images, compressed(picture("blue"), kind), answers)
            assert labels_of(answers[-1]) == ["blue"]
        for count, data in enumerate((b"", b"\xff\xd8\xff no picture", bytes(100)), start=1):
            peer.send(images, CompressedImage(format="jpeg", data=data))
            diagnostics.until(lambda status, values: diagnostics.frames("refused") == count)  # noqa: B023 - called here
        assert diagnostics.frames("refused: undecodable") == 2


def test_small_messages_that_opencv_would_choke_on_cost_themselves(peer, english):
    """One was the end of the inference thread, the other took 4 GB and half a minute."""
    pfm = b"Pf\n1 1\n-1.0\n" + bytes(4)
    header = b"\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    png = b"\x89PNG\r\n\x1a\n" + header + b"\xff\xff\xff\0tEXt" + bytes(8)
    assert (len(pfm), len(png)) == (16, 49)
    answers = peer.subscribe(Classification, "/bnn/labels")
    diagnostics = Diagnostics(peer)
    parameters = (f"model:={english}", "image_transport:=compressed", "diagnostics_period:=0.2")
    with running("classifier_node", *parameters) as process:
        images = peer.camera(compressed(picture("red")), "/bnn/image/compressed", answers)
        for count, data in enumerate((pfm, png), start=1):
            peer.send(images, CompressedImage(format="png", data=data))
            diagnostics.until(lambda status, values: diagnostics.frames("refused: undecodable") == count)  # noqa: B023 - called here
        send_and_wait(peer, images, compressed(picture("blue")), answers)
        assert labels_of(answers[-1]) == ["blue"]
        diagnostics.until(lambda status, values: status.level == DiagnosticStatus.OK)
        assert diagnostics.values["unexpected errors"] == "0"
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        # Without them the node takes a quarter of this.
        assert int(re.search(r"VmHWM:\s*(\d+)", status)[1]) < 1_000_000


def test_no_request_for_a_parameter_ends_the_node(peer, english):
    """And afterwards it answers, and ends as it should."""
    answers = peer.subscribe(Classification, "/bnn/labels")
    diagnostics = Diagnostics(peer)
    with running("classifier_node", f"model:={english}", "diagnostics_period:=0.2") as process:
        images = peer.camera(image(picture("red")), "/bnn/image", answers)
        for model in ("~no such user/x", "a" * 300, "a" * 70_000, "/dev/zero", "/".join(["a" * 200] * 30)):
            (result,) = peer.set_parameters("/bnn/classifier", model=model)
            assert not result.successful
            assert result.reason
            assert "unexpected" not in result.reason
        for node_name, kind in (
            ("set_parameters", SetParameters),
            ("set_parameters_atomically", SetParametersAtomically),
        ):
            client = peer.node.create_client(kind, f"/bnn/classifier/{node_name}")
            peer.until(client.service_is_ready)
            unknown = ParameterMessage(name="model", value=ParameterValue(type=99))
            client.call_async(kind.Request(parameters=[unknown]))
            before = int(diagnostics.values.get("unexpected errors", 0)) if diagnostics.heard else 0
            diagnostics.until(lambda status, values: int(values["unexpected errors"]) == before + 1)  # noqa: B023 - called here
            peer.node.destroy_client(client)
        (result,) = peer.set_parameters("/bnn/classifier", top_k=2)
        assert result.successful
        send_and_wait(peer, images, image(picture("blue")), answers)
        assert len(labels_of(answers[-1])) == 2
        os.killpg(process.pid, signal.SIGINT)
        output, code = ending(process)
    assert code == 0, output
    assert "unexpected error: a callback: " in output
    assert "Traceback" not in output


def test_a_huge_compressed_image_is_not_unpacked(peer, english):
    answers = peer.subscribe(Classification, "/bnn/labels")
    diagnostics = Diagnostics(peer)
    parameters = (
        f"model:={english}",
        "image_transport:=compressed",
        "max_pixels:=100000",
        "diagnostics_period:=0.2",
    )
    with running("classifier_node", *parameters):
        images = peer.camera(compressed(picture("red", 30, 40)), "/bnn/image/compressed", answers)
        peer.send(images, compressed(picture("red", 480, 640)))
        diagnostics.until(lambda status, values: diagnostics.frames("refused") == 1)
        assert diagnostics.frames("refused: too large") == 1


def test_subscription_follows_qos_overrides(peer, english):
    answers = peer.subscribe(Classification, "/bnn/labels")
    overrides = "qos_overrides./bnn/image.subscription.reliability:=reliable"
    with running("classifier_node", f"model:={english}", overrides):
        peer.camera(image(picture("red")), "/bnn/image", answers, ReliabilityPolicy.RELIABLE)
        (info,) = peer.node.get_subscriptions_info_by_topic("/bnn/image")
        assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_ends_quietly_when_told_to(peer, english, signals):
    answers = peer.subscribe(Classification, "/bnn/labels")
    with running("classifier_node", f"model:={english}") as process:
        images = peer.camera(image(picture("red")), "/bnn/image", answers)
        send_and_wait(peer, images, image(picture("red")), answers)
        peer.send(images, image(picture("red")))
        for number in signals:  # a launcher passes on what the terminal has sent to the group already
            os.killpg(process.pid, number)
        output, code = ending(process)
    assert code == 0, output
    assert "Traceback" not in output
    assert "rror" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_at_once_while_it_compiles(peer, english, tmp_path, number):
    """With an empty cache the CPU's kernels take many seconds; nothing can interrupt the compiler."""
    diagnostics = Diagnostics(peer)
    answers = peer.subscribe(Classification, "/bnn/labels")
    parameters = (f"model:={english}", "device:=cpu", "diagnostics_period:=0.1")
    with running("classifier_node", *parameters, environment={"NUMBA_CACHE_DIR": str(tmp_path)}) as process:
        diagnostics.until(lambda status, values: "loading" in status.message)
        os.killpg(process.pid, number)
        begin = time.monotonic()
        output, code = ending(process)
        seconds = time.monotonic() - begin
    assert code == 0, output
    (line,) = output.splitlines()  # the topics, told before the model is loaded
    assert "images from /bnn/image" in line
    assert answers == []
    # The node waits ENDING seconds for the compiler, and what is left is the end of DDS; a launcher kills after 5 s.
    assert seconds < ENDING + 4
    assert not list(tmp_path.rglob("native.evaluate*.nbc")), "it had compiled all before it was told to end"


def test_ends_at_once_while_it_evaluates_the_largest_net(peer, tmp_path):
    """Within every limit, and its first frame takes the slowest backend minutes, which nothing can interrupt."""
    rng = np.random.default_rng(0)
    shape = (78, 78, 256)
    model = make_model(
        InputSpec(78, 78),
        [
            input_conv(rng, "first", (78, 78, 3), 256, kernel=(1, 1), padding=(0, 0)),
            binary_conv(rng, "large", shape, 256, kernel=(16, 16), padding=(0, 0), pool=Pool(63, 63)),
            output_dense(rng, "logits", (1, 1, 256), 3),
        ],
    )
    assert model.macs > 0.9 * MAX_OPERATIONS
    diagnostics = Diagnostics(peer)
    save_model(model, tmp_path)
    parameters = (f"model:={tmp_path}", "backend:=reference", "diagnostics_period:=0.1")
    with running("classifier_node", *parameters) as process:
        diagnostics.until(lambda status, values: "loading" in status.message)
        peer.work(1)
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        output, code = ending(process)
        seconds = time.monotonic() - begin
    assert code == 0, output
    assert "Traceback" not in output
    assert seconds < ENDING + 4  # as above


def segments(process):
    """The shared memory of a process that is its own: it holds the locks."""
    found = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if match := re.fullmatch(r"(/dev/shm/fast(?:rtps|dds)_[0-9a-f]{16})_el", os.readlink(entry)):
                found.add(Path(match[1]))
    return found


def test_what_a_killed_node_leaves_is_removed_by_the_next(peer, english):
    answers = peer.subscribe(Classification, "/bnn/labels")
    with running("classifier_node", f"model:={english}") as process:
        peer.camera(image(picture("red")), "/bnn/image", answers)
        own, others = segments(process), segments(SimpleNamespace(pid=os.getpid()))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if not own:
        pytest.skip("this DDS has no segments of shared memory")
    assert all(path.exists() for path in own)
    for path in own:
        os.utime(f"{path}_el", (0, 0))  # a young lock may not be held yet
    with running("classifier_node", f"model:={english}") as process:
        peer.until(lambda: not any(path.exists() for path in own))
        assert all(path.exists() for path in others)


FAILING = {
    "model:=/nowhere": "/nowhere/model.yaml: no such file",
    "backend:=float": "has no float twin",
    "device:=tpu": "device 'tpu' is not one of auto, cpu, cuda",
    "top_k:=0": "top_k must lie between 1 and 1000",
    "region:=[0, 0, 1, 1]": "region must be",
    "region:=[0.0, 0.0, 2.0, 1.0]": "does not lie inside the image",
    "image_topics:=['a', 'a']": "image_topics",
}
if why_unusable() is not None:  # only making the engine tells, in the thread that makes it
    FAILING["device:=cuda"] = "device cuda"


def test_start_that_fails_says_why_in_one_line(english):
    with contextlib.ExitStack() as stack:
        processes = {
            parameter: stack.enter_context(
                running("classifier_node", f"model:={english}", parameter, environment=apart(number))
            )
            for number, parameter in enumerate(FAILING)
        }
        for parameter, process in processes.items():
            output, code = ending(process)
            assert code == 1, output
            (line,) = (line for line in output.splitlines() if "images from" not in line)
            assert line.startswith("classifier_node: ")
            assert FAILING[parameter] in line


def test_a_device_that_cannot_be_used_sets_the_parameter_back(peer, english, tmp_path):
    """What only making the engine can tell comes after the parameter was accepted."""
    (tmp_path / "cupy.py").write_text("raise ImportError('libcuda.so.1 is not there')")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    parameters = (f"model:={english}", "diagnostics_period:=0.2")
    with running("classifier_node", *parameters, environment={"PYTHONPATH": path}):
        answers = peer.subscribe(Classification, "/bnn/labels")
        diagnostics = Diagnostics(peer)
        images = peer.camera(image(picture("red")), "/bnn/image", answers)
        (result,) = peer.set_parameters("/bnn/classifier", device="cuda")
        assert result.successful
        diagnostics.until(lambda status, values: "libcuda.so.1 is not there" in status.message)
        assert diagnostics.status.level == DiagnosticStatus.WARN
        assert "libcuda.so.1 is not there" in diagnostics.values["why not the GPU"]
        assert peer.get_parameter("/bnn/classifier", "device").string_value == "auto"
        send_and_wait(peer, images, image(picture("green")), answers)
        assert labels_of(answers[-1]) == ["green"]


def test_recordings_play_through_the_node(peer, english, data):
    """Real camera frames, compressed in one recording and raw in the other, each answered under its own header."""
    answers = peer.subscribe(Classification, "/bnn/labels")
    for name, transport, topic, count in (
        ("camera/bag_09747_mcap", "compressed", "image_raw/compressed:=/bnn/image/compressed", 100),
        ("camera/soccer_goal_12.mcap", "raw", "image_raw:=/bnn/image", 4),
    ):
        answers.clear()
        with (
            running("classifier_node", f"model:={english}", f"image_transport:={transport}") as process,
            running(
                "camera_node", f"source:={data(name)}", "loop:=true", "rate:=30.0", arguments=["-r", topic]
            ),
        ):
            peer.until(lambda: len(answers) >= count)  # noqa: B023 - called here
            assert process.poll() is None
        stamps = [stamp(answer) for answer in answers]
        assert stamps == sorted(set(stamps))
        assert all(len(answer.results) == 1 for answer in answers)
