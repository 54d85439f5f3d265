"""Why no frame or boxes come on a topic, as far as the graph of nodes tells."""

from __future__ import annotations

import difflib
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

#: Types of the two transports of images, and of a detector's boxes.
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
BOXES = "vision_msgs/msg/Detection2DArray"
SUFFIX = "/compressed"

#: Topics that are named where nobody publishes the one that is subscribed.
NEAREST = 3


def why_silent(node: Node, subscription: Any, is_of_boxes: bool = False) -> tuple[str, int]:
    """What keeps messages from a subscription of the node: nobody publishes, another type, an incompatible QoS.

    Args:
        node: that subscribes.
        subscription: of images.
        is_of_boxes: where it is one of a detector's boxes instead.

    Returns:
        The reason with a remedy, empty where the graph tells of none; the number of publishers of its type.
    """
    topic = subscription.topic_name
    type_name = BOXES if is_of_boxes else COMPRESSED if topic.endswith(SUFFIX) else IMAGE
    publishers = node.get_publishers_info_by_topic(topic)
    if not publishers:
        instead = _others(node, topic, {BOXES}) if is_of_boxes else _instead(node, topic)
        return f"nobody publishes {topic}{instead}", 0
    fitting = [publisher for publisher in publishers if publisher.topic_type == type_name]
    if not fitting:
        other = publishers[0]
        if is_of_boxes:
            remedy = "start with detection_topic:= and a topic of boxes"
        elif other.topic_type in (IMAGE, COMPRESSED):
            transport = "raw" if other.topic_type == IMAGE else "compressed"
            remedy = f"start with image_transport:={transport} and the topic without {SUFFIX}"
        else:
            remedy = "start with image_topic:= and a topic of images"
        return f"{topic} is of type {other.topic_type}, not {type_name}; {remedy}", 0
    for publisher in fitting:
        fits, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
        if fits == QoSCompatibility.ERROR:
            return (
                f"{topic}: the QoS of its publisher {publisher.node_name} cannot serve this node's ({reason}); "
                f"change qos_overrides.{topic}.subscription of this node",
                len(fitting),
            )
    return "", len(fitting)


def _instead(node: Node, topic: str) -> str:
    """Where images are published instead: in the other transport, or on topics of similar names."""
    found = _published(node, {IMAGE, COMPRESSED})
    base = topic[: -len(SUFFIX)] if topic.endswith(SUFFIX) else topic
    if topic != base and found.get(base) == IMAGE:
        return f", but {base} is: start with image_transport:=raw"
    if topic == base and found.get(base + SUFFIX) == COMPRESSED:
        return f", but {base}{SUFFIX} is: start with image_transport:=compressed"
    return _others(node, topic, {IMAGE, COMPRESSED})


def _others(node: Node, topic: str, types: set[str]) -> str:
    """Topics of these types with names that are similar."""
    nearest = difflib.get_close_matches(topic, _published(node, types), NEAREST, 0.0)
    what = "boxes" if BOXES in types else "images"
    return f"; {what} are on {', '.join(nearest)}" if nearest else ""


def _published(node: Node, types: set[str]) -> dict[str, str]:
    """Topics of these types that somebody else publishes, with their types."""
    own = {publisher.topic_name for publisher in node.publishers}
    return {
        name: kinds[0]
        for name, kinds in node.get_topic_names_and_types()
        if kinds and kinds[0] in types and name not in own and node.count_publishers(name)
    }
