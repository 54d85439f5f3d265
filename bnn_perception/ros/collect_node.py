"""The collect node: saves what cameras show under a label that is set while it runs, as a folder to train on.

Two threads: the executor's takes messages, parameters and timers; the saving thread writes
(:mod:`~bnn_perception.ros.saving`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from bnn_perception.collection import Collection, CollectionError, Outcome, in_words
from bnn_perception.errors import printable
from bnn_perception.frames.messages import stamp_of
from bnn_perception.ros.collect_parameters import CollectSettings
from bnn_perception.ros.collect_report import CollectReport
from bnn_perception.ros.diagnostics import as_message
from bnn_perception.ros.entry import run_node, spin_once
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.inputs import Cameras, cameras_of
from bnn_perception.ros.parameters import ParameterError, declare_parameters
from bnn_perception.ros.publishing import publish
from bnn_perception.ros.saving import Saver, Shot
from bnn_perception.ros.worker import Unforeseen, with_place

#: Seconds between two warnings of the same kind.
THROTTLE = 5.0

#: Seconds between two lines about how many images there are.
NEWS = 10.0

#: Seconds without a label after which images are not even subscribed. Who sets one label after another loses none.
IDLE = 10.0

#: Seconds that the end waits for what is being saved.
ENDING = 2.0


class CollectNode(Node):
    """Subscribes images, and saves every so many-th of each camera in ``folder/label``.

    Raises:
        ParameterError, CollectionError: where it cannot start, with the reason in one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("collector", namespace="bnn", **options)
        self._settings = declare_parameters(self, CollectSettings)
        cameras = cameras_of(self, self._settings)
        self._health = cameras
        self._unforeseen = Unforeseen()
        self._saver = Saver(Collection(Path(self._settings.folder)), self)
        self._cameras = Cameras(self, lambda: self._settings, self._take, self._skip, cameras)
        self._reports = CollectReport(
            self.get_fully_qualified_name(),
            self._saver,
            cameras,
            self._unforeseen,
            self._cameras.why_silent,
            self._cameras.why_no_boxes,
        )
        self._under_label = [0] * len(cameras)
        self._paused_at = time.monotonic()
        self._told = (time.monotonic(), self._in_words())
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/counts", self._on_counts)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        # Steady time: the state is reported also where simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self._settings.diagnostics_period, self._report, clock=steady)
        self._saver.start()
        self._follow_label()

    def destroy_node(self) -> None:
        """Save what waits, for :data:`ENDING` seconds at most, then give back what every node holds."""
        if hasattr(self, "_saver"):
            self._saver.stop(ENDING)
            self.get_logger().info(printable(self._in_words()))
        super().destroy_node()

    # Executor thread.

    def _follow_label(self) -> None:
        """Say what is collected now, and take images for it."""
        collection = self._saver.collection
        label = self._settings.label
        self._under_label = [0] * len(self._health)
        if label:
            self.get_logger().info(printable(f"saving {label} in {collection.folder / label}"))
        else:
            self._paused_at = time.monotonic()
            self.get_logger().info(
                f"paused; 'ros2 param set {self.get_fully_qualified_name()} label LABEL' begins to save in "
                f"{collection.folder}"
            )
        self._adjust()

    def _adjust(self) -> None:
        """Subscribe while there is a label, and a little longer."""
        if self._settings.label:
            if not self._cameras.are_subscribed:
                self._cameras.subscribe()
                for line in self._cameras.describe():
                    self.get_logger().info(f"images from {line}")
        elif self._cameras.are_subscribed and time.monotonic() - self._paused_at >= IDLE:
            self._cameras.unsubscribe()

    def _take(self, camera: int, image: Any, detections: Any, received: float, age: float | None) -> None:
        del received, age  # of interest where answers are awaited
        self._reports.seen[camera] += 1
        settings = self._settings
        if not settings.label:
            return
        number = self._under_label[camera]
        self._under_label[camera] += 1
        if number % settings.every:
            return
        stamp = stamp_of(image.header)
        # A driver that stamps nothing gives all its images one name otherwise.
        self._saver.put(
            Shot(camera, image, detections, stamp or self.get_clock().now().nanoseconds, settings)
        )

    def _skip(self, camera: int) -> None:
        self._reports.seen[camera] += 1

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        label = self._settings.label
        try:
            self._settings = self._settings.with_values({each.name: each.value for each in parameters})
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=printable(str(error)))
        if self._settings.label != label:
            try:  # the value holds, whatever this raises
                self._follow_label()
            except Exception as error:
                self.unexpected(f"following a change of the label: {with_place(error)}")
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        self._adjust()
        reports = self._reports.make(self._settings, self._cameras.are_subscribed)
        publish(self, self._diagnostics, as_message(reports, self.get_clock().now().to_msg()))
        at, before = self._told
        words, now = self._in_words(), time.monotonic()
        if words != before and now - at >= NEWS:
            self._told = (now, words)
            self.get_logger().info(printable(words))

    def _in_words(self) -> str:
        collection = self._saver.collection
        left_out = self._saver.became[Outcome.DUPLICATE]
        return f"{collection.folder} holds {in_words(dict(collection.counts))}; {left_out} near-duplicates left out"

    def _on_counts(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        answer.success = True
        answer.message = printable(self._in_words())
        return answer

    # Saving thread: see saving.Sink.

    def refused(self, camera: int, error: RefusedFrame) -> None:
        health = self._health[camera]
        health.last_refusal = str(error)
        self._reports.refused[camera] += 1
        self.get_logger().warning(
            printable(f"frame refused: {health.topic}: {error}"), throttle_duration_sec=THROTTLE
        )

    def failed(self, error: OSError) -> None:
        line = (
            f"{error.filename or self._saver.collection.folder}: {error.strerror or error}; make room, or start with "
            "another folder"
        )
        self._reports.last_failure = line
        self.get_logger().error(
            printable(f"an image could not be saved: {line}"), throttle_duration_sec=THROTTLE
        )

    # Any thread.

    def unexpected(self, line: str) -> None:
        self._unforeseen.add(line)
        self.get_logger().error(printable(f"unexpected error: {line}"), throttle_duration_sec=THROTTLE)


def work(node: CollectNode, executor: SingleThreadedExecutor) -> None:
    """Spin the node until it is told to stop."""
    while node.context.ok():
        spin_once(executor, node.unexpected)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; see :func:`~bnn_perception.ros.entry.run_node`."""
    return run_node(
        "collect_node", argv, make=CollectNode, work=work, expected=(ParameterError, CollectionError)
    )


if __name__ == "__main__":
    sys.exit(main())
