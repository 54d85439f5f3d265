"""Listens to all classifier nodes of a graph: their diagnostics, and the labels of each of their cameras."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from vision_msgs.msg import Classification, Detection2DArray

from bnn_perception.ros.watched import Watched, WatchedCamera
from bnn_perception.ros.watcher import Listener


class Overview(Listener):
    """Subscribes what there is to see, while it is worked; see :class:`~bnn_perception.ros.watched.Watched`.

    Args:
        only: full name of a node, or a namespace; empty watches all.

    Attributes:
        watched: what has been heard.
    """

    def __init__(self, only: str = "") -> None:
        super().__init__("bnn_watch")
        self.watched = Watched(only)
        # What is taken of each camera of each node: the type and the topic, and the subscription.
        self._subscribed: dict[tuple[str, str], tuple[tuple[Any, str], Any]] = {}
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def why_nothing(self) -> str:
        """Why no classifier has been heard, as far as the graph tells."""
        if self.watched.passed_over:
            others = ", ".join(sorted(self.watched.passed_over))
            return f"the classifier nodes here are {others}"
        if not self.count_publishers("/diagnostics"):
            return "nobody publishes /diagnostics"
        return "/diagnostics has publishers, but no classifier among them"

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.watched.take(message.status, time.monotonic())
        for node in self.watched.nodes.values():
            for camera in node.cameras.values():
                self._subscribe(node.name, camera, alone=len(node.cameras) == 1)

    def _subscribe(self, name: str, camera: WatchedCamera, alone: bool) -> None:
        """Subscribe the answers of a camera, which have a topic of its own where it is not alone.

        A node that was started anew may answer boxes where it has answered images, or have other cameras.
        """
        place = name.rpartition("/")[0] if alone else camera.topic
        kind, last = (
            (Detection2DArray, "labeled_detections") if camera.state.boxes else (Classification, "labels")
        )
        wanted = kind, f"{place}/{last}"
        taken, subscription = self._subscribed.get((name, camera.topic), (None, None))
        if taken == wanted:
            return
        if subscription is not None:
            self.destroy_subscription(subscription)
            camera.boxes = None
        # Best effort is enough for the eye, and what is slow here holds up nobody.
        profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        subscription = self.create_subscription(*wanted, partial(self._take, name, camera.topic), profile)
        self._subscribed[name, camera.topic] = wanted, subscription

    def _take(self, name: str, topic: str, message: Any) -> None:
        """Note the newest answer of a camera of a node."""
        camera = self.watched.nodes[name].cameras.get(topic)
        if camera is None:  # the node was started anew without it
            return
        camera.answered_at = time.monotonic()
        results: Sequence[Any]
        if isinstance(message, Detection2DArray):
            camera.boxes = len(message.detections)
            results = [result.hypothesis for result in message.detections[0].results] if camera.boxes else []
        else:
            results = message.results
        best = results[0] if results else None
        camera.label, camera.score = (best.class_id, best.score) if best else ("", 0.0)
