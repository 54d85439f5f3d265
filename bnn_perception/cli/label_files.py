"""Files of labels: CSV for tables, MCAP for Foxglove and ``ros2 bag play``, where they stand beside the recording."""

from __future__ import annotations

import contextlib
import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from bnn_perception.classifier import Prediction
from bnn_perception.cli.recorded_boxes import labelled
from bnn_perception.errors import CommandError
from bnn_perception.files import replacing
from bnn_perception.frames.boxes import Box
from bnn_perception.frames.messages import (
    CLASSIFICATION,
    DETECTIONS,
    HYPOTHESIS,
    LABEL_INFO,
    VISION_CLASS,
    header,
    message_types,
)
from bnn_perception.ros.boxes_msg import box_of

#: What tells our own files, which may be replaced, from recordings.
LIBRARY = "bnn_perception"

#: Values of rosbag2's metadata: the durability of latched topics and that of others.
LATCHED, VOLATILE = 1, 2

#: The quality of service of a topic as rosbag2 keeps it: reliable, keep last, and no limits of time.
_QOS = """- history: 1
  depth: 10
  reliability: 1
  durability: {durability}
  deadline: {{sec: 9223372036, nsec: 854775807}}
  lifespan: {{sec: 9223372036, nsec: 854775807}}
  liveliness: 1
  liveliness_lease_duration: {{sec: 9223372036, nsec: 854775807}}
  avoid_ros_namespace_conventions: false
"""


class Origin(NamedTuple):
    """Where in a recording a frame comes from.

    Attributes:
        topic: of the image.
        recorded: when the recorder took it, nanoseconds.
        stamp: of its header, nanoseconds.
        frame_id: of its header.
    """

    topic: str
    recorded: int
    stamp: int
    frame_id: str


class LabelFile(Protocol):
    """What takes the labels of frames."""

    def write(self, origin: Origin, predictions: Sequence[Prediction]) -> None:
        """Add the labels of a frame, best first."""
        ...

    def write_boxes(
        self, origin: Origin, detections: Any, predictions: Sequence[Sequence[Prediction]]
    ) -> None:
        """Add the labels of the boxes of a frame, a ``vision_msgs/msg/Detection2DArray``, best first."""
        ...


def check_label_path(path: Path, recording: Path) -> None:
    """Refuse a file of labels that cannot be written, or would replace a recording.

    Raises:
        CommandError: naming it and the remedy.
    """
    if path.suffix not in (".csv", ".mcap"):
        raise CommandError(f"--out {path}: the ending says what is written: .csv or .mcap")
    if not path.parent.is_dir():
        raise CommandError(f"--out {path}: there is no folder {path.parent}")
    if path.exists() and (path.suffix == ".mcap" or path.samefile(recording)):
        with path.open("rb") as stream:
            if LIBRARY.encode() not in stream.read(100):
                raise CommandError(
                    f"--out {path}: is there, and is no file of labels that may be replaced; give another name"
                )


@contextlib.contextmanager
def open_labels(path: Path | None, labels: Sequence[str], top_k: int, boxes: bool) -> Iterator[LabelFile]:
    """A file of labels; it has its name when all is written, and there is none where writing has failed.

    Args:
        path: that :func:`check_label_path` has passed; None writes CSV to standard output.
        labels: of the model.
        top_k: labels a frame or box.
        boxes: whether those of boxes are written, and not of whole frames.
    """
    if path is None:
        yield CsvLabels(sys.stdout, min(top_k, len(labels)), boxes)
        return
    with replacing(path) as partial:
        if path.suffix == ".csv":
            with partial.open("w", encoding="utf-8", newline="") as text:
                yield CsvLabels(text, min(top_k, len(labels)), boxes)
        else:
            with partial.open("wb") as stream, contextlib.closing(McapLabels(stream, labels)) as file:
                yield file


class CsvLabels:
    """One line a frame or box: topic, stamp and time of recording in seconds, then labels and scores, best first.

    A box stands before its labels: its place in its message, its id, its middle, its sides and by which it is turned.
    """

    def __init__(self, stream: IO[str], top_k: int, boxes: bool) -> None:
        self._rows = csv.writer(stream, lineterminator="\n")
        places = ["", *(f"_{place}" for place in range(2, top_k + 1))]
        best = [f"{name}{place}" for place in places for name in ("label", "score")]
        place = ["box", "id", *Box._fields] if boxes else []
        self._rows.writerow(["topic", "stamp", "recorded", *place, *best])

    def write(self, origin: Origin, predictions: Sequence[Prediction]) -> None:
        self._write(origin, [], predictions)

    def write_boxes(
        self, origin: Origin, detections: Any, predictions: Sequence[Sequence[Prediction]]
    ) -> None:
        for index, (detection, best) in enumerate(zip(detections.detections, predictions)):
            self._write(origin, [index, detection.id, *box_of(detection)], best)

    def _write(self, origin: Origin, place: Sequence[Any], predictions: Sequence[Prediction]) -> None:
        best = itertools.chain.from_iterable((each.label, f"{each.score:.6f}") for each in predictions)
        self._rows.writerow([origin.topic, _seconds(origin.stamp), _seconds(origin.recorded), *place, *best])


class McapLabels:
    """A topic of labels a camera, and ``/label_info``, as rosbag2 writes its MCAP files.

    ``labels`` are ``vision_msgs/Classification``, ``labeled_detections`` are the ``Detection2DArray`` of the detector.

    A message has the header of its frame, and was recorded when the frame was, so that both stand side by side.
    """

    def __init__(self, stream: IO[bytes], labels: Sequence[str]) -> None:
        """Begin a file.

        Raises:
            CommandError: where the package mcap is missing.
        """
        try:
            from mcap.writer import Writer
        except ModuleNotFoundError:
            raise CommandError("writing .mcap takes mcap: pip install mcap; .csv takes nothing") from None
        self._labels = labels
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._writer = Writer(stream)
        self._writer.start(profile="ros2", library=LIBRARY)
        # Without metadata of its own, rosbag2 reads numbers for the policies of a topic, as its older versions wrote
        # and read them, and not their names, which the older do not read.
        self._writer.add_metadata("rosbag2", {"serialized_metadata": "", "ROS_DISTRO": ""})

    def write(self, origin: Origin, predictions: Sequence[Prediction]) -> None:
        types = message_types().types
        results = [types[HYPOTHESIS](class_id=each.label, score=each.score) for each in predictions]
        answer = types[CLASSIFICATION](header=header(origin.stamp, origin.frame_id), results=results)
        self._add(f"{camera(origin.topic)}/labels", CLASSIFICATION, origin, answer)

    def write_boxes(
        self, origin: Origin, detections: Any, predictions: Sequence[Sequence[Prediction]]
    ) -> None:
        answer = labelled(detections, predictions)
        self._add(f"{camera(origin.topic)}/labeled_detections", DETECTIONS, origin, answer)

    def _add(self, topic: str, kind: str, origin: Origin, message: Any) -> None:
        if not self._channels:
            types = message_types().types
            classes = [
                types[VISION_CLASS](class_id=i, class_name=name) for i, name in enumerate(self._labels)
            ]
            info = types[LABEL_INFO](header=header(origin.stamp, ""), class_map=classes, threshold=0.0)
            self._write("/label_info", LABEL_INFO, origin.recorded, info, LATCHED)
        self._write(topic, kind, origin.recorded, message, VOLATILE)

    def _write(self, topic: str, kind: str, time: int, message: Any, durability: int) -> None:
        if topic not in self._channels:
            if kind not in self._schemas:
                definition, _ = message_types().generate_msgdef(kind, ros_version=2)
                self._schemas[kind] = self._writer.register_schema(kind, "ros2msg", definition.encode())
            metadata = {
                "offered_qos_profiles": _QOS.format(durability=durability),
                "topic_type_hash": message_types().hash_rihs01(kind),
            }
            self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[kind], metadata)
        data = bytes(message_types().serialize_cdr(message, kind))
        self._writer.add_message(self._channels[topic], log_time=time, data=data, publish_time=time)

    def close(self) -> None:
        """Write the index of what there is."""
        self._writer.finish()


def camera(image_topic: str) -> str:
    """What the topics of a camera begin with, those of its labels as the classifier node names them."""
    return image_topic.removesuffix("/compressed")


def _seconds(nanoseconds: int) -> str:
    """As text, which keeps every digit."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{seconds}.{rest:09d}"
