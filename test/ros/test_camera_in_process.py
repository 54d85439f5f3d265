"""The camera node inside the tests' own process: its pace on a clock that the test moves, and what it publishes."""

from __future__ import annotations

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import stamp
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from scripted import PATIENCE, Clock
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Classification

from bnn_perception.frames import source
from bnn_perception.ros import camera_node
from bnn_perception.ros.camera_node import LINGER, CameraNode
from bnn_perception.ros.parameters import ParameterError

#: The rounding of sums of steps of a clock that stands at a thousand seconds, in seconds.
ROUNDING = 1e-9


def raw(stamp=0, **fields):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    rows = np.pad(pixels.reshape(2, 9), ((0, 0), (0, 3)))
    image = source.RawImage(2, 3, "bgr8", is_bigendian=1, step=12, data=rows.reshape(-1))
    return source.SourceFrame("a frame", stamp, image, **fields)


class Script:
    """A source of frames as the test has them.

    Attributes:
        before_frame: called before each frame is given out.
    """

    uri = "a script"
    refused = 0
    knows_boxes = False

    def __init__(self, frames, live=False, compressed=False):
        self.frames = frames
        self.live = live
        self.compressed = compressed
        self.before_frame = lambda: None

    def __iter__(self):
        for frame in self.frames:
            self.before_frame()
            yield frame


class Executor:
    """Lets time pass instead of working."""

    def __init__(self, clock):
        self.clock = clock
        self.calls = 0
        self.on_call = lambda: None

    def spin_once(self, timeout_sec):
        assert timeout_sec >= 0
        self.calls += 1
        self.clock.now += timeout_sec
        self.on_call()


@pytest.fixture
def host(peer, monkeypatch):
    """A function that starts the node on a script."""

    def start(script, **parameters):
        monkeypatch.setattr(camera_node, "open_source", lambda uri, **options: script)
        return peer.host(CameraNode, **{"patience": 0.0, **parameters})

    return start


class Run:
    """A run of the node over frames with these stamps (milliseconds), on a scripted clock.

    Attributes:
        published: when each frame was, in seconds since the start.
    """

    def __init__(self, host, monkeypatch, stamps, live=False, **parameters):
        self.clock = Clock()
        self.script = Script([raw(round(stamp * 1e6)) for stamp in stamps], live=live)
        self.executor = Executor(self.clock)
        self.published = []
        self.on_publish = lambda: None
        self.node = host(self.script, **parameters)
        start, publish = self.clock.now, self.node.publish

        def record(frame):
            self.published.append(self.clock.now - start)
            publish(frame)
            self.on_publish()

        monkeypatch.setattr(self.node, "publish", record)
        monkeypatch.setattr(camera_node, "time", self.clock)

    def __call__(self):
        self.node.run(self.executor)
        return pytest.approx(self.published, abs=ROUNDING)


@pytest.fixture
def run(host, monkeypatch):
    """A function that prepares a :class:`Run`."""
    return lambda *args, **options: Run(host, monkeypatch, *args, **options)


# Pace.


def test_frames_come_at_the_distances_of_their_stamps(run):
    # The first at once, whatever its stamp; the clock of a source has its own zero.
    assert run([5000, 5100, 5250, 5300, 6300])() == [0, 0.1, 0.25, 0.3, 1.3]


def test_the_first_frame_waits_for_a_subscriber_and_no_longer_than_the_patience_lasts(run):
    camera = run([0, 100], patience=1.5)
    assert camera() == [1.5, 1.6]


def test_frames_begin_when_somebody_subscribes(run, peer):
    camera = run([0, 100], patience=1000.0)
    subscription = []

    def subscribe():
        if camera.executor.calls == 3:
            subscription.append(peer.node.create_subscription(Image, "/image_raw", lambda _: None, 1))
            peer.until(lambda: camera.node._images.get_subscription_count() > 0)

    camera.executor.on_call = subscribe
    first, second = camera().expected
    assert first < 1
    assert second - first == pytest.approx(0.1, abs=ROUNDING)


def test_a_webcam_does_not_wait(run):
    assert run([0], live=True, patience=5.0)() == [0]


def test_frames_that_nobody_could_get_are_counted(run, capfd):
    run([0, 100, 200])()
    assert "3 of 3 frames were published while nobody subscribed /image_raw" in capfd.readouterr().err


@pytest.mark.parametrize("gap", [11_000, 1.7e12], ids=["hours", "from a stamp of 0 to today"])
def test_a_gap_is_not_slept_through(run, capfd, gap):
    assert run([0, 100, gap, gap + 100])() == [0, 0.1, 10.1, 10.2]
    assert "s after the frame before it; waiting 10 s (longest_pause)" in capfd.readouterr().err


def test_the_longest_pause_can_be_set(run):
    assert run([0, 30_000], longest_pause=60.0)() == [0, 30]


def test_a_rate_replaces_the_distances(run):
    assert run([0, 100, 1000, 1001], rate=50.0)() == [0, 0.02, 0.04, 0.06]


def test_the_rate_changes_while_the_node_runs(run):
    camera = run([0, 100, 200, 300, 400, 500])

    def change():
        rates = {2: 4.0, 4: 0.0}
        if len(camera.published) in rates:
            (result,) = camera.node.set_parameters([Parameter("rate", value=rates[len(camera.published)])])
            assert result.successful

    camera.on_publish = change
    assert camera() == [0, 0.1, 0.35, 0.6, 0.7, 0.8]


def test_time_that_reading_takes_does_not_slow_the_pace(run):
    camera = run([0, 100, 200, 300])
    camera.script.before_frame = lambda: camera.clock.advance(60)
    # The first frame is there after 60 ms: what was due before is not caught up with.
    assert camera() == [0.06, 0.16, 0.26, 0.36]


def test_late_frames_are_not_caught_up_with(run):
    """After a stall the pace goes on from there: a burst would only be dropped."""
    camera = run([0, 100, 200, 300, 400])
    camera.on_publish = lambda: camera.clock.advance(500 if len(camera.published) == 2 else 0)
    assert camera() == [0, 0.1, 0.6, 0.7, 0.8]


def test_a_source_with_a_pace_of_its_own_is_not_waited_for(run):
    camera = run([0, 1000, 2000, 3000], live=True)
    camera.script.before_frame = lambda: camera.clock.advance(33)
    assert camera() == [0.033, 0.066, 0.099, 0.132]


def test_the_executor_works_between_frames_even_where_they_are_late(run):
    camera = run([0, 1, 2, 3])
    camera.on_publish = lambda: camera.clock.advance(500)
    before = []
    camera.script.before_frame = lambda: before.append(camera.executor.calls)
    camera()
    assert all(later > earlier for earlier, later in zip(before, before[1:]))


def test_the_end(run):
    """After as many frames as were wanted, and time for the last to arrive."""
    camera = run([0, 100, 200, 300, 400], frames=3)
    assert camera() == [0, 0.1, 0.2]
    assert camera.clock.now - 1000 == pytest.approx(0.2 + LINGER, abs=ROUNDING)
    camera = run([0, 100, 200], frames=0)
    assert camera() == [0, 0.1, 0.2]


# What is published.


@pytest.mark.parametrize(
    ("parameter", "recorded", "expected"),
    [("", "", "camera"), ("", "front", "front"), ("mast", "front", "mast"), ("mast", "", "mast")],
)
def test_frame_id_is_the_parameter_s_then_the_recording_s(peer, host, parameter, recorded, expected):
    images = peer.subscribe(Image, "/image_raw", ReliabilityPolicy.BEST_EFFORT)
    node = host(Script([]), frame_id=parameter)
    while not images:
        node.publish(raw(frame_id=recorded))
        peer.work(0.05)
    assert images[0].header.frame_id == expected


def test_an_image_and_its_truth(peer, host):
    images = peer.subscribe(Image, "/image_raw", ReliabilityPolicy.BEST_EFFORT)
    truths = peer.subscribe(Classification, "/truth")
    node = host(Script([]))
    peer.until(lambda: peer.node.count_publishers("/truth") and peer.node.count_publishers("/image_raw"))
    while not (images and truths):
        node.publish(raw(stamp=5, truth="stop"))
        peer.work(0.05)
    assert [(result.class_id, result.score) for result in truths[-1].results] == [("stop", 1.0)]
    assert truths[-1].header in [image.header for image in images]
    message = images[-1]
    assert (message.height, message.width, message.encoding, message.step) == (2, 3, "bgr8", 12)
    assert message.is_bigendian == 1
    assert message.data.tobytes() == bytes([*range(9), 0, 0, 0, *range(9, 18), 0, 0, 0])
    # Stamped as a camera does, not with the time of the source.
    assert abs(stamp(message) - peer.node.get_clock().now().nanoseconds) < PATIENCE * 1e9
    # What is not known is not said.
    peer.work(0.1)
    images.clear()
    truths.clear()
    while not images:
        node.publish(raw())
        peer.work(0.05)
    assert truths == []


def test_a_compressed_image(peer, host):
    images = peer.subscribe(CompressedImage, "/image_raw/compressed", ReliabilityPolicy.BEST_EFFORT)
    node = host(Script([], compressed=True))
    data = np.arange(200, dtype=np.uint8)
    kind = "bgr8; png compressed bgr8"
    while not images:
        node.publish(source.SourceFrame("x", 0, source.CompressedImage(kind, data), frame_id="mast"))
        peer.work(0.05)
    assert (images[0].format, images[0].data.tobytes()) == (kind, data.tobytes())
    assert images[0].header.frame_id == "mast"


def test_topics_have_the_quality_that_cameras_offer(peer, host):
    host(Script([]))
    peer.until(lambda: peer.node.count_publishers("/truth") and peer.node.count_publishers("/image_raw"))
    (images,) = peer.node.get_publishers_info_by_topic("/image_raw")
    assert images.qos_profile.reliability == ReliabilityPolicy.RELIABLE  # as REP-2003 asks
    (truth,) = peer.node.get_publishers_info_by_topic("/truth")
    assert truth.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_the_quality_can_be_overridden(peer, host):
    host(Script([]), **{"qos_overrides./image_raw.publisher.reliability": "reliable"})
    peer.until(lambda: peer.node.count_publishers("/image_raw"))
    (images,) = peer.node.get_publishers_info_by_topic("/image_raw")
    assert images.qos_profile.reliability == ReliabilityPolicy.RELIABLE


# Parameters.


def test_parameters_at_their_ends(host):
    node = host(Script([]), rate=0.0, frames=2**62)
    assert node.get_name() == "camera"
    assert [node.get_parameter(name).value for name in ("rate", "frames")] == [0.0, 2**62]
    with pytest.raises(ParameterError, match="^frames must"):
        host(Script([]), frames=2**62 + 1)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ("scene", {"topic": None, "decode": False, "loop": False})),
        (
            {"source": "/a/bag", "topic": "/image", "decode": True},
            ("/a/bag", {"topic": "/image", "decode": True, "loop": False}),
        ),
        ({"loop": True}, ("scene", {"topic": None, "decode": False, "loop": True})),
    ],
)
def test_the_source_is_opened_as_the_parameters_say(peer, monkeypatch, parameters, expected):
    opened = []

    def open_source(uri, *, warn, **options):
        opened.append((uri, options))
        warn("a line for the log")
        return Script([])

    monkeypatch.setattr(camera_node, "open_source", open_source)
    peer.host(CameraNode, **parameters)
    assert opened == [expected]


@pytest.mark.parametrize("name", ["source", "topic", "decode", "loop", "frames", "frame_id"])
def test_only_the_rate_changes_at_run_time(host, name):
    node = host(Script([]))
    before = node.get_parameter(name)
    (result,) = node.set_parameters([before])
    assert not result.successful
    (result,) = node.set_parameters([Parameter("rate", value=1000.0)])
    assert result.successful
    (result,) = node.set_parameters([Parameter("rate", value=1000.5)])
    assert not result.successful


@pytest.mark.parametrize("parameters", [{"rate": -0.5}, {"rate": 1001.0}, {"frames": -1}, {"rate": 5}])
def test_numbers_out_of_range_are_refused(host, parameters):
    (name,) = parameters
    with pytest.raises(ParameterError, match=f"^{name} must"):
        host(Script([]), **parameters)
