"""From a vision_msgs/Detection2DArray to regions of an image; the message's own package is not needed for it."""

from __future__ import annotations

from typing import Any

from bnn_perception.frames.boxes import Box, region_of
from bnn_perception.ros.image_msg import RefusedFrame, Region

#: Boxes of one message that are answered; a message with more costs itself.
MAX_BOXES = 1000

#: The label of a box that cannot be classified, or none of whose labels reaches the threshold.
UNKNOWN = "unknown"


def regions(message: Any, width: int, height: int, margin: float) -> list[Region | None]:
    """The region of each box of a Detection2DArray in an image; None where it has none.

    Args:
        message: the detections.
        width, height: of the image, in pixels.
        margin: see :func:`~bnn_perception.frames.boxes.region_of`.

    Raises:
        RefusedFrame: where they are more than :data:`MAX_BOXES`.
    """
    if len(message.detections) > MAX_BOXES:
        raise RefusedFrame(
            "boxes", f"{len(message.detections)} boxes; at most {MAX_BOXES} an image are taken"
        )
    return [region_of(box_of(detection), width, height, margin) for detection in message.detections]


def box_of(detection: Any) -> Box:
    """The box of a Detection2D."""
    bbox = detection.bbox
    position = bbox.center.position
    return Box(position.x, position.y, bbox.size_x, bbox.size_y, bbox.center.theta)
