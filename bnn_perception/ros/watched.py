"""What is known of the classifier nodes of a graph, from their diagnostics and their labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bnn_perception.ros.diagnostics import CAMERA, ENGINE, CameraState, State, as_mapping

#: Seconds without diagnostics, and how many of a node's own periods, after which it may have ended.
SILENCE, PERIODS = 5.0, 3.0


@dataclass
class WatchedCamera:
    """One camera of a node.

    Attributes:
        topic: of its images.
        state, level, message: by its newest diagnostics.
        label, score: of its newest answer; an answer without one has the label "".
        boxes: labelled in the newest answer, None where whole images are.
        answered_at: time.monotonic() of the newest answer, None before the first.
    """

    topic: str
    state: CameraState
    level: int
    message: str
    label: str = ""
    score: float = 0.0
    boxes: int | None = None
    answered_at: float | None = None


@dataclass
class WatchedNode:
    """A classifier node.

    Attributes:
        name: in full.
        state, level, message: of its engine, by its newest diagnostics.
        heard_at: time.monotonic() of its newest diagnostics.
        period: seconds between its newest two.
        cameras: by topic, in the order of the node.
    """

    name: str
    state: State
    level: int
    message: str
    heard_at: float
    period: float = 0.0
    cameras: dict[str, WatchedCamera] = field(default_factory=dict)

    def silent_for(self, now: float) -> float:
        """Seconds that it has been silent for longer than it should, 0 where all is well."""
        seconds = now - self.heard_at
        return seconds if seconds > max(SILENCE, PERIODS * self.period) else 0.0


class Watched:
    """The classifier nodes that have been heard.

    Args:
        only: full name of the node, or a namespace, that counts; empty takes all.

    Attributes:
        nodes: by full name.
        passed_over: names of those that do not count.
    """

    def __init__(self, only: str = "") -> None:
        self._only = only and "/" + only.strip("/")
        self.nodes: dict[str, WatchedNode] = {}
        self.passed_over: set[str] = set()

    @property
    def cameras(self) -> list[WatchedCamera]:
        """Those of all nodes."""
        return [camera for node in self.nodes.values() for camera in node.cameras.values()]

    def take(self, statuses: Iterable[Any], now: float) -> None:
        """Take the statuses of a DiagnosticArray; those of other nodes are passed over.

        Args:
            statuses: diagnostic_msgs DiagnosticStatus.
            now: time.monotonic().
        """
        heard: dict[str, set[str]] = {}  # topics of the cameras of each node that is in the message
        for status in statuses:
            name, _, part = status.name.partition(": ")
            values = as_mapping(status.values)
            # bytes in some distributions and a number in others
            level = status.level[0] if isinstance(status.level, bytes) else status.level
            try:
                if part == ENGINE:
                    self._take_engine(name, State.from_values(values), level, status.message, now)
                    heard[name] = set()
                elif part.startswith(CAMERA) and name in self.nodes:
                    topic = part[len(CAMERA) :]
                    self._take_camera(name, topic, CameraState.from_values(values), level, status.message)
                    heard.setdefault(name, set()).add(topic)
            except (KeyError, ValueError):  # another's that has such a name
                continue
        for name, topics in heard.items():
            if name in self.nodes:  # a node that was started anew may have other cameras
                cameras = self.nodes[name].cameras
                self.nodes[name].cameras = {topic: cameras[topic] for topic in cameras if topic in topics}

    def _take_engine(self, name: str, state: State, level: int, message: str, now: float) -> None:
        if self._only not in ("", "/", name) and not name.startswith(f"{self._only}/"):
            self.passed_over.add(name)
            return
        node = self.nodes.get(name)
        if node is None:
            self.nodes[name] = WatchedNode(name, state, level, message, now)
            return
        node.state, node.level, node.message = state, level, message
        node.period, node.heard_at = now - node.heard_at, now

    def _take_camera(self, name: str, topic: str, state: CameraState, level: int, message: str) -> None:
        cameras = self.nodes[name].cameras
        camera = cameras.get(topic)
        if camera is None:
            cameras[topic] = WatchedCamera(topic, state, level, message)
        else:
            camera.state, camera.level, camera.message = state, level, message
