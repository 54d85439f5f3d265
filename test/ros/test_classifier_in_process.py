"""The classifier node inside the tests' own process, over real DDS: faults, refused requests, and what diagnostics say.

What only a processor can do (fail, come back, refuse a request late) a stand-in does here when it is told to.
"""

from __future__ import annotations

import shutil
import threading
import time
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from hosted import NODE, Hosted
from nodes import FRAME, image, labels_of, picture, send_and_wait, stamp
from rclpy.context import Context
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from scripted import PATIENCE, Processor
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from bnn_perception.backends import BackendError
from bnn_perception.net.folder import load_model
from bnn_perception.ros import classifier_node, engine, health, requests
from bnn_perception.ros.classifier_node import ClassifierNode
from bnn_perception.ros.diagnostics import as_mapping
from bnn_perception.ros.inputs import UnsupportedEventTypeError
from bnn_perception.ros.parameters import ParameterError
from bnn_perception.ros.reading import MAX_READINGS
from bnn_perception.ros.requests import READING

# The score of each of a stand-in's three classes, which are equally likely, as float32 has it.
THIRD = float(np.float32(1) / np.float32(3))

STAGES = ["receive", "wait", "decode", "inference", "publish", "node", "overhead", "total"]


# The start.


def loading(peer, model, **parameters):
    """A node whose first engine is being made, and what is heard of it."""
    hosted = Hosted(peer, model, is_ready=False, backend="binary", device="cpu", **parameters)
    hosted.says("loading", DiagnosticStatus.WARN)
    return hosted


def test_the_node_is_there_while_its_first_engine_is_made(peer, machine, slow, patient, english):
    hosted = loading(peer, english)
    message = hosted.diagnostics.status.message
    assert f"loading model {english} with backend binary on device cpu for " in message
    seconds = [float(message.split(" for ")[1].split(" s")[0])]
    values = hosted.diagnostics.values
    assert (values["model"], values["backend"], values["device"]) == ("red-green-blue", "none", "none")
    assert values["device wanted"] == "cpu"
    assert hosted.infos == []
    camera = hosted.unanswered()
    peer.until(lambda: camera.get_subscription_count() > 0)
    while hosted.diagnostics.frames("dropped while loading") < 3:
        peer.send(camera, image(picture("red", 4, 4)))
        hosted.diagnostics.until(lambda status, values: True)
    peer.until(lambda: "for 1 s" in hosted.diagnostics.status.message)
    hosted.diagnostics.until(lambda status, values: True)
    dropped = hosted.diagnostics.frames("dropped while loading")
    slow.set()
    peer.until(lambda: hosted.infos)
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.labels() == ["red", "green", "blue"]
    assert hosted.diagnostics.values["backend"] == "cpu_binary"
    assert hosted.answers == []
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    hosted.diagnostics.until(lambda status, values: hosted.diagnostics.frames("classified") == 1)
    parts = ("classified", "dropped as stale", "dropped while loading", "failed", "refused")
    assert hosted.diagnostics.frames("received") == sum(map(hosted.diagnostics.frames, parts)) == dropped + 1
    assert seconds[0] <= 1


def test_parameters_can_be_set_while_the_first_engine_is_made(peer, machine, slow, patient, english, german):
    hosted = loading(peer, english)
    hosted.set(score_threshold=0.25)
    hosted.set(model=str(german), threads=2)
    peer.work(0.2)
    assert hosted.infos == []
    slow.set()
    peer.until(lambda: hosted.infos and hosted.labels()[0] == "rot")
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.infos[-1].threshold == 0.25
    assert machine.calls[0] == ("binary", "cpu", 0)
    assert machine.calls[-1] == ("binary", "cpu", 2)
    assert hosted.get("model", "threads") == [str(german), 2]


def test_a_first_engine_that_cannot_be_made_ends_the_spinning(peer, machine, english):
    machine.gpu_works = False
    node = peer.host(ClassifierNode, model=str(english), backend="binary", device="cuda")
    node.start()
    with pytest.raises(BackendError, match="^no usable GPU$"):
        peer.until(lambda: False)


def test_a_newer_request_takes_the_place_of_a_first_one_that_fails(peer, machine, slow, patient, english):
    hosted = Hosted(peer, english, is_ready=False, backend="binary", device="cuda")
    hosted.says("loading", DiagnosticStatus.WARN)
    machine.gpu_works = False
    hosted.set(device="cpu")
    slow.set()
    peer.until(lambda: hosted.infos)
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.get("device") == ["cpu"]


def test_a_node_that_was_not_started_holds_no_thread(peer, english):
    before = threading.active_count()
    node = peer.host(ClassifierNode, model=str(english))
    assert threading.active_count() == before
    node.destroy_node()


# Faults and what diagnostics say of them.


def test_no_engine_is_an_error_until_there_is_one(peer, machine, hosted_on):
    hosted = hosted_on("cuda")
    camera = hosted.camera()
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.diagnostics.status.message == "OK"
    hosted.diagnostics.from_now_on()
    machine.gpu_works = False
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("no answers", DiagnosticStatus.ERROR)
    status, values = hosted.diagnostics.status, hosted.diagnostics.values
    assert "with backend binary on device cuda failed and is being made anew" in status.message
    assert (values["backend"], values["device"]) == ("none", "none")
    assert values["model"] == "red-green-blue"
    hosted.diagnostics.until(lambda status, values: hosted.diagnostics.frames("failed") == 1)
    # Once more, without an engine: the frame is counted, and said for one period.
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("1 frames got no answer", DiagnosticStatus.ERROR)
    hosted.diagnostics.until(lambda status, values: "got no answer" not in status.message)
    assert hosted.diagnostics.status.level == DiagnosticStatus.ERROR
    assert hosted.diagnostics.frames("failed") == 2
    assert hosted.answers == []
    machine.gpu_works = True
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.diagnostics.values["backend"] == "cuda_binary"
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert len(machine.open) == 1


def test_the_cpu_that_stands_in_is_a_warning_until_the_gpu_works(peer, machine, hosted_on):
    hosted = hosted_on("auto")
    camera = hosted.camera()
    machine.gpu_works = False
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("1 frames got no answer", DiagnosticStatus.ERROR)  # one period long
    hosted.says(
        "the CPU answers because cuda_binary failed: the GPU has fallen off the bus", DiagnosticStatus.WARN
    )
    values = hosted.diagnostics.values
    assert (values["backend"], values["device"]) == ("cpu_binary", "a stand-in cpu")
    assert values["device wanted"] == "auto"
    assert "why not the GPU" not in values  # it is said already
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    machine.gpu_works = True
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.diagnostics.values["backend"] == "cuda_binary"
    peer.until(lambda: len(machine.open) == 1)  # the loading thread closes the other in its own time


@pytest.mark.parametrize(
    ("device", "backend", "gpu_works", "reason"),
    [
        ("auto", "binary", False, "the driver has left"),
        ("auto", "binary", True, None),
        ("auto", "reference", False, None),  # never takes one
        ("cpu", "binary", False, None),
    ],
)
def test_auto_says_why_it_is_not_the_gpu(machine, host, patient, device, backend, gpu_works, reason):
    machine.gpu_works = gpu_works
    hosted = host(device=device, backend=backend)
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.diagnostics.values.get("why not the GPU") == reason
    assert hosted.diagnostics.values["device wanted"] == device


def test_the_worst_decides_the_level_and_comes_first(peer, machine, hosted_on):
    hosted = hosted_on("cuda")
    camera = hosted.camera()
    machine.gpu_works = False
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("no answers", DiagnosticStatus.ERROR)
    old = image(picture("red", 4, 4))
    old.header.stamp.sec = 1
    camera.publish(old)
    hosted.says("over a minute apart")
    status = hosted.diagnostics.status
    assert status.level == DiagnosticStatus.ERROR
    assert status.message.index("no answers") < status.message.index("over a minute apart")


# What nobody foresaw.


def test_a_thread_that_has_ended_is_named_and_brought_back(peer, machine, hosted_on):
    hosted = hosted_on("cpu")
    camera = hosted.camera()
    machine.cpu_works = SystemExit("enough")  # what a library may call for
    hosted.diagnostics.from_now_on()
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says(
        "1 unexpected errors, the last: the inference thread ended (SystemExit: enough",
        DiagnosticStatus.ERROR,
    )
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.diagnostics.values["unexpected errors"] == "1"
    assert hosted.diagnostics.frames("failed") == 1
    machine.cpu_works = True
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert hosted.diagnostics.values["inference thread"] == "waiting"


def test_a_thread_that_hangs_is_named(peer, machine, hosted_on, monkeypatch):
    hosted = hosted_on("cpu")
    camera = hosted.camera()
    go_on = threading.Event()
    monkeypatch.setattr(hosted.node.pipeline.worker, "_patience", 0.2)
    monkeypatch.setattr(Processor, "logits", lambda *_: go_on.wait(PATIENCE))
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("the inference thread hangs: evaluating frames for 0.", DiagnosticStatus.ERROR)
    go_on.set()
    hosted.diagnostics.until(lambda status, values: values["inference thread"] == "waiting")


def test_labels_that_cannot_be_published_cost_themselves(peer, hosted_on, monkeypatch):
    hosted = hosted_on("cpu")
    camera = hosted.camera()
    hosted.diagnostics.from_now_on()
    with monkeypatch.context() as patch:
        patch.setattr(hosted.node, "answered", lambda *_: 1 / 0)
        peer.send(camera, image(picture("red", 4, 4)))
        hosted.says(
            "1 unexpected errors, the last: publishing labels: ZeroDivisionError", DiagnosticStatus.ERROR
        )
        assert "1 frames got no answer" in hosted.diagnostics.status.message
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert hosted.diagnostics.frames("failed") == 1


def test_a_gpu_that_is_there_and_cannot_be_used_is_a_warning(machine, host, patient, monkeypatch):
    def make_backend(model, backend, device, threads, report):
        report("device cuda cannot be used: no NVRTC")
        return machine.make_backend(model, backend, "cpu", threads, report)

    monkeypatch.setattr(engine, "make_backend", make_backend)
    hosted = host(backend="binary", device="auto")
    hosted.says(
        "auto took the CPU though there is a GPU: device cuda cannot be used: no NVRTC", DiagnosticStatus.WARN
    )
    assert hosted.diagnostics.values["why not the GPU"] == "device cuda cannot be used: no NVRTC"
    assert hosted.diagnostics.values["backend"] == "cpu_binary"


@pytest.mark.parametrize("value", ["a\0b", "a\ud800b"])
def test_a_text_that_no_message_can_hold_is_refused(host, patient, value):
    """Other clients than rclpy can send some of them."""
    hosted = host()
    (result,) = hosted.node.set_parameters([rclpy.parameter.Parameter("model", value=value)])
    assert not result.successful
    assert result.reason.startswith("model 'a\\")
    assert "holds a character that is none" in result.reason


def test_a_request_that_raises_what_nobody_foresaw_is_refused(peer, host, patient, monkeypatch):
    hosted = host()
    monkeypatch.setattr(requests, "load_model", lambda _: 1 / 0)
    (result,) = peer.set_parameters(NODE, model="road_signs")
    assert not result.successful
    assert result.reason.startswith("unexpected error: ZeroDivisionError: division by zero (at ")
    hosted.says("1 unexpected errors, the last: a request for parameters: Zero", DiagnosticStatus.ERROR)


@pytest.fixture
def slow_disk(monkeypatch, german):
    """Lets the German model wait while it is read; ``set()`` lets it go on."""
    go_on = threading.Event()

    def load(folder):
        if folder == german:
            assert go_on.wait(PATIENCE)
        return load_model(folder)

    monkeypatch.setattr(requests, "load_model", load)
    yield go_on
    go_on.set()


def test_a_model_that_is_read_slowly_holds_up_nothing(peer, host, patient, slow_disk, german):
    hosted = host()
    camera = hosted.camera()
    started = time.monotonic()
    hosted.set(model=str(german))  # what is not known by then is said later
    assert time.monotonic() - started < READING + 2
    hosted.diagnostics.until(lambda status, values: values["model"] == "red-green-blue")
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    hosted.set(top_k=2, threads=1)  # of the model that is still being read
    assert hosted.labels() == ["red", "green", "blue"]
    slow_disk.set()
    peer.until(lambda: hosted.labels() == ["rot", "gruen", "blau"])
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.get("model", "threads", "top_k") == [str(german), 1, 2]


def test_a_model_that_is_refused_late_leaves_what_runs(
    peer, host, patient, slow_disk, english, german, monkeypatch
):
    hosted = host()
    hosted.set(model=str(german))
    (german / "binary.npz").rename(german / "away")
    try:
        slow_disk.set()
        hosted.says(f"kept model {english} with backend", DiagnosticStatus.WARN)
        assert "binary.npz: no such file" in hosted.diagnostics.status.message
        peer.until(lambda: hosted.get("model") == [str(english)])
    finally:
        (german / "away").rename(german / "binary.npz")
    hosted.set(model=str(german))
    peer.until(lambda: hosted.labels() == ["rot", "gruen", "blau"])
    hosted.says("OK", DiagnosticStatus.OK)


def test_a_newer_request_takes_the_place_of_a_model_that_is_read_slowly(
    peer, host, slow_disk, english, german
):
    hosted = host()
    hosted.set(model=str(german))
    hosted.set(model=str(english), threads=3)
    slow_disk.set()
    peer.work(0.3)
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.labels() == ["red", "green", "blue"]
    assert hosted.get("model", "threads") == [str(english), 3]


def test_models_that_are_never_read_do_not_pile_up(peer, host, monkeypatch, slow_disk, english, german):
    monkeypatch.setattr(requests, "READING", 0.05)
    hosted = host()
    for _ in range(MAX_READINGS):
        hosted.set(model=str(german))
    (result,) = peer.set_parameters(NODE, model=str(english))
    assert (result.successful, result.reason) == (
        False,
        "4 models are still being read; is their disk still there?",
    )
    slow_disk.set()
    peer.until(lambda: hosted.labels() == ["rot", "gruen", "blau"])


def test_the_end_waits_for_no_thread(peer, host, slow_disk, german, monkeypatch):
    """Neither for a model that is read nor for a batch that is evaluated."""
    hosted = host()
    hosted.set(model=str(german))
    hosted.camera()
    begun, go_on = threading.Event(), threading.Event()

    def hang(*_):
        begun.set()
        assert go_on.wait(PATIENCE)

    monkeypatch.setattr(hosted.node.pipeline.engine.classifier.backend, "logits", hang)
    peer.send(hosted.unanswered(), image(picture("red", 4, 4)))
    camera = hosted.unanswered()
    while not begun.is_set():
        peer.send(camera, image(picture("red", 4, 4)))
        peer.work(0.05)
    started = time.monotonic()
    hosted.node.destroy_node()
    assert time.monotonic() - started < 2
    go_on.set()


# Frames.


def test_every_value_of_diagnostics_has_its_name(peer, host, patient):
    hosted = host()
    camera = hosted.camera()
    hosted.diagnostics.from_now_on()
    for _ in range(3):
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    hosted.diagnostics.until(lambda status, values: hosted.diagnostics.frames("classified") == 3)
    bad = image(picture("red", 4, 4))
    bad.step = 1
    peer.send(camera, bad)
    hosted.says("1 frames refused", DiagnosticStatus.WARN)
    counts = {
        "received": 4,
        "classified": 3,
        "skipped by max_rate": 0,
        "dropped as stale": 0,
        "dropped while loading": 0,
        "lost in transport": 0,
        "failed": 0,
        "refused": 1,
        "refused: step": 1,
    }
    assert {what: hosted.diagnostics.frames(what) for what in counts} == counts
    stages = [*STAGES[:3], "preprocess", *STAGES[3:]]
    assert list(hosted.diagnostics.values) == [
        "state",
        "model",
        "backend",
        "device",
        "device wanted",
        "rate in (Hz)",
        "rate out (Hz)",
        *(f"frames {what}" for what in counts),
        "unexpected errors",
        "inference thread",
        "loading thread",
        "drawing thread",
        *(f"latency {s} {name} (ms)" for s in stages for name in ("p50", "p95", "p99", "maximum")),
        *(
            f"camera /bnn/image: {what}"
            for what in (
                "rate in (Hz)",
                "rate out (Hz)",
                "since the last frame (s)",
                *(f"frames {what}" for what in counts if what != "refused: step"),
                *(f"latency to labels {name} (ms)" for name in ("p50", "p95", "p99", "maximum")),
                "brightness",
                "sharpness",
            )
        ),
    ]
    array = hosted.diagnostics._arrays[-1]
    assert abs(stamp(array) - peer.node.get_clock().now().nanoseconds) < PATIENCE * 1e9


def test_rates_are_frames_a_second(peer, host, patient):
    hosted = host()
    camera = hosted.camera()
    hosted.diagnostics.from_now_on()
    arrays = peer.subscribe(DiagnosticArray, "/diagnostics")
    peer.until(lambda: arrays)
    bad = image(picture("red", 4, 4))
    bad.step = 1
    for _ in range(12):
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
        peer.send(camera, bad)
        peer.work(FRAME)
    peer.until(lambda: as_mapping(arrays[-1].status[0].values)["rate in (Hz)"] == "0.000")
    assert hosted.diagnostics.frames("received") > 12
    for rate, what in (("rate in (Hz)", "frames received"), ("rate out (Hz)", "frames classified")):
        values = [as_mapping(array.status[0].values) for array in arrays]
        seconds = np.diff([stamp(array) for array in arrays]) * 1e-9
        counted = float(np.dot(seconds, [float(each[rate]) for each in values[1:]]))
        # The time between two reports is taken a little before their stamps: a busy machine lets it be off.
        assert counted == pytest.approx(int(values[-1][what]) - int(values[0][what]), rel=0.3)


def test_one_bad_camera_of_two(peer, host, patient):
    """The good one's labels go out under its own header; the bad one is named."""
    hosted = host(image_topics=["/left", "right"])
    left, right = hosted.camera("/left"), hosted.camera("/bnn/right")
    hosted.diagnostics.from_now_on()
    bad = image(picture("green", 4, 4), frame_id="right")
    bad.step = 1
    for count in range(1, 4):
        peer.send(right, bad)
        peer.send(left, image(picture("blue", 4, 4), frame_id="left"))
        peer.until(lambda: len(hosted.answers) == count)  # noqa: B023 - called here
    hosted.diagnostics.until(lambda status, values: hosted.diagnostics.frames("refused: step") == 3)
    assert [(answer.header.frame_id, *labels_of(answer)) for answer in hosted.answers] == [
        ("left", "blue")
    ] * 3
    peer.send(right, bad)
    hosted.says("1 frames refused, the last on /bnn/right: step 1 is less than a row", DiagnosticStatus.WARN)
    hosted.says("OK", DiagnosticStatus.OK)  # a period later
    assert hosted.diagnostics.frames("refused") == 4
    bad.header.frame_id = "left"
    peer.send(left, bad)
    hosted.says("1 frames refused, the last on /left: step 1", DiagnosticStatus.WARN)


def on_lost(node, topic, count):
    """Tell the node what DDS does when messages of a topic have been lost, ``count`` since the start."""
    (subscription,) = [s for s in node.subscriptions if s.topic_name == topic]
    (handler,) = [h for h in subscription.event_handlers if "LOST" in str(h.event_type)]
    handler.callback(SimpleNamespace(total_count=count, total_count_change=1))


def test_frames_lost_by_every_camera_are_counted(host, patient):
    hosted = host(image_topics=["left", "right"])
    hosted.says("OK", DiagnosticStatus.OK)
    for topic, count, total, new in (
        ("/bnn/right", 2, 2, 2),
        ("/bnn/left", 3, 5, 3),
        ("/bnn/right", 6, 9, 4),
    ):
        on_lost(hosted.node, topic, count)
        hosted.says(f"{new} frames lost in transport: start the camera's process with", DiagnosticStatus.WARN)
        assert "fastdds.xml" in hosted.diagnostics.status.message
        assert hosted.diagnostics.frames("lost in transport") == total
        hosted.says("OK", DiagnosticStatus.OK)


@pytest.mark.parametrize(("loud", "silent"), [("left", "right"), ("right", "left")])
def test_a_silent_camera_is_named_whichever_it_is(peer, host, monkeypatch, loud, silent):
    monkeypatch.setattr(health, "SILENCE", 0.5)
    hosted = host(image_topics=["left", "right"])
    camera = hosted.camera(f"/bnn/{loud}")

    def says_of_the_silent_one_alone(text):
        """Wait for a warning while the other camera keeps sending."""

        def heard(status, values):
            peer.send(camera, image(picture("red", 4, 4)))
            named = f" /bnn/{silent}" in status.message and f"on /bnn/{loud} for" not in status.message
            return named and text in status.message and status.level == DiagnosticStatus.WARN

        hosted.diagnostics.until(heard)
        return hosted.diagnostics.status.message

    nobody = says_of_the_silent_one_alone("nobody")
    assert nobody.startswith(f"nobody publishes /bnn/{silent}")
    hosted.unanswered(f"/bnn/{silent}")
    message = says_of_the_silent_one_alone("publisher(s)")
    assert message.startswith(f"no frame on /bnn/{silent} for ")
    assert "though it has 1 publisher(s); if it should have sent some, start" in message


@pytest.fixture
def stranger():
    """A node of another participant: one participant knows one type for a topic."""
    context = Context()
    rclpy.init(context=context)
    yield rclpy.create_node("stranger", context=context)
    context.try_shutdown()


def test_a_topic_of_another_type_is_named_with_the_remedy(host, stranger, monkeypatch):
    monkeypatch.setattr(health, "SILENCE", 0.2)
    hosted = host(image_topics=["left", "right", "front"])
    stranger.create_publisher(String, "/bnn/left", 1)
    stranger.create_publisher(CompressedImage, "/bnn/right/compressed", 1)
    stranger.create_publisher(Image, "/bnn/fronr", 1)
    hosted.says(
        "/bnn/left is of type std_msgs/msg/String, not sensor_msgs/msg/Image; start with image_topic:="
    )
    hosted.says(
        "nobody publishes /bnn/right, but /bnn/right/compressed is: start with image_transport:=compressed"
    )
    hosted.says("nobody publishes /bnn/front; images are on /bnn/fronr")


def test_the_other_transport_is_named_with_the_remedy(host, stranger, monkeypatch):
    monkeypatch.setattr(health, "SILENCE", 0.2)
    hosted = host(image_topics=["left", "right"], image_transport="compressed")
    stranger.create_publisher(Image, "/bnn/left", 1)
    stranger.create_publisher(Image, "/bnn/right/compressed", 1)
    hosted.says("nobody publishes /bnn/left/compressed, but /bnn/left is: start with image_transport:=raw")
    hosted.says(
        "/bnn/right/compressed is of type sensor_msgs/msg/Image, not sensor_msgs/msg/CompressedImage; "
        "start with image_transport:=raw and the topic without /compressed"
    )


def test_a_qos_that_cannot_meet_is_named(peer, host, monkeypatch):
    """A node told to want more than its camera offers hears nothing, which the camera's fault it is not."""
    monkeypatch.setattr(health, "SILENCE", 0.2)
    wanted = {"qos_overrides./bnn/image.subscription.reliability": "reliable"}
    hosted = host(**wanted)
    hosted.unanswered()  # best effort
    hosted.says("/bnn/image: the QoS of its publisher peer cannot serve this node's")
    hosted.says("change qos_overrides./bnn/image.subscription of this node")


def test_the_log_tells_of_a_silent_camera_once(peer, host, monkeypatch):
    lines = []
    monkeypatch.setattr(health, "SILENCE", 0.2)
    monkeypatch.setattr(health, "LOG_SILENCE", 0.2)
    hosted = host()
    monkeypatch.setattr(
        hosted.node.get_logger(), "warning", lambda line, **throttle: lines.append((line, throttle))
    )
    hosted.says("nobody publishes /bnn/image")
    peer.until(lambda: lines)
    assert lines[0][0].startswith("nobody publishes /bnn/image")
    assert lines[0][1] == {"throttle_duration_sec": classifier_node.NEWS_THROTTLE}


def test_cuda_without_cupy_is_refused_at_once(peer, host):
    if find_spec("cupy"):
        pytest.skip("CuPy is installed")
    hosted = host()
    (result,) = peer.set_parameters(NODE, device="cuda", backend="binary")[:1]
    assert not result.successful
    assert result.reason.startswith("device cuda cannot be used: CuPy is not installed: pip install")
    assert hosted.get("device") == ["cpu"]


def test_a_dds_that_cannot_tell_of_losses_costs_nothing_else(peer, host, monkeypatch):
    create = ClassifierNode.create_subscription

    def without_events(self, *args, event_callbacks=None, **options):
        if event_callbacks is not None:
            raise UnsupportedEventTypeError("not here")
        return create(self, *args, **options)

    monkeypatch.setattr(ClassifierNode, "create_subscription", without_events)
    hosted = host()
    camera = hosted.camera()
    send_and_wait(peer, camera, image(picture("blue", 4, 4)), hosted.answers)
    assert labels_of(hosted.answers[-1]) == ["blue"]


# Clocks.


@pytest.mark.parametrize("seconds", [59, -59, 61, -61])
def test_stamps_over_a_minute_from_the_clock_say_nothing_of_latency(peer, host, patient, seconds):
    hosted = host()
    camera = hosted.unanswered()
    peer.until(lambda: camera.get_subscription_count() > 0)
    while not hosted.answers:
        message = image(picture("red", 4, 4))
        nanoseconds = peer.node.get_clock().now().nanoseconds - seconds * 1_000_000_000
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 1_000_000_000)
        camera.publish(message)
        peer.work(0.05)
    hosted.diagnostics.until(lambda status, values: int(values["frames classified"]) > 0)
    if abs(seconds) > 60:
        camera.publish(message)
        hosted.says("stamps of frames and the clock are over a minute apart", DiagnosticStatus.WARN)
        assert "latency receive p50 (ms)" not in hosted.diagnostics.values
        assert "latency total p50 (ms)" not in hosted.diagnostics.values
        hosted.says("OK", DiagnosticStatus.OK)  # no such frame came since
    else:
        assert "apart" not in hosted.diagnostics.status.message
        receive, total = (
            float(hosted.diagnostics.values[f"latency {stage} p50 (ms)"]) for stage in ("receive", "total")
        )
        # Milliseconds; the way through DDS takes less than one, and on a busy machine may take a few seconds.
        assert seconds * 1000 <= receive <= total < seconds * 1000 + 5000


def test_diagnostics_come_where_simulated_time_stands_still(host):
    hosted = host(use_sim_time=True)
    for _ in range(2):
        hosted.diagnostics.until(lambda status, values: True)
    assert stamp(hosted.diagnostics._arrays[-1]) == 0  # the time of the simulation, which has not begun


# Models, label info and requests.


def test_a_model_set_again_is_read_again(peer, host, english, german, tmp_path):
    """It may have been trained further. Other parameters leave the model that was read."""
    folder = tmp_path / "model"
    shutil.copytree(english, folder)
    hosted = host(folder)
    assert hosted.labels() == ["red", "green", "blue"]
    shutil.copytree(german, folder, dirs_exist_ok=True)
    hosted.set(threads=1)
    peer.until(lambda: len(hosted.infos) == 2)
    assert hosted.labels() == ["red", "green", "blue"]
    hosted.set(model=str(folder))
    peer.until(lambda: len(hosted.infos) == 3)
    assert hosted.labels() == ["rot", "gruen", "blau"]


def test_label_info_tells_the_threshold_and_the_labels_that_are_in_use(peer, host, german):
    hosted = host()
    first = hosted.infos[0]
    assert [(entry.class_id, entry.class_name) for entry in first.class_map] == [
        (0, "red"),
        (1, "green"),
        (2, "blue"),
    ]
    assert abs(stamp(first) - peer.node.get_clock().now().nanoseconds) < PATIENCE * 1e9
    hosted.set(score_threshold=0.25)
    peer.until(lambda: len(hosted.infos) == 2)
    assert (hosted.infos[-1].threshold, hosted.labels()) == (0.25, ["red", "green", "blue"])
    hosted.set(model=str(german))
    peer.until(lambda: len(hosted.infos) == 3)
    assert (hosted.infos[-1].threshold, hosted.labels()) == (0.25, ["rot", "gruen", "blau"])
    # What changes neither is no news.
    hosted.set(top_k=2, region=[0.0, 0.0, 0.5, 1.0])
    hosted.set(score_threshold=0.25)
    hosted.set(score_threshold=0.5)
    peer.until(lambda: hosted.infos[-1].threshold == 0.5)
    assert len(hosted.infos) == 4
    assert hosted.labels() == ["rot", "gruen", "blau"]


def test_a_score_at_the_threshold_is_published(peer, hosted_on):
    hosted = hosted_on("cpu", top_k=3)
    camera = hosted.camera()
    for threshold, labels in ((THIRD, ["red", "green", "blue"]), (float(np.nextafter(THIRD, 1)), [])):
        hosted.set(score_threshold=threshold)
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
        assert labels_of(hosted.answers[-1]) == labels


def test_parameters_say_what_runs_after_a_request_that_could_not_be_met(
    peer, machine, hosted_on, english, german
):
    hosted = hosted_on("auto")

    def refuse():
        raise BackendError("not today")

    machine.before_making = refuse
    hosted.set(model=str(german), backend="reference", device="cpu", threads=3)
    hosted.says("not today", DiagnosticStatus.WARN)
    message = hosted.diagnostics.status.message
    assert f"kept model {english} with backend binary on device auto, for model {german} with" in message
    names = ("model", "backend", "device", "threads")
    before = [str(english), "binary", "auto", 0]
    # Each of the four was a request; parameters are set back after the last.
    peer.until(lambda: hosted.get(*names) == before)
    assert hosted.labels() == ["red", "green", "blue"]
    made = machine.made
    hosted.set(top_k=2)
    peer.work(0.2)
    assert machine.made == made  # setting back is no request
    assert hosted.get(*names) == before
    # The next request starts from what runs, and what was refused is forgotten over it.
    machine.before_making = lambda: None
    hosted.set(threads=2)
    hosted.says("OK", DiagnosticStatus.OK)
    assert machine.calls[-1] == ("binary", "auto", 2)
    assert hosted.get(*names) == [str(english), "binary", "auto", 2]
    assert hosted.labels() == ["red", "green", "blue"]


def test_a_request_refused_late_does_not_undo_a_newer_one(peer, machine, hosted_on):
    hosted = hosted_on("cpu")
    asked, go_on = threading.Event(), threading.Event()

    def refuse_seven():
        if machine.calls[-1][2] == 7:
            asked.set()
            assert go_on.wait(PATIENCE)
            raise BackendError("not seven")

    machine.before_making = refuse_seven
    hosted.set(threads=7)
    assert asked.wait(PATIENCE)
    hosted.set(threads=5)
    go_on.set()
    peer.until(lambda: len(hosted.infos) == 2)
    hosted.says("OK", DiagnosticStatus.OK)
    assert machine.calls[-1] == ("binary", "cpu", 5)
    assert hosted.get("threads") == [5]


def test_label_info_is_that_of_the_engine_that_answers(peer, machine, hosted_on, english, german):
    """And not that of a request which is still being met."""
    hosted = hosted_on("cpu")
    turns = threading.Semaphore(0)
    machine.before_making = lambda: turns.acquire(timeout=PATIENCE)
    made = machine.made
    hosted.set(model=str(german))
    peer.until(lambda: machine.made == made + 1)
    hosted.set(score_threshold=0.25)
    peer.until(lambda: len(hosted.infos) == 2)
    assert (hosted.infos[-1].threshold, hosted.labels()) == (0.25, ["red", "green", "blue"])
    turns.release()
    peer.until(lambda: len(hosted.infos) == 3)
    assert hosted.labels() == ["rot", "gruen", "blau"]
    # A request that is being met is given up for a newer one.
    hosted.set(model=str(english))
    peer.until(lambda: machine.made == made + 2)
    hosted.set(model=str(german))
    turns.release(2)
    peer.until(lambda: len(hosted.infos) == 4)
    assert hosted.labels() == ["rot", "gruen", "blau"]
    assert machine.made == made + 3


def test_engines_are_closed_when_they_are_replaced_and_at_the_end(peer, machine, hosted_on):
    hosted = hosted_on("cpu")
    camera = hosted.camera()
    for threads in (1, 2, 3):
        hosted.set(threads=threads)
        peer.until(lambda: len(hosted.infos) == threads + 1)  # noqa: B023 - called here
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
        peer.until(lambda: len(machine.open) == 1)
    assert machine.made == 4
    hosted.node.destroy_node()
    assert machine.open == []
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"inference", "engine_loader"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_topics", ["other"]),
        ("image_transport", "compressed"),
        ("max_pixels", 5),
        ("diagnostics_period", 2.0),
    ],
)
def test_what_is_set_at_start_up_only_cannot_be_set_later(peer, host, name, value):
    hosted = host()
    before = hosted.get(name)
    (result,) = peer.set_parameters(NODE, **{name: value})
    assert not result.successful
    assert name in result.reason
    assert hosted.get(name) == before


def test_an_empty_model_is_refused(peer, host, english):
    hosted = host()
    (result,) = peer.set_parameters(NODE, model="")
    assert not result.successful
    assert result.reason == "model is empty; it must be a model folder or the name of a model"
    assert hosted.get("model") == [str(english)]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"model": ""}, "model is empty"),
        ({"image_topics": [""]}, "image_topics \\[''\\] must be"),
        ({"image_topics": ["a", ""]}, "image_topics \\['a', ''\\] must be"),
        ({"image_topics": ["/left-camera"]}, "image_topics: '/left-camera' is not a topic"),
        ({"image_topics": ["a b"]}, "image_topics: 'a b' is not a topic"),
        ({"image_topics": ["left/"]}, "image_topics: 'left/' is not a topic"),
        ({"image_topics": ["/a//b"]}, "image_topics: '/a//b' is not a topic"),
        ({"image_topics": ["2nd"]}, "image_topics: '2nd' is not a topic"),
        ({"region": "left"}, r"region must be a list like \[0.0, 0.0, 1.0, 1.0\]"),
        ({"region": 1.0}, r"region must be a list like \[0.0, 0.0, 1.0, 1.0\]"),
        ({"image_topics": ["a", "a"]}, "image_topics \\['a', 'a'\\] must be"),
        ({"image_transport": "zip"}, "image_transport 'zip' is not one of raw, compressed"),
        ({"threads": 257}, "threads must lie between 0 and 256"),
        ({"threads": 1.0}, "threads must be a whole number like 0"),
        ({"diagnostics_period": 1}, "diagnostics_period must be a number with a decimal point like 1.0"),
        ({"model": 5}, "model must be a text like 'road_signs'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_refused_at_the_start(peer, english, parameters, reason):
    with pytest.raises(ParameterError, match=reason):
        peer.host(ClassifierNode, **{"model": str(english), **parameters})


def test_topics_offer_and_ask_for_what_they_should(peer, host):
    host(image_topics=["/left"])
    (images,) = peer.node.get_subscriptions_info_by_topic("/left")
    assert images.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT  # takes every camera's frames
    (labels,) = peer.node.get_publishers_info_by_topic("/bnn/labels")
    assert labels.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    (info,) = peer.node.get_publishers_info_by_topic("/bnn/label_info")
    assert info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL


def test_only_the_region_is_looked_at(peer, host, patient):
    hosted = host(region=[0.5, 0.0, 0.5, 1.0])
    camera = hosted.camera()
    halves = np.concatenate([picture("green", 4, 2), picture("blue", 4, 2)], axis=1)
    send_and_wait(peer, camera, image(halves), hosted.answers)
    assert labels_of(hosted.answers[-1]) == ["blue"]


def test_larger_images_than_allowed_are_refused(peer, host, patient):
    hosted = host(max_pixels=20)
    camera = hosted.camera()  # 4x4
    hosted.diagnostics.from_now_on()
    peer.send(camera, image(picture("red", 3, 7)))
    hosted.diagnostics.until(lambda status, values: hosted.diagnostics.frames("refused: too large") == 1)
    send_and_wait(peer, camera, image(picture("blue", 4, 5)), hosted.answers)
    assert labels_of(hosted.answers[-1]) == ["blue"]


def test_a_request_names_models_below_the_root_alone(peer, host, english, german):
    hosted = host(model="red-green-blue", model_root=str(english.parent))
    for values, reason in (
        ({"model": str(german)}, f"model '{german}' does not lie in model_root, {english.parent}"),
        ({"model": "../other"}, "model '../other' does not lie in model_root"),
        ({"model_root": "/"}, "read-only"),
    ):
        (result,) = peer.set_parameters(NODE, **values)
        assert not result.successful
        assert reason in result.reason
    assert hosted.get("model", "model_root") == ["red-green-blue", str(english.parent)]
