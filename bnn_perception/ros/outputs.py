"""What the classifier node publishes of frames and of the model that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from vision_msgs.msg import Classification, LabelInfo, ObjectHypothesis, VisionClass

from bnn_perception.net.model import Model
from bnn_perception.ros.pipeline import Answer


class Outputs:
    """The publishers. They are made and destroyed in the executor's thread, and used in that of the inference.

    Args:
        node: that publishes.
        topics: of the cameras, in full. Where there are several, each camera's answers have a topic of their own too.
    """

    def __init__(self, node: Node, topics: Sequence[str]) -> None:
        self._node = node
        self._labels = node.create_publisher(Classification, "labels", 10)
        self._labels_of = [
            node.create_publisher(Classification, f"{topic}/labels", 10)
            for topic in topics
            if len(topics) > 1
        ]
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._label_info = node.create_publisher(LabelInfo, "label_info", latched)
        #: The publishers of answers: while nobody takes them, nobody would miss them.
        self._answers = [self._labels, *self._labels_of]

    @property
    def labels_topic(self) -> str:
        """Name of the topic of all answers."""
        name: str = self._labels.topic_name
        return name

    def has_audience(self) -> bool:
        """Whether anybody subscribes an answer."""
        return any(publisher.get_subscription_count() for publisher in self._answers)

    def publish_answer(self, answer: Answer) -> None:
        """Publish the labels of a frame under its own header."""
        results = [ObjectHypothesis(class_id=label, score=score) for _, label, score in answer.predictions]
        message = Classification(header=answer.arrival.message.header, results=results)
        publish(self._node, self._labels, message)
        if self._labels_of:
            publish(self._node, self._labels_of[answer.arrival.camera], message)

    def publish_label_info(self, model: Model, threshold: float) -> None:
        """Tell who comes later, too, which labels there are, and from which score on they are published."""
        info = LabelInfo(
            class_map=[VisionClass(class_id=i, class_name=label) for i, label in enumerate(model.labels)],
            threshold=threshold,
        )
        info.header.stamp = self._node.get_clock().now().to_msg()
        publish(self._node, self._label_info, info)

    def close(self) -> None:
        """Take the topics off the graph."""
        for publisher in [*self._answers, self._label_info]:
            self._node.destroy_publisher(publisher)


def publish(node: Node, publisher: Any, message: Any) -> None:
    """Publish, unless Ctrl-C was faster than this message."""
    try:
        publisher.publish(message)
    except Exception:
        if node.context.ok():
            raise
