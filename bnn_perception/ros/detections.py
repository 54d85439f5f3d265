"""A detector's boxes in messages: the regions that they ask for, and the labels that go back with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geometry_msgs.msg import PoseWithCovariance
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)

from bnn_perception.classifier import Prediction
from bnn_perception.frames.boxes import Box, region_of
from bnn_perception.ros.image_msg import RefusedFrame, Region

#: Boxes of one message that are answered; a message with more costs itself.
MAX_BOXES = 1000

#: The label of a box that cannot be classified, or none of whose labels reaches the threshold.
UNKNOWN = "unknown"

# One for all: our hypotheses say nothing of a pose, and a message of its own for each takes longer than the net.
_NO_POSE = PoseWithCovariance()


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
    return [region_of(_box(detection.bbox), width, height, margin) for detection in message.detections]


def _box(bbox: Any) -> Box:
    position = bbox.center.position
    return Box(position.x, position.y, bbox.size_x, bbox.size_y, bbox.center.theta)


def as_message(boxes: Sequence[Box], header: Any) -> Detection2DArray:
    """Boxes as a detector that names nothing publishes them; ``header`` is that of the image."""
    detections = []
    for number, box in enumerate(boxes):
        bbox = BoundingBox2D(size_x=box.width, size_y=box.height)
        bbox.center.position.x, bbox.center.position.y, bbox.center.theta = box.x, box.y, box.theta
        detections.append(Detection2D(header=header, bbox=bbox, id=str(number)))
    return Detection2DArray(header=header, detections=detections)


def label(message: Any, answers: Sequence[Sequence[Prediction]], unknown: str = UNKNOWN) -> None:
    """Put our hypotheses before those of the detector, in place.

    Args:
        message: the detections.
        answers: the labels of each box, best first; none for one that is ``unknown``.
        unknown: the label of those.
    """
    for detection, predictions in zip(message.detections, answers):
        ours = [_hypothesis(label, score) for _, label, score in predictions] or [_hypothesis(unknown, 0.0)]
        detection.results = [*ours, *detection.results]


def _hypothesis(label: str, score: float) -> ObjectHypothesisWithPose:
    return ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id=label, score=score), pose=_NO_POSE)
