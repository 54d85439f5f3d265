"""How messages go out."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from vision_msgs.msg import Classification, ObjectHypothesis

from bnn_perception.ros.pipeline import Answer

#: Who comes later gets the newest message.
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def as_classification(answer: Answer) -> Classification:
    """The labels of an image under its own header; ``unknown_label`` where there is none."""
    (predictions,) = answer.predictions
    results = [ObjectHypothesis(class_id=name, score=score) for _, name, score in predictions]
    unknown = answer.arrival.settings.unknown_label
    if unknown and not results:
        results = [ObjectHypothesis(class_id=unknown, score=0.0)]
    return Classification(header=answer.arrival.message.header, results=results)


def publish(node: Node, publisher: Any, message: Any) -> None:
    """Publish, unless Ctrl-C was faster than this message."""
    try:
        publisher.publish(message)
    except Exception:
        if node.context.ok():
            raise
