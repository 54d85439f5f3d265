"""How messages go out."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

#: Who comes later gets the newest message.
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def publish(node: Node, publisher: Any, message: Any) -> None:
    """Publish, unless Ctrl-C was faster than this message."""
    try:
        publisher.publish(message)
    except Exception:
        if node.context.ok():
            raise
