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

#: The definitions of vision_msgs, without their comments; its messages are none of those that rosbags knows.
VISION_MSGS = {
    HYPOTHESIS: "string class_id\nfloat64 score\n",
    CLASSIFICATION: "std_msgs/Header header\nObjectHypothesis[] results\n",
    VISION_CLASS: "uint16 class_id\nstring class_name\n",
    LABEL_INFO: "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
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
    """The stamp of a ``std_msgs/msg/Header``, in nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)
