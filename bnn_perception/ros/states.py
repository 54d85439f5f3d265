"""The steady label of each camera, latched, for whoever acts on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from std_msgs.msg import Header
from vision_msgs.msg import Classification, ObjectHypothesis

from bnn_perception.frames.messages import stamp_of
from bnn_perception.ros.pipeline import Answer
from bnn_perception.ros.publishing import LATCHED, publish
from bnn_perception.ros.steady import GAP, Steady, SteadyLabel


class CameraStates:
    """Publishes ``state`` where the steady label of a camera changes.

    Frames are told of in the inference thread; the executor's thread ends the state of a camera that sends no more.

    Args:
        node: that publishes.
        topics: of the cameras, in full. Where there are several, each has a topic of its own, ``<topic>/state``.
        has_boxes: of which cameras boxes are answered. They have no state: only a tracker knows which box is which.
    """

    def __init__(self, node: Node, topics: Sequence[str], has_boxes: Sequence[bool]) -> None:
        self._node = node
        self._cameras = {
            number: _CameraState(
                node.create_publisher(
                    Classification, f"{topic}/state" if len(topics) > 1 else "state", LATCHED
                )
            )
            for number, topic in enumerate(topics)
            if not has_boxes[number]
        }
        self._lock = threading.Lock()

    @property
    def all_publishers(self) -> set[Any]:
        """All of them."""
        return {camera.publisher for camera in self._cameras.values()}

    def update(self, answer: Answer) -> None:
        """A frame has been answered."""
        camera = self._cameras.get(answer.arrival.camera)
        if camera is None:
            return
        settings, header = answer.arrival.settings, answer.arrival.message.header
        stamp = stamp_of(header)
        labels = answer.engine.spec.model.labels
        (scores,) = answer.scores
        with self._lock:
            if labels != camera.labels:
                camera.labels = labels
                camera.steady.reset()
            # The stamps of some drivers stand still.
            seconds = (stamp - camera.stamp) * 1e-9 or answer.arrival.received - camera.received
            camera.stamp, camera.received = stamp, answer.arrival.received
            camera.updated_at, camera.header, camera.unknown = (
                time.monotonic(),
                header,
                settings.unknown_label,
            )
            changed = camera.steady.update(
                seconds, scores, settings.smoothing, settings.hysteresis, settings.score_threshold
            )
            if changed is not None:
                self._publish(camera, changed)

    def expire(self) -> None:
        """A camera that has sent nothing for a while shows nothing that is known."""
        with self._lock:
            for camera in self._cameras.values():
                if camera.steady.current is not None and time.monotonic() - camera.updated_at > GAP:
                    camera.steady.reset()
                    self._publish(camera, Steady(None, 0.0))

    def _publish(self, camera: _CameraState, steady: Steady) -> None:
        if steady.class_id is not None:
            results = [ObjectHypothesis(class_id=camera.labels[steady.class_id], score=steady.score)]
        elif camera.unknown:
            results = [ObjectHypothesis(class_id=camera.unknown, score=0.0)]
        else:
            results = []
        publish(self._node, camera.publisher, Classification(header=camera.header, results=results))


class _CameraState:
    """What is known of a camera: the newest frame's header and labels, and what holds."""

    def __init__(self, publisher: Any) -> None:
        self.publisher = publisher
        self.steady = SteadyLabel()
        self.labels: tuple[str, ...] = ()
        self.header = Header()
        self.unknown = ""
        self.updated_at = 0.0
        self.stamp = 0
        self.received = 0.0
