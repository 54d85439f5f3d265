"""Recordings as sources of camera frames: MCAP files, SQLite files and rosbag2 folders, read by rosbags."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bnn_perception.errors import one_line
from bnn_perception.frames.raw import HOLDS_NO_COLOURS
from bnn_perception.frames.source import CompressedImage, RawImage, Source, SourceError, SourceFrame

#: Extensions of the files that are recordings.
SUFFIXES = {".mcap", ".db3"}

# A 100-megapixel rgb8 image. A message that unpacks to more is broken, or meant to exhaust the memory.
_MAX_MESSAGE = 300_000_000

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Recording(Source):
    """Images of one topic of an MCAP file, a SQLite file or a rosbag2 folder, as they were recorded.

    Without a topic the one with the most images is played, depth images aside. Stamps are those of the recorder.
    Messages that were compressed one by one (zstd) are read whether or not the metadata says so. ``decode`` turns
    compressed images into raw ones. A damaged chunk costs its images, a file of a folder that cannot be opened its own.
    """

    def __init__(
        self,
        uri: str,
        path: Path,
        *,
        topic: str | None,
        decode: bool,
        loop: bool,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(uri, loop=loop, warn=warn)
        self._path = path
        self._decode = decode
        self._parts = self._openable()
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(contextlib.closing(self._open(part))) for part in self._parts]
            self._topic, self._type = self._choose(readers, topic)
        self.compressed = self._type.endswith("CompressedImage") and not decode

    def _openable(self) -> list[Path]:
        """What is played one after the other: the recording, or those of its files that can be opened.

        Raises:
            SourceError: where none of them can be.
        """
        try:
            self._open(self._path).close()
            return [self._path]
        except SourceError as error:
            files = (
                sorted(entry for entry in self._path.iterdir() if entry.suffix in SUFFIXES)
                if self._path.is_dir()
                else []
            )
            if len(files) < 2 or re.search("metadata|storage", str(error), re.IGNORECASE):
                raise
        parts, reasons = [], []
        for file in files:
            try:
                self._open(file).close()
                parts.append(file)
            except SourceError as error:
                reasons.append(str(error))
        if not parts:
            raise SourceError(reasons[0])
        for reason in reasons:
            self._warn(f"{reason}; the other files of {self._path} are played")
        return parts

    def _open(self, path: Path) -> Any:
        try:
            from rosbags.rosbag2 import Reader
        except ModuleNotFoundError:
            raise SourceError(
                f"{path}: reading recordings takes rosbags: pip install 'rosbags>=0.11.7'"
            ) from None
        try:
            reader = Reader(path)
            reader.open()
        # A reader of arbitrary bytes raises whatever they provoke.
        except Exception as error:
            raise SourceError(
                f"{path}: cannot be opened as a recording: {one_line(error)}; {_remedy(path, error)}"
            ) from None
        return reader

    def _choose(self, readers: list[Any], topic: str | None) -> tuple[str, str]:
        """The topic to play and the type of its messages."""
        connections: list[Any] = [connection for reader in readers for connection in reader.connections]
        counts: dict[tuple[str, str], int] = {}
        for connection in connections:
            if (message_type := _message_type(connection)) is not None:
                key = connection.topic, message_type
                counts[key] = counts.get(key, 0) + connection.msgcount
        if not counts:
            held = ", ".join(sorted({f"{c.topic} ({c.msgtype})" for c in connections})) or "nothing"
            raise SourceError(
                f"{self._path}: holds no topic of sensor_msgs Image or CompressedImage; it holds {held}"
            )
        topics = sorted({name for name, _ in counts})
        if topic and topic not in topics:
            raise SourceError(f"{self._path}: holds no images on '{topic}'; it holds {', '.join(topics)}")
        candidates = [key for key in counts if not topic or key[0] == topic]
        if not any(counts[key] for key in candidates):
            raise SourceError(
                f"{self._path}: no image was recorded on {topic or 'any of ' + ', '.join(topics)}; was the camera on?"
            )
        if not topic and len(candidates) > 1:
            candidates = [
                key for key in candidates if any(_shows_colours(reader, *key) for reader in readers)
            ] or candidates
        chosen = max(candidates, key=lambda key: counts[key])
        if not topic and len(topics) > 1:
            others = ", ".join(name for name in topics if name != chosen[0])
            self._warn(f"{self._path}: plays {chosen[0]}; name a topic for another: {others}")
        return chosen

    def _one_pass(self) -> Iterator[SourceFrame]:
        from rosbags.typesys import Stores, get_typestore

        # Image and CompressedImage have been the same since the first ROS 2.
        types = get_typestore(Stores.ROS2_HUMBLE)
        for index, (stamp, data) in enumerate(self._messages()):
            name = f"{self._path}:{self._topic}#{index}"
            try:
                message: Any = types.deserialize_cdr(_uncompressed(data), self._type)
                image = _image_of(message)
                if self._decode and isinstance(image, CompressedImage):
                    image = image.decode()
                frame_id = message.header.frame_id
            except Exception as error:  # as in _open
                self._refuse(f"{name}: {one_line(error)}")
                continue
            yield SourceFrame(name, stamp, image, frame_id=frame_id)

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """Stamps and contents of the messages of all parts, as far as they can be read."""
        count = 0
        for part in self._parts:
            with contextlib.closing(self._open(part)) as reader:
                wanted = [
                    c for c in reader.connections if (c.topic, _message_type(c)) == (self._topic, self._type)
                ]
                if not wanted:  # none would be taken for all
                    continue
                last, of_last, passed = None, 0, 0
                messages = reader.messages(wanted)
                while True:
                    try:
                        _, stamp, data = next(messages)
                    except StopIteration:
                        break
                    except Exception as error:  # as in _open
                        lost = _leave_out_damaged(reader, wanted, last)
                        if lost is None:
                            self._refuse(f"{part}: ends after {count} images: {one_line(error)}")
                            break
                        self._refuse(
                            f"{part}: {lost} images lie in damaged chunks and are lost: {one_line(error)}"
                        )
                        messages, passed = reader.messages(wanted, start=last), 0
                        continue
                    # Begun again, it first gives the messages of the last stamp once more.
                    if stamp == last and passed < of_last:
                        passed += 1
                        continue
                    of_last = passed = of_last + 1 if stamp == last else 1
                    last = stamp
                    count += 1
                    yield stamp, data


def _leave_out_damaged(reader: Any, wanted: list[Any], since: int | None) -> int | None:
    """Take the damaged chunks from the index of an MCAP reader, which cannot pass over one by itself.

    Args:
        since: stamp of the last message that was read; chunks that end before it have been.

    Returns:
        How many messages of ``wanted`` lie in them; None where there are no chunks, or all are whole.
    """
    lost, found = 0, False
    for storage in getattr(reader.storage, "storages", [reader.storage]):
        chunks = getattr(storage, "chunks", [])
        whole = []
        for chunk in chunks:
            storage.chunks = [chunk]
            try:
                if since is None or chunk.message_end_time >= since:
                    next(storage.messages(storage.connections), None)
                whole.append(chunk)
            except Exception:
                found = True
                played = {(connection.topic, connection.msgtype) for connection in wanted}
                ids = [c.id for c in storage.connections if (c.topic, c.msgtype) in played]
                lost += sum(chunk.channel_count.get(each, 0) for each in ids)
        if chunks:
            storage.chunks = whole
    return lost if found else None


def _remedy(path: Path, error: Exception) -> str:
    """What can be done about a recording that cannot be opened."""
    text = str(error)
    if "rofile" in text and "ros2" in text:
        return "it was not recorded by ROS 2; one of ROS 1 is converted by 'rosbags-convert --src FILE --dst OUT'"
    files = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES) if path.is_dir() else []
    if files and re.search("metadata|storage", text, re.IGNORECASE):
        return f"where only metadata.yaml is damaged, name the file itself: {files[0]}"
    return "'mcap recover' or 'ros2 bag reindex' mends one that was cut short"


def _shows_colours(reader: Any, topic: str, message_type: str) -> bool:
    """Whether the first image of a topic is one of colours or grey: depth cameras record measurements as images."""
    from rosbags.typesys import Stores, get_typestore

    wanted = [c for c in reader.connections if (c.topic, _message_type(c)) == (topic, message_type)]
    try:
        _, _, data = next(reader.messages(wanted))
        message: Any = get_typestore(Stores.ROS2_HUMBLE).deserialize_cdr(_uncompressed(data), message_type)
    except Exception:  # nothing there, or nothing that can be read: what is played will say so
        return False
    stored = message.format.partition(";")[0] if hasattr(message, "format") else message.encoding
    return not HOLDS_NO_COLOURS.fullmatch(stored.strip())


def _message_type(connection: Any) -> str | None:
    """The type of a connection's messages where they are images; older recorders wrote it without ``/msg``."""
    package, _, name = connection.msgtype.rpartition("/")
    known = package in ("sensor_msgs/msg", "sensor_msgs") and name in ("Image", "CompressedImage")
    return f"sensor_msgs/msg/{name}" if known else None


def _uncompressed(data: bytes | memoryview) -> bytes | memoryview:
    """Undo the compression of a single message. No CDR message begins with the magic number of zstd."""
    if data[:4] != _ZSTD_MAGIC:
        return data
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd  # a dependency of rosbags
    decompressor = zstd.ZstdDecompressor()
    message = decompressor.decompress(data, max_length=_MAX_MESSAGE)
    if not decompressor.eof:
        raise ValueError(f"is cut short, or unpacks to more than {_MAX_MESSAGE} bytes")
    return message


def _image_of(message: Any) -> RawImage | CompressedImage:
    if hasattr(message, "format"):
        return CompressedImage(message.format, message.data)
    return RawImage(
        message.height, message.width, message.encoding, message.is_bigendian, message.step, message.data
    )
