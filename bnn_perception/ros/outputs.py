"""What the classifier node publishes of frames and of the model that answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from std_msgs.msg import Float32
from vision_msgs.msg import Classification, Detection2DArray, LabelInfo, VisionClass

from bnn_perception.net.model import Model
from bnn_perception.ros.annotated import AnnotatedImages
from bnn_perception.ros.boxes_msg import UNKNOWN
from bnn_perception.ros.detections import label
from bnn_perception.ros.pipeline import Answer
from bnn_perception.ros.publishing import LATCHED, as_classification, publish
from bnn_perception.ros.states import CameraStates


class Outputs:
    """The publishers. They are made and destroyed in the executor's thread, and used in that of the inference.

    Args:
        node: that publishes.
        topics: of the cameras, in full. Where there are several, each camera's answers have a topic of their own too.
        has_boxes: of which cameras a detector's boxes are answered, and not the whole image.
        annotated: publishes pictures of the answers.
        threshold: gives the score from which on labels are published.
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[str],
        has_boxes: Sequence[bool],
        annotated: AnnotatedImages,
        threshold: Callable[[], float],
    ) -> None:
        self._node = node
        self._has_boxes = has_boxes
        self._annotated = annotated
        self._threshold = threshold
        #: Whose labels are told; None until an engine answers.
        self._model: Model | None = None
        self._telling = threading.Lock()
        # Held while an answer is published: a batch that outlasts a deactivation is not to find half of them destroyed.
        self._publishing = threading.Lock()
        self._is_closed = False
        self._label_info = node.create_publisher(LabelInfo, "label_info", LATCHED)
        # The publishers of each camera's answers; the first of each kind is that of all cameras.
        common: dict[str, Any] = {}
        self._answers: list[list[Any]] = []
        for topic, boxes in zip(topics, has_boxes):
            kind, name = (Detection2DArray, "labeled_detections") if boxes else (Classification, "labels")
            if name not in common:
                common[name] = node.create_publisher(kind, name, 10)
            own = [node.create_publisher(kind, f"{topic}/{name}", 10)] if len(topics) > 1 else []
            self._answers.append([common[name], *own])
        self._states = CameraStates(node, topics, has_boxes)
        # What says nothing of the camera that it is from has no topic for all.
        places = [f"{topic}/" for topic in topics] if len(topics) > 1 else [""]
        self._latency = [node.create_publisher(Float32, f"{place}latency", 10) for place in places]
        annotated.open([f"{place}image_annotated" for place in places])

    def topic_of(self, camera: int) -> str:
        """Name of the topic of a camera's answers: its own where there are several."""
        name: str = self._answers[camera][-1].topic_name
        return name

    def has_audience(self) -> bool:
        """Whether anybody subscribes an answer."""
        publishers = self._publishers()
        return any(p.get_subscription_count() for p in publishers) or self._annotated.has_audience()

    def publish_answer(self, answer: Answer) -> None:
        """Publish the labels of a frame under its own header, or its detections with their labels.

        How long they took, and a picture of them, follow where somebody looks.
        """
        with self._publishing:
            if not self._is_closed:
                self._publish_answer(answer)

    def _publish_answer(self, answer: Answer) -> None:
        arrival = answer.arrival
        if self._has_boxes[arrival.camera]:
            message = arrival.detections
            label(message, answer.predictions, arrival.settings.unknown_label or UNKNOWN)
        else:
            message = as_classification(answer)
        for publisher in self._answers[arrival.camera]:
            # To publish to nobody costs as much as a small net.
            if publisher.get_subscription_count():
                publish(self._node, publisher, message)
        self._states.update(answer)
        latency = arrival.age_at(time.perf_counter())
        if self._latency[arrival.camera].get_subscription_count():
            publish(self._node, self._latency[arrival.camera], Float32(data=latency))
        self._annotated.put(answer, latency)

    def end_states(self) -> None:
        """Let the states of cameras that send no more say so."""
        self._states.expire()

    def tell_labels(self, model: Model | None = None) -> None:
        """Tell who comes later, too, which labels there are, and from which score on they are published.

        The model changes in the inference thread and the threshold in the executor's. What is told last must hold the
        newest of both, so that one of them at a time looks at both and publishes.

        Args:
            model: that answers from now on; None where it has not changed.
        """
        with self._telling:
            self._model = model or self._model
            if self._model is None:
                return
            classes = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(self._model.labels)]
            info = LabelInfo(class_map=classes, threshold=self._threshold())
            info.header.stamp = self._node.get_clock().now().to_msg()
            publish(self._node, self._label_info, info)

    def close(self) -> None:
        """Take the topics off the graph."""
        with self._publishing:
            self._is_closed = True
        for publisher in [*self._publishers(), self._label_info]:
            self._node.destroy_publisher(publisher)
        self._annotated.close()

    def _publishers(self) -> set[Any]:
        """Of answers: while nobody takes them, nobody would miss them."""
        answers = {publisher for publishers in [*self._answers, self._latency] for publisher in publishers}
        return answers | self._states.all_publishers
