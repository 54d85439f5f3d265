"""The messages of recordings that are read and written here, as rosbags takes them."""

from __future__ import annotations

import functools
from typing import Any

RAW = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CLASSIFICATION = "vision_msgs/msg/Classification"
HYPOTHESIS = "vision_msgs/msg/ObjectHypothesis"
LABEL_INFO = "vision_msgs/msg/LabelInfo"
VISION_CLASS = "vision_msgs/msg/VisionClass"
POSED_HYPOTHESIS = "vision_msgs/msg/ObjectHypothesisWithPose"
DETECTIONS = "vision_msgs/msg/Detection2DArray"

#: The definitions of vision_msgs from ROS 2 Humble on, without their comments, each after those that it consists of.
#: Its messages are none of those that rosbags knows.
VISION_MSGS = {
    HYPOTHESIS: "string class_id\nfloat64 score\n",
    CLASSIFICATION: "std_msgs/Header header\nObjectHypothesis[] results\n",
    VISION_CLASS: "uint16 class_id\nstring class_name\n",
    LABEL_INFO: "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y\n",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    POSED_HYPOTHESIS: "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "vision_msgs/msg/Detection2D": (
        "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox2D bbox\nstring id\n"
    ),
    DETECTIONS: "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}


@functools.cache
def message_types() -> Any:
    """A ``rosbags.typesys.Typestore`` with the messages of ROS 2 Humble and :data:`VISION_MSGS`.

    Images and headers have been the same since the first ROS 2.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, definition in VISION_MSGS.items():
        store.register(get_types_from_msg(definition, name))
    return store


def header(stamp: int, frame_id: str) -> Any:
    """A ``std_msgs/msg/Header`` whose stamp is given in nanoseconds."""
    types = message_types().types
    seconds, nanoseconds = divmod(stamp, 10**9)
    time = types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)


def stamp_of(header: Any) -> int:
    """The stamp of a ``std_msgs/msg/Header`` of ROS or of rosbags, in nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)
