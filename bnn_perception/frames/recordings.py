"""Recordings as sources of camera frames: one topic of images of a :class:`~bnn_perception.frames.bags.Bag`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from bnn_perception.errors import one_line
from bnn_perception.frames.bags import Bag, Topic, uncompressed
from bnn_perception.frames.messages import CLASSIFICATION, COMPRESSED, RAW, message_types, stamp_of
from bnn_perception.frames.raw import HOLDS_NO_COLOURS, RawError, compressed_order
from bnn_perception.frames.source import CompressedImage, RawImage, Source, SourceError, SourceFrame

#: The types of messages that are images.
IMAGES = (RAW, COMPRESSED)


class Recorded(NamedTuple):
    """What an image message holds.

    Attributes:
        image: raw or compressed.
        stamp: of its header, in nanoseconds.
        frame_id: of its header.
    """

    image: RawImage | CompressedImage
    stamp: int
    frame_id: str


class Recording(Source):
    """Images of one topic of an MCAP file, a SQLite file or a rosbag2 folder, as they were recorded.

    Without a topic the one with the most images is played, depth images aside. Stamps are those of the recorder.
    Messages that were compressed one by one (zstd) are read whether or not the metadata says so. ``decode`` turns
    compressed images into raw ones. A damaged chunk costs its images, a file of a folder that cannot be opened its own.

    The truth of a frame is the first label of the ``vision_msgs/Classification`` that has the stamp of its header, on a
    topic that is called ``truth``, as the camera node's, or on the one that is named.

    Attributes:
        truth_topic: name of the topic with the truth, None where there is none.
    """

    def __init__(
        self,
        uri: str,
        path: Path,
        *,
        topic: str | None,
        truth: str | None,
        decode: bool,
        loop: bool,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(uri, loop=loop, warn=warn)
        self._decode = decode
        self._bag = Bag(path, warn=warn)
        self._topic = self._choose(topic)
        self._truth = self._choose_truth(truth)
        self.truth_topic = self._truth.name if self._truth else None
        self.compressed = self._topic.type == COMPRESSED and not decode

    def _choose(self, name: str | None) -> Topic:
        """The topic to play."""
        candidates = image_topics(self._bag, [name] if name else [])
        if not name and len(candidates) > 1:
            candidates = [each for each in candidates if not is_measured(self._bag, each)] or candidates
        chosen = max(candidates, key=lambda topic: topic.size)
        others = sorted({topic.name for topic in self._bag.topics if topic.type in IMAGES} - {chosen.name})
        if not name and others:
            self._warn(
                f"{self._bag.path}: plays {chosen.name}; name a topic for another: {', '.join(others)}"
            )
        return chosen

    def _choose_truth(self, name: str | None) -> Topic | None:
        """The topic that tells the truth; None where none is asked for, and not just one is called so."""
        labels = [topic for topic in self._bag.topics if topic.type == CLASSIFICATION]
        if name is None:
            called = [topic for topic in labels if topic.name.rpartition("/")[2] == "truth"]
            return called[0] if len(called) == 1 else None
        chosen = next((topic for topic in labels if topic.name == name), None)
        if chosen is None:
            held = ", ".join(topic.name for topic in labels) or "none"
            raise SourceError(
                f"{self._bag.path}: holds no vision_msgs/Classification on '{name}'; topics with them: {held}"
            )
        return chosen

    def _truths(self) -> dict[int, str]:
        """The right label for each stamp of a header; stamps that stand for several labels are left out."""
        labels: dict[int, set[str]] = {}
        for message in self._bag.messages([self._truth] if self._truth else [], self._refuse):
            try:
                told = message_types().deserialize_cdr(uncompressed(message.data), CLASSIFICATION)
            except Exception as error:  # as in _one_pass
                self._refuse(f"{self._bag.path}:{message.topic.name}: {one_line(error)}")
                continue
            if told.results:
                labels.setdefault(stamp_of(told.header), set()).add(told.results[0].class_id)
        return {stamp: best for stamp, (best, *others) in labels.items() if not others}

    def _one_pass(self) -> Iterator[SourceFrame]:
        truths = self._truths()
        for index, message in enumerate(self._bag.messages([self._topic], self._refuse)):
            name = f"{self._bag.path}:{self._topic.name}#{index}"
            try:
                recorded = read_message(self._topic.type, message.data)
                image = recorded.image
                if self._decode and isinstance(image, CompressedImage):
                    image = image.decode()
            except Exception as error:  # of arbitrary bytes: whatever they provoke
                self._refuse(f"{name}: {one_line(error)}")
                continue
            truth = truths.get(recorded.stamp)
            yield SourceFrame(name, message.stamp, image, truth, frame_id=recorded.frame_id)


def image_topics(bag: Bag, names: Collection[str] = ()) -> list[Topic]:
    """The topics of a recording on which images were recorded.

    Args:
        names: those that are asked for; all of them where there is none.

    Raises:
        SourceError: where there is no such topic, or no image on any.
    """
    topics = [topic for topic in bag.topics if topic.type in IMAGES]
    if not topics:
        held = ", ".join(f"{topic.name} ({topic.type})" for topic in bag.topics) or "nothing"
        raise SourceError(
            f"{bag.path}: holds no topic of sensor_msgs Image or CompressedImage; it holds {held}"
        )
    held = ", ".join(sorted({topic.name for topic in topics}))
    for name in names:
        if not any(topic.name == name for topic in topics):
            raise SourceError(f"{bag.path}: holds no images on '{name}'; it holds {held}")
    recorded = [topic for topic in topics if topic.size and (not names or topic.name in names)]
    if not recorded:
        raise SourceError(
            f"{bag.path}: no image was recorded on {', '.join(names) or f'any of {held}'}; was the camera on?"
        )
    return recorded


def is_measured(bag: Bag, topic: Topic) -> bool:
    """Whether the first image of a topic is no picture: depth cameras record measurements as images."""
    data = bag.first(topic)
    if data is None:
        return False
    try:
        image = read_message(topic.type, data).image
        if isinstance(image, CompressedImage):
            compressed_order(image.format)
            return False
    except RawError:
        return True
    except Exception:  # as in _one_pass; what is played will say so
        return False
    return HOLDS_NO_COLOURS.fullmatch(image.encoding.strip()) is not None


def read_message(kind: str, data: bytes | memoryview) -> Recorded:
    """The image in a recorded message.

    Args:
        kind: type of the message, ``sensor_msgs/msg/Image`` or ``CompressedImage``.
        data: CDR bytes, or those compressed.

    Raises:
        Exception: whatever arbitrary bytes provoke.
    """
    message = message_types().deserialize_cdr(uncompressed(data), kind)
    image: RawImage | CompressedImage
    if kind == COMPRESSED:
        image = CompressedImage(message.format, message.data)
    else:
        image = RawImage(
            message.height, message.width, message.encoding, message.is_bigendian, message.step, message.data
        )
    return Recorded(image, stamp_of(message.header), message.header.frame_id)
