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
from bnn_perception.errors import CommandError
from bnn_perception.files import replacing
from bnn_perception.frames.messages import (
    CLASSIFICATION,
    HYPOTHESIS,
    LABEL_INFO,
    VISION_CLASS,
    header,
    message_types,
)

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
def open_labels(path: Path | None, labels: Sequence[str], top_k: int) -> Iterator[LabelFile]:
    """A file of labels; it has its name when all is written, and there is none where writing has failed.

    Args:
        path: that :func:`check_label_path` has passed; None writes CSV to standard output.
        labels: of the model.
        top_k: labels a frame.
    """
    if path is None:
        yield CsvLabels(sys.stdout, min(top_k, len(labels)))
        return
    with replacing(path) as partial:
        if path.suffix == ".csv":
            with partial.open("w", encoding="utf-8", newline="") as text:
                yield CsvLabels(text, min(top_k, len(labels)))
        else:
            with partial.open("wb") as stream, contextlib.closing(McapLabels(stream, labels)) as file:
                yield file


class CsvLabels:
    """One line a frame: topic, stamp and time of recording in seconds, then labels and scores, best first."""

    def __init__(self, stream: IO[str], top_k: int) -> None:
        self._rows = csv.writer(stream, lineterminator="\n")
        places = ["", *(f"_{place}" for place in range(2, top_k + 1))]
        best = [f"{name}{place}" for place in places for name in ("label", "score")]
        self._rows.writerow(["topic", "stamp", "recorded", *best])

    def write(self, origin: Origin, predictions: Sequence[Prediction]) -> None:
        best = itertools.chain.from_iterable((each.label, f"{each.score:.6f}") for each in predictions)
        self._rows.writerow([origin.topic, _seconds(origin.stamp), _seconds(origin.recorded), *best])


class McapLabels:
    """``vision_msgs/Classification`` on a topic a camera, and ``/label_info``, as rosbag2 writes its MCAP files.

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
        if not self._channels:
            classes = [
                types[VISION_CLASS](class_id=i, class_name=name) for i, name in enumerate(self._labels)
            ]
            info = types[LABEL_INFO](header=header(origin.stamp, ""), class_map=classes, threshold=0.0)
            self._add("/label_info", LABEL_INFO, origin.recorded, info, LATCHED)
        results = [types[HYPOTHESIS](class_id=each.label, score=each.score) for each in predictions]
        answer = types[CLASSIFICATION](header=header(origin.stamp, origin.frame_id), results=results)
        self._add(labels_topic(origin.topic), CLASSIFICATION, origin.recorded, answer, VOLATILE)

    def _add(self, topic: str, kind: str, time: int, message: Any, durability: int) -> None:
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


def labels_topic(image_topic: str) -> str:
    """Where the labels of a camera are, as the classifier node names them."""
    return f"{camera(image_topic)}/labels"


def camera(image_topic: str) -> str:
    """What a camera's topics begin with, raw and compressed."""
    return image_topic.removesuffix("/compressed")


def _seconds(nanoseconds: int) -> str:
    """As text, which keeps every digit."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{seconds}.{rest:09d}"
