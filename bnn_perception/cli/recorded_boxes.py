"""A detector's boxes in a recording: found for a frame by its stamp, and with labels put to them."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnn_perception.classifier import Prediction
from bnn_perception.errors import one_line
from bnn_perception.frames.bags import Bag, Topic, uncompressed
from bnn_perception.frames.messages import DETECTIONS, HYPOTHESIS, POSED_HYPOTHESIS, message_types
from bnn_perception.frames.source import SourceError


def boxes_topic(bag: Bag, name: str) -> Topic:
    """A topic of boxes.

    Raises:
        SourceError: where there is none of the name.
    """
    topics = [topic for topic in bag.topics if topic.type == DETECTIONS]
    for topic in topics:
        if topic.name == name:
            return topic
    held = ", ".join(topic.name for topic in topics) or "none"
    raise SourceError(
        f"{bag.path}: holds no vision_msgs/Detection2DArray on '{name}'; topics with them: {held}"
    )


class RecordedBoxes:
    """The messages of a topic of boxes, by the stamps of their headers."""

    def __init__(self, bag: Bag, topic: Topic, tolerance: float, refuse: Callable[[str], None]) -> None:
        """Read the messages of a topic; they are kept as they were recorded.

        Args:
            tolerance: seconds by which the stamps of a frame and of its boxes may differ.
            refuse: called with one line where messages cannot be read.
        """
        self._tolerance = round(tolerance * 1e9)
        messages: dict[int, bytes | memoryview] = {}
        for message in bag.messages([topic], refuse):
            try:
                data = uncompressed(message.data)
                # A header stands first in CDR, behind four bytes, of which the second tells the order of the others.
                seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
                messages[seconds * 10**9 + nanoseconds] = data
            except Exception as error:  # of arbitrary bytes: whatever they provoke
                refuse(f"{topic.name}: a message that cannot be read: {one_line(error)}")
        self._stamps = sorted(messages)
        self._messages = messages

    def at(self, stamp: int) -> bytes | memoryview | None:
        """The message of a stamp, else that of the nearest one, in nanoseconds; None where none is near enough."""
        place = bisect.bisect_left(self._stamps, stamp)
        near = self._stamps[max(0, place - 1) : place + 1]
        nearest = min(near, key=lambda each: abs(each - stamp), default=None)
        if nearest is None or abs(nearest - stamp) > self._tolerance:
            return None
        return self._messages[nearest]


def read_detections(data: bytes | memoryview) -> Any:
    """The ``vision_msgs/msg/Detection2DArray`` in a message.

    Raises:
        Exception: whatever arbitrary bytes provoke.
    """
    return message_types().deserialize_cdr(data, DETECTIONS)


def labelled(detections: Any, predictions: Sequence[Sequence[Prediction]]) -> Any:
    """Boxes as they are, with labels before what their detector says, as the classifier node publishes them.

    Args:
        detections: a ``vision_msgs/msg/Detection2DArray``.
        predictions: of each box, best first.

    Returns:
        The message, changed.
    """
    types = message_types().types
    pose = nowhere()
    for detection, best in zip(detections.detections, predictions):
        ours = [types[HYPOTHESIS](class_id=each.label, score=each.score) for each in best]
        detection.results = [types[POSED_HYPOTHESIS](hypothesis=each, pose=pose) for each in ours] + list(
            detection.results
        )
    return detections


def nowhere() -> Any:
    """A ``geometry_msgs/msg/PoseWithCovariance`` as ROS makes it where nothing is said."""
    types = message_types().types
    pose = types["geometry_msgs/msg/Pose"](
        position=types["geometry_msgs/msg/Point"](x=0.0, y=0.0, z=0.0),
        orientation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    return types["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=np.zeros(36))
