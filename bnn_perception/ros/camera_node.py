"""The camera node: publishes the frames of a source, and the truth about them where it is known."""

from __future__ import annotations

import array
import sys
import time
from collections.abc import Sequence
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Classification, Detection2DArray, ObjectHypothesis

from bnn_perception.errors import printable
from bnn_perception.frames.source import RawImage, SourceError, SourceFrame
from bnn_perception.frames.sources import open_source
from bnn_perception.ros.detections import as_message
from bnn_perception.ros.entry import run_node, spin_once
from bnn_perception.ros.parameters import Parameter, ParameterError, declare
from bnn_perception.ros.process import why_small

PARAMETERS = (
    Parameter(
        "source",
        "scene",
        "where frames come from: scene or scene:SEED (rendered road signs), webcam:INDEX, or the path of a folder of "
        "images, a video, an MCAP file or a rosbag2 folder",
        read_only=True,
    ),
    Parameter("topic", "", "of a recording with several; empty takes the one with the most images", read_only=True),
    Parameter("decode", False, "publish the images of a compressed recording raw", read_only=True),
    Parameter("rate", 0.0, "frames a second; 0 keeps the pace of the source", bounds=(0.0, 1000.0)),
    Parameter(
        "longest_pause", 10.0, "seconds between two frames of a source at most",
        bounds=(0.0, 86400.0), read_only=True,
    ),
    Parameter(
        "patience", 2.0, "seconds that the first frame waits for a subscriber; a webcam's does not wait",
        bounds=(0.0, 3600.0), read_only=True,
    ),
    Parameter("loop", False, "start again at the end of the source", read_only=True),
    Parameter("frames", 0, "end after so many; 0 goes on", bounds=(0, 2**62), read_only=True),
    Parameter(
        "frame_id", "", "of the headers; empty takes that of a recording, or else camera", read_only=True
    ),
)  # fmt: skip

#: Seconds that the last frame has to reach its subscribers before the publisher goes.
LINGER = 0.2

#: Seconds between two lines about exceptions that nobody foresaw.
THROTTLE = 5.0


class CameraNode(Node):
    """Publishes ``image_raw``, or ``image_raw/compressed`` for a compressed recording, and what is known of a frame:
    ``truth``, and ``detections``, the boxes that a detector would find.

    Frames are stamped when they are published, as a camera does, whatever time a recording is from.

    Raises:
        ParameterError, SourceError: where it cannot start, with the reason in one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("camera", **options)
        values = {parameter.name: declare(self, parameter) for parameter in PARAMETERS}
        self._frame_id = values["frame_id"]
        self._limit = values["frames"]
        self._longest_pause = values["longest_pause"]
        self._patience = values["patience"]
        self._source = open_source(
            values["source"],
            topic=values["topic"] or None,
            decode=values["decode"],
            loop=values["loop"],
            warn=self._warn,
        )
        compressed = self._source.compressed
        self._images = self.create_publisher(
            CompressedImage if compressed else Image,
            "image_raw/compressed" if compressed else "image_raw",
            # Reliable, as REP-2003 asks of what publishes sensor data: who subscribes best effort gets that.
            QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        # Small, and looked up by stamp later: it must not get lost.
        self._truth = self.create_publisher(Classification, "truth", 100)
        self._detections = (
            self.create_publisher(Detection2DArray, "detections", 10) if self._source.knows_boxes else None
        )

    def _warn(self, line: str) -> None:
        self.get_logger().warning(printable(line))

    def run(self, executor: SingleThreadedExecutor) -> None:
        """Publish every frame when it is due, and let the executor work while waiting.

        Raises:
            SourceError: where the source goes on no longer.
        """
        self.get_logger().info(f"publishing {self._source.uri} on {self._images.topic_name}")
        if shortage := why_small():
            self._warn(shortage)
        count = unheard = 0
        if not self._source.live:
            self._wait_for_subscriber(executor)
        due = time.monotonic()
        previous: int | None = None
        for frame in self._source:
            rate = self.get_parameter("rate").value
            if previous is not None and not self._source.live:
                due += 1 / rate if rate else self._pause(frame, previous)
            previous = frame.stamp
            due = max(due, time.monotonic())  # late frames are not caught up with
            self._work_until(executor, due)
            unheard += self._images.get_subscription_count() == 0
            self.publish(frame)
            count += 1
            if count == self._limit:
                break
        self._work_until(executor, time.monotonic() + LINGER)
        self.get_logger().info(f"the source ended: {count} frames published, {self._source.refused} refused")
        if unheard:
            self.get_logger().warning(
                f"{unheard} of {count} frames were published while nobody subscribed {self._images.topic_name}"
            )

    def _pause(self, frame: SourceFrame, previous: int) -> float:
        """Seconds from the frame before to this one, as recorded; no longer than the parameter says."""
        seconds = (frame.stamp - previous) * 1e-9
        if seconds <= self._longest_pause:
            return seconds
        self._warn(
            f"{frame.name}: comes {seconds:.0f} s after the frame before it; "
            f"waiting {self._longest_pause:g} s (longest_pause)"
        )
        return self._longest_pause

    def _wait_for_subscriber(self, executor: SingleThreadedExecutor) -> None:
        """What is published before anybody has found this node is lost."""
        until = time.monotonic() + self._patience
        while self._images.get_subscription_count() == 0 and time.monotonic() < until:
            self._work_until(executor, min(until, time.monotonic() + 0.02))

    def publish(self, frame: SourceFrame) -> None:
        """Publish a frame, and the truth about it where it is known, with the same header."""
        header = Header(frame_id=self._frame_id or frame.frame_id or "camera")
        header.stamp = self.get_clock().now().to_msg()
        image = frame.image
        if isinstance(image, RawImage):
            message = Image(
                header=header,
                height=image.height,
                width=image.width,
                encoding=image.encoding,
                is_bigendian=image.is_bigendian,
                step=image.step,
            )
        else:
            message = CompressedImage(header=header, format=image.format)
        # An array is taken as it is; of any other type rclpy looks at every single byte.
        data = array.array("B")
        data.frombytes(image.data.data)
        message.data = data
        self._images.publish(message)
        if self._detections is not None:
            self._detections.publish(as_message(frame.boxes, header))
        if frame.truth is not None:
            results = [ObjectHypothesis(class_id=frame.truth, score=1.0)]
            self._truth.publish(Classification(header=header, results=results))

    def _unexpected(self, line: str) -> None:
        self.get_logger().error(printable(f"unexpected error: {line}"), throttle_duration_sec=THROTTLE)

    def _work_until(self, executor: SingleThreadedExecutor, due: float) -> None:
        while True:
            remaining = due - time.monotonic()
            spin_once(executor, self._unexpected, max(remaining, 0.0))
            if remaining <= 0:
                return


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until its source ends or it is told to stop; see :func:`~bnn_perception.ros.entry.run_node`."""
    return run_node(
        "camera_node",
        argv,
        make=CameraNode,
        work=CameraNode.run,
        expected=(SourceError, ParameterError),
        publishes_images=True,
    )


if __name__ == "__main__":
    sys.exit(main())
