"""Nodes of this package as processes, and a node of the tests that talks to them over real DDS."""

from __future__ import annotations

import array
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from bnn_perception.ros.diagnostics import as_mapping
from bnn_perception.ros.process import claim_domain, prepare_process, private_graph

ROOT = Path(__file__).resolve().parent.parent.parent

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
GERMAN = {"red": "rot", "green": "gruen", "blue": "blau"}

#: Pause between frames of a camera.
FRAME = 1 / 30

# Starting Python, rclpy and discovery takes 2 s on an idle machine. Where everything else runs too it takes 20 s, and
# the first start of all compiles the CPU backend.
PATIENCE = 120.0

# What one participant needs to find another at most, seconds, where everything else runs too.
FINDING = 5.0

# A node that is killed leaves its 32 MB of shared memory to the machine.
ENDING = 20.0


@contextlib.contextmanager
def running(command, *parameters, arguments=(), environment=None):
    """A node in a process of its own, in a group of its own as under a launcher; told to end, and killed if need be."""
    line = [sys.executable, "-m", "bnn_perception", command, "--ros-args"]
    for parameter in parameters:
        line += ["-p", parameter]
    # The profile of this process is that of a camera; each node takes its own.
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_PROFILES_FILE")}
    process = subprocess.Popen(
        [*line, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**inherited, **(environment or {})},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        process.wait()


@functools.cache
def apart(number):
    """The environment of a node in a graph of its own, one for each number.

    Fast DDS 3.2 may deadlock where a participant leaves in the moment in which another has just found it
    (eProsima/Fast-DDS issue 6502): of nodes that start and end all at once, one in a hundred hung.
    """
    return private_graph(claim_domain())


@functools.cache
def in_a_container(size):
    """What a command begins with that gets a /dev/shm of its own, in a mount namespace; skips where none can be had.

    Args:
        size: of it, "64m" say, which is that of Docker.
    """
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    begin = ["unshare", "--mount", "--map-root-user", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    tried = subprocess.run([*begin, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this user may not mount in a namespace of its own: {tried.stderr.strip()}")
    return begin


def ending(process, timeout=PATIENCE):
    """What a node wrote, and its exit code. What it says of killed processes before it is left out."""
    output, _ = process.communicate(timeout=timeout)
    own = [line for line in output.splitlines(keepends=True) if "of shared memory that" not in line]
    return "".join(own), process.returncode


def image(pixels, encoding="rgb8", padding=0, frame_id="camera"):
    """A message with the pixels, (height, width, channels) uint8, and ``padding`` bytes after each row."""
    height, width, channels = pixels.shape
    message = Image(height=height, width=width, encoding=encoding, step=width * channels + padding)
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=255)
    data = array.array("B")
    data.frombytes(rows.tobytes())
    message.data = data
    message.header.frame_id = frame_id
    return message


def stamp(message):
    """The stamp of its header in nanoseconds."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


class Peer:
    """A node that publishes and keeps what arrives."""

    def __init__(self):
        prepare_process(publishes_images=True)
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("peer", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._hosted = []
        self.heard = {}

    def host(self, make, **parameters):
        """A node of the package in this process, which works when this one does; ended by :meth:`close`."""
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        hosted = make(context=self._context, parameter_overrides=overrides)
        self._hosted.append(hosted)
        self._executor.add_node(hosted)
        return hosted

    def subscribe(self, kind, topic, qos=ReliabilityPolicy.RELIABLE):
        """The list that every message on the topic is appended to; ``qos`` is a profile or a reliability."""
        messages = self.heard[topic] = []
        profile = qos if isinstance(qos, QoSProfile) else QoSProfile(depth=1000, reliability=qos)
        self.node.create_subscription(kind, topic, messages.append, profile)
        return messages

    def camera(self, example, topic, answers, reliability=ReliabilityPolicy.BEST_EFFORT):
        """A publisher of images that a node has been seen to answer; the answers are forgotten.

        That this side knows the node says nothing about the other direction. So ``example`` is sent until an answer
        comes, and once more to be sure that nothing of it is still on its way.
        """
        publisher = self.node.create_publisher(
            type(example), topic, QoSProfile(depth=1, reliability=reliability)
        )
        deadline = time.monotonic() + PATIENCE
        while not answers:
            assert time.monotonic() < deadline, f"nobody answers {topic}"
            self.send(publisher, example)
            self.work(0.1)
        last = 0
        while stamp(answers[-1]) != last:
            assert time.monotonic() < deadline, f"nobody answers {topic} any more"
            last = self.send(publisher, example)
            # Best effort may lose it.
            self.work_for(1.0, lambda: stamp(answers[-1]) == last)  # noqa: B023 - called here
        answers.clear()
        return publisher

    def send(self, publisher, message):
        """Publish with the time of now as stamp; returns the stamp."""
        message.header.stamp = self.node.get_clock().now().to_msg()
        publisher.publish(message)
        return stamp(message)

    def until(self, condition, patience=PATIENCE):
        """Work until the condition holds."""
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, {
                topic: len(messages) for topic, messages in self.heard.items()
            }
            self._executor.spin_once(timeout_sec=0.02)

    def work_for(self, seconds, condition):
        """Work until the condition holds, so long at most."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.02)

    def work(self, seconds):
        """Work for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=max(0.0, deadline - time.monotonic()))

    def call(self, kind, service, request, again=5.0):
        """The answer to a service call.

        It is called again every so many seconds: DDS drops an answer that is given before the server has found the
        client's reader. Where ``again`` is None it is called once, and None is returned where no answer came for long.
        """
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready)
        deadline = time.monotonic() + PATIENCE
        future = None
        while future is None or not future.done():
            assert time.monotonic() < deadline, f"no answer from {service}"
            future = client.call_async(request)
            until = time.monotonic() + (again or 4 * FINDING)
            while not future.done() and time.monotonic() < until:
                self.work(0.02)
            if again is None:
                break
        self.node.destroy_client(client)
        return future.result()

    def set_parameters(self, node, **values):
        """Set the parameters of a node one by one, as `ros2 param set` does; returns the results."""
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        answer = self.call(
            SetParameters, f"{node}/set_parameters", SetParameters.Request(parameters=parameters)
        )
        return answer.results

    def get_parameter(self, node, name):
        """Value message of a parameter of a node."""
        return self.call(GetParameters, f"{node}/get_parameters", GetParameters.Request(names=[name])).values[
            0
        ]

    def close(self):
        for node in [*self._hosted, self.node]:
            node.destroy_node()
        rclpy.shutdown(context=self._context)


class Diagnostics:
    """What /diagnostics says of the node; numbers of frames count from when this was made."""

    def __init__(self, peer):
        self._peer = peer
        self._arrays = peer.subscribe(DiagnosticArray, "/diagnostics")
        self._start = {}

    def from_now_on(self):
        """Let the numbers of frames start at zero."""
        for _ in range(2):  # the first may have been written before the last frame
            self.until(lambda status, values: True)
        self._start = {key: int(value) for key, value in self.values.items() if key.startswith("frames ")}

    def frames(self, what):
        """How many frames were ``what``."""
        key = f"frames {what}"
        return int(self.values.get(key, 0)) - self._start.get(key, 0)

    @property
    def heard(self):
        """Whether anything has come."""
        return bool(self._arrays)

    @property
    def statuses(self):
        """The statuses of the newest message: of the engine, then of each camera."""
        return self._arrays[-1].status

    @property
    def status(self):
        """All statuses as one: the worst level, and what they say, the worst first."""
        worst_first = sorted(self.statuses, key=lambda status: status.level, reverse=True)
        said = [status.message for status in worst_first if status.message != "OK"]
        return SimpleNamespace(
            name=self.statuses[0].name,
            level=worst_first[0].level,
            hardware_id=worst_first[0].hardware_id,
            message="; ".join(said) or "OK",
        )

    @property
    def values(self):
        """The values of the engine's status, and those of the cameras' under ``camera <topic>: <key>``."""
        engine, *cameras = self.statuses
        values = as_mapping(engine.values)
        for camera in cameras:
            of = camera.name.partition(": ")[2]
            values.update({f"{of}: {key}": value for key, value in as_mapping(camera.values).items()})
        return values

    def until(self, condition):
        """Wait for a message that fulfils a condition on status and values."""
        self._arrays.clear()
        self._peer.until(
            lambda: self._arrays and condition(self.status, self.values),
        )


def picture(colour, height=480, width=640):
    return np.full((height, width, 3), COLOURS[colour], np.uint8)


def labels_of(message):
    return [result.class_id for result in message.results]


def send_and_wait(peer, publisher, message, answers):
    """Publish a frame at the pace of a camera and wait for its answer; returns the stamp.

    On a busy machine the next frame would otherwise replace one that waits, as it should, and what is lost in
    transport could not be told from it.
    """
    sent = peer.send(publisher, message)
    before = len(answers)
    peer.work(FRAME)
    peer.until(lambda: len(answers) > before)
    return sent
