"""Recordings made for tests: rosbag2 folders of images, whole and damaged."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bnn_perception.frames.messages import (
    DETECTIONS,
    HYPOTHESIS,
    POSED_HYPOTHESIS,
    header,
    message_types,
)

pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
STORE = message_types()

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


def raw_message(picture, encoding="bgr8", padding=5, stamp=7_000_000_005):
    """An image whose rows end in padding, as some drivers send it."""
    height, width, channels = picture.shape
    rows = np.zeros((height, width * channels + padding), np.uint8)
    rows[:, : width * channels] = picture.reshape(height, -1)
    return STORE.types["sensor_msgs/msg/Image"](
        header=header(stamp, "front"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=1,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed_message(picture, stamp=7_000_000_005):
    ok, data = cv2.imencode(".png", picture)
    assert ok
    return STORE.types["sensor_msgs/msg/CompressedImage"](
        header=header(stamp, "front"), format="png", data=data.reshape(-1)
    )


def record(path, topics, storage="mcap", compress=None):
    """Write a rosbag2 folder; ``topics`` maps a topic to its type and messages, raw bytes passing as they are."""
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compress:
        writer.set_compression(CompressionMode[compress], CompressionFormat.ZSTD)
    with writer:
        for topic, (kind, messages) in topics.items():
            connection = writer.add_connection(topic, kind, typestore=STORE)
            for index, message in enumerate(messages):
                data = message if isinstance(message, bytes) else STORE.serialize_cdr(message, kind)
                writer.write(connection, 1_000_000_000 + index * 40_000_000, data)
    return path


def damage_chunks(file, *numbers):
    """Spoil the compressed data of some chunks of an MCAP file, where it begins."""
    from rosbags.rosbag2 import Reader

    with Reader(file) as reader:
        starts = [chunk.chunk_start_offset for chunk in reader.storage.chunks]
    content = bytearray(file.read_bytes())
    for number in numbers:
        content[starts[number] + 53 : starts[number] + 553] = bytes(500)
    file.write_bytes(content)
    return len(starts)


def detections(boxes, stamp, said="thing"):
    """A detector's boxes, each (x, y, width, height); their ids are their places, their one hypothesis ``said``."""
    types = STORE.types
    pose = types["geometry_msgs/msg/Pose"](
        position=types["geometry_msgs/msg/Point"](x=1.0, y=2.0, z=3.0),
        orientation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    where = types["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=np.ones(36))
    hypothesis = types[HYPOTHESIS](class_id=said, score=0.25)
    results = [types[POSED_HYPOTHESIS](hypothesis=hypothesis, pose=where)] if said else []
    found = []
    for place, (x, y, width, height) in enumerate(boxes):
        middle = types["vision_msgs/msg/Pose2D"](
            position=types["vision_msgs/msg/Point2D"](x=float(x), y=float(y)), theta=0.0
        )
        box = types["vision_msgs/msg/BoundingBox2D"](center=middle, size_x=float(width), size_y=float(height))
        found.append(
            types["vision_msgs/msg/Detection2D"](
                header=header(stamp, "front"), results=list(results), bbox=box, id=f"track {place}"
            )
        )
    return types[DETECTIONS](header=header(stamp, "front"), detections=found)
