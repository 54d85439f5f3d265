"""A detector's boxes as messages, and the labels that go back with them; ``boxes_msg.py`` reads them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)

from bnn_perception.classifier import Prediction
from bnn_perception.frames.boxes import Box
from bnn_perception.ros.boxes_msg import UNKNOWN

# Copied for each of ours, which says nothing of a pose: a message made anew makes one, as long as a small net takes.
_WITHOUT_POSE = ObjectHypothesisWithPose()


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
    result = copy.copy(_WITHOUT_POSE)
    result.hypothesis = ObjectHypothesis(class_id=label, score=score)
    return result
