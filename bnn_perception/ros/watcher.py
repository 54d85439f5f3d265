"""Listens to a graph; watches a classifier node and its camera: gathers labels, truth and diagnostics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from vision_msgs.msg import Classification, Detection2DArray, LabelInfo

from bnn_perception.frames.messages import stamp_of
from bnn_perception.ros.diagnostics import ENGINE, State, as_mapping

#: The node that is watched, and the namespace of its topics and the camera's.
CLASSIFIER, NAMESPACE = "/bnn/classifier", "/bnn"


class Answer(NamedTuple):
    """A label as it came; ``latency`` in milliseconds from the frame's stamp to here."""

    label: str
    score: float
    latency: float


class Listener(Node):
    """A node that listens to the graph while :meth:`work_until` runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)

    def work_until(self, condition: Callable[[], Any], patience: float) -> bool:
        """Listen until the condition holds; returns whether it does, False after ``patience`` seconds.

        The condition is asked often and may raise.
        """
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._spinner.spin_once(timeout_sec=0.05)
        return True


AnyListener = TypeVar("AnyListener", bound=Listener)


class Watcher(Listener):
    """Watches one classifier and its camera.

    Frames count from the first one whose answer, and truth if there is one, came here.

    Args:
        frames: how many count.
        knows_truth: whether the camera publishes what each frame shows.
        takes_boxes: whether the first box of each frame is answered and not the whole image.

    Attributes:
        labels: of the model, None until the node answers.
        state: of the node by its newest diagnostics, None until some came.
        message: of the newest diagnostics.
        answers: label and score of each answered frame, and when the answer came, by the frame's stamp. A frame
            without a label above the threshold has the label "".
        truths: what each frame shows, by its stamp.
        on_answer: called with the stamp after each answer.
    """

    def __init__(self, frames: int, knows_truth: bool, takes_boxes: bool = False) -> None:
        super().__init__("watcher")
        self._frames = frames
        self._knows_truth = knows_truth
        self.labels: set[str] | None = None
        self.state: State | None = None
        self.message = ""
        self.answers: dict[int, Answer] = {}
        self.truths: dict[int, str] = {}
        self.on_answer: Callable[[int], None] = lambda stamp: None
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(LabelInfo, f"{NAMESPACE}/label_info", self._on_label_info, latched)
        if takes_boxes:
            topic = f"{NAMESPACE}/labeled_detections"
            self.create_subscription(Detection2DArray, topic, self._on_labeled_detections, 100)
        else:
            self.create_subscription(Classification, f"{NAMESPACE}/labels", self._on_labels, 100)
        self.create_subscription(Classification, f"{NAMESPACE}/truth", self._on_truth, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def is_ready(self) -> bool:
        """Whether the node answers, and its labels and its state are known."""
        return self.labels is not None and self.state is not None and self.state.answers

    def stamps(self) -> list[int]:
        """Stamps of the counted frames, sorted: every sent frame if the truth is published, else every answered one."""
        known = self.truths if self._knows_truth else self.answers
        first = min(self.answers.keys() & known.keys(), default=None)
        return [] if first is None else sorted(stamp for stamp in known if stamp >= first)[: self._frames]

    def is_done(self) -> bool:
        """Whether as many frames as were wanted have been sent."""
        return len(self.stamps()) == self._frames

    def _on_label_info(self, message: LabelInfo) -> None:
        self.labels = {entry.class_name for entry in message.class_map}

    def _on_labels(self, message: Classification) -> None:
        self._take(message, message.results[0] if message.results else None)

    def _on_labeled_detections(self, message: Detection2DArray) -> None:
        best = message.detections[0].results[0].hypothesis if message.detections else None
        self._take(message, best)

    def _take(self, message: Any, best: Any) -> None:
        now, stamp = time.time_ns(), stamp_of(message.header)
        latency = (now - stamp) * 1e-6
        self.answers[stamp] = Answer(best.class_id, best.score, latency) if best else Answer("", 0.0, latency)
        self.on_answer(stamp)

    def _on_truth(self, message: Classification) -> None:
        self.truths[stamp_of(message.header)] = message.results[0].class_id

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{CLASSIFIER}: {ENGINE}":
                self.state = State.from_values(as_mapping(status.values))
                self.message = status.message


@contextlib.contextmanager
def listening(make: Callable[[], AnyListener]) -> Iterator[AnyListener]:
    """ROS from its start to its end, with a :class:`Listener`; Ctrl-C and SIGTERM are a KeyboardInterrupt."""
    rclpy.init(args=[])
    try:
        listener = make()
        try:
            yield listener
        finally:
            listener.destroy_node()
    except Exception:
        if rclpy.ok():
            raise
        raise KeyboardInterrupt from None  # a signal has ended ROS, as a call into it said
    finally:
        rclpy.try_shutdown()
