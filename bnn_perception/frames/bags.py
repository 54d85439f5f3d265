"""Recordings of ROS 2, read by rosbags as far as they are whole: rosbag2 folders, MCAP files, SQLite files."""

from __future__ import annotations

import contextlib
import re
import sys
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bnn_perception.errors import one_line
from bnn_perception.frames.source import SourceError

#: Extensions of the files that are recordings.
SUFFIXES = {".mcap", ".db3"}

#: Names of recordings that are compressed as a whole, which only a folder's metadata tells how to read.
_PACKED = re.compile(r".*\.(mcap|db3)\.zstd?")

# A 100-megapixel rgb8 image. A message that unpacks to more is broken, or meant to exhaust the memory.
_MAX_MESSAGE = 300_000_000

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Topic(NamedTuple):
    """Messages of one name and type in a recording.

    Attributes:
        name: such as ``/camera/image_raw``.
        type: of the messages, such as ``sensor_msgs/msg/Image``; older recorders wrote it without ``/msg``.
        size: how many messages the recording states.
    """

    name: str
    type: str
    size: int


class Message(NamedTuple):
    """One message of a recording.

    Attributes:
        topic: name and type.
        stamp: when it was recorded, in nanoseconds.
        data: its CDR bytes, or those compressed; :func:`uncompressed` tells.
    """

    topic: Topic
    stamp: int
    data: bytes | memoryview


class Bag:
    """A recording: its topics, and their messages in the order of their stamps.

    Its files are open until it is closed or collected. A damaged chunk costs its messages, a file of a folder that
    cannot be opened its own.

    Attributes:
        path: of the folder or file.
        topics: all of them, those without messages too, sorted.
        lost: messages in damaged chunks so far, of the topics that were read.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None]) -> None:
        """Open a recording.

        Args:
            path: a rosbag2 folder, an MCAP or a SQLite file.
            warn: called with one line for every file of a folder that cannot be opened.

        Raises:
            SourceError: where it is none, or nothing of it can be opened.
        """
        _check_form(path)
        self.path = path
        self.lost = 0
        #: What is played one after the other, opened: the recording, or those of its files that can be opened.
        self._parts = _open_parts(path, warn)
        self._closing = weakref.finalize(self, _close, [reader for _, reader in self._parts])
        sizes: dict[tuple[str, str], int] = {}
        for _, reader in self._parts:
            for connection in reader.connections:
                key = _key(connection)
                sizes[key] = sizes.get(key, 0) + connection.msgcount
        self.topics = tuple(Topic(*key, size) for key, size in sorted(sizes.items()))

    def close(self) -> None:
        """Close the files. Calling it again does nothing."""
        self._closing()

    def first(self, topic: Topic) -> bytes | memoryview | None:
        """The data of the first message of a topic, None where there is none that can be read."""
        for _, reader in self._parts:
            with contextlib.suppress(Exception):  # as in _open
                if wanted := _connections(reader, [topic]):
                    _, _, data = next(reader.messages(wanted))
                    return data
        return None

    def messages(self, topics: Collection[Topic], refuse: Callable[[str], None]) -> Iterator[Message]:
        """The messages of some topics, as far as they can be read.

        Args:
            topics: of :attr:`topics`.
            refuse: called with one line where messages are lost.
        """
        for part, reader in self._parts:
            with _whole_index(reader):
                yield from self._readable(part, reader, topics, refuse)

    def _readable(
        self, part: Path, reader: Any, topics: Collection[Topic], refuse: Callable[[str], None]
    ) -> Iterator[Message]:
        """The messages of one part. Where a chunk is damaged, reading begins again without it, at the last stamp."""
        by_key = {(topic.name, topic.type): topic for topic in topics}
        wanted = _connections(reader, topics)
        if not wanted:  # none would be taken for all
            return
        count = 0
        last, of_last = None, 0  # stamp of the last message, and how many of that stamp have been given
        while True:
            try:
                for connection, stamp, data in _since(reader, wanted, last, of_last):
                    of_last = of_last + 1 if stamp == last else 1
                    last = stamp
                    count += 1
                    yield Message(by_key[_key(connection)], stamp, data)
                return
            except Exception as error:  # as in _open
                lost = _leave_out_damaged(reader, wanted, last)
                if lost is None:
                    refuse(f"{part}: ends after {count} messages: {one_line(error)}")
                    return
                self.lost += lost
                refuse(f"{part}: {lost} messages lie in damaged chunks and are lost: {one_line(error)}")


def is_recording(path: Path) -> bool:
    """Whether a path is that of a recording, by its name and those in it; one that cannot be opened as it is, too."""
    if path.is_dir():
        return (path / "metadata.yaml").exists() or bool(files_in(path) or _packed_in(path))
    return path.suffix.lower() in SUFFIXES | {".zst", ".zstd", ".bag"}


def files_in(path: Path) -> list[Path]:
    """The recordings in a folder, sorted; none in what is no folder."""
    return sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES) if path.is_dir() else []


def _packed_in(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if _PACKED.fullmatch(entry.name))


def _check_form(path: Path) -> None:
    """Refuse, with the remedy, what is no recording that can be opened as it is.

    Raises:
        SourceError: naming it.
    """
    try:
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
        is_folder = path.is_dir()
        if is_folder and not (path / "metadata.yaml").exists():
            if packed := _packed_in(path):
                raise SourceError(
                    f"{path}: has recordings that are compressed as a whole, and no metadata.yaml; "
                    f"unpack one, such as 'unzstd {packed[0].name}', and name the file itself"
                )
            if files := files_in(path):
                raise SourceError(
                    f"{path}: has recordings but no metadata.yaml; name the file itself, such as {files[0]}, "
                    "or run 'ros2 bag reindex'"
                )
            raise SourceError(f"{path}: is no recording: it has no metadata.yaml and no .mcap or .db3 file")
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None
    suffix = path.suffix.lower()
    if suffix in (".zst", ".zstd"):
        raise SourceError(f"{path}: is compressed as a whole; unpack it: unzstd {path.name}")
    if suffix == ".bag":
        raise SourceError(
            f"{path}: is a recording of ROS 1; convert it: rosbags-convert --src {path.name} --dst out"
        )
    if not is_folder and suffix not in SUFFIXES:
        raise SourceError(f"{path}: is no recording; one is a rosbag2 folder, a .mcap or a .db3 file")


def uncompressed(data: bytes | memoryview) -> bytes | memoryview:
    """Undo the compression of a single message, which no metadata states; other messages are returned as they are.

    Raises:
        Exception: where it cannot be undone, or would take more memory than a message may.
    """
    if data[:4] != _ZSTD_MAGIC:  # no CDR message begins with it
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


def _open_parts(path: Path, warn: Callable[[str], None]) -> list[tuple[Path, Any]]:
    """The recording, opened; where that fails, those of its files that can be opened by themselves."""
    try:
        return [(path, _open(path))]
    except SourceError as error:
        files = files_in(path)
        if len(files) < 2 or re.search("metadata|storage", str(error), re.IGNORECASE):
            raise
    parts, reasons = [], []
    for file in files:
        try:
            parts.append((file, _open(file)))
        except SourceError as error:
            reasons.append(str(error))
    if not parts:
        raise SourceError(reasons[0])
    for reason in reasons:
        warn(f"{reason}; the other files of {path} are played")
    return parts


def _open(path: Path) -> Any:
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


def _remedy(path: Path, error: Exception) -> str:
    """What can be done about a recording that cannot be opened."""
    text = str(error)
    if "rofile" in text and "ros2" in text:
        return "it was not recorded by ROS 2; one of ROS 1 is converted by 'rosbags-convert --src FILE --dst OUT'"
    files = files_in(path)
    if files and re.search("metadata|storage", text, re.IGNORECASE):
        return f"where only metadata.yaml is damaged, name the file itself: {files[0]}"
    return "'mcap recover' or 'ros2 bag reindex' mends one that was cut short"


def _close(readers: list[Any]) -> None:
    for reader in readers:
        reader.close()


def _key(connection: Any) -> tuple[str, str]:
    """Topic and type of a connection."""
    package, *where, name = connection.msgtype.split("/")
    return connection.topic, "/".join([package, *(where or ["msg"]), name])


def _connections(reader: Any, topics: Collection[Topic]) -> list[Any]:
    keys = {(topic.name, topic.type) for topic in topics}
    return [connection for connection in reader.connections if _key(connection) in keys]


def _since(reader: Any, wanted: list[Any], stamp: int | None, given: int) -> Iterator[tuple[Any, int, Any]]:
    """Connections, stamps and data from a stamp on, but for the first ``given`` of just that stamp."""
    for connection, each, data in reader.messages(wanted, start=stamp):
        if each == stamp and given > 0:
            given -= 1
        else:
            yield connection, each, data


@contextlib.contextmanager
def _whole_index(reader: Any) -> Iterator[None]:
    """Put back afterwards what :func:`_leave_out_damaged` takes away: it is counted in every pass."""
    chunks = [(storage, storage.chunks) for storage in _storages(reader) if hasattr(storage, "chunks")]
    try:
        yield
    finally:
        for storage, index in chunks:
            storage.chunks = index


def _storages(reader: Any) -> list[Any]:
    """What reads the files of a recording."""
    return list(getattr(reader.storage, "storages", [reader.storage]))


def _leave_out_damaged(reader: Any, wanted: list[Any], since: int | None) -> int | None:
    """Take the damaged chunks from the index of an MCAP reader, which cannot pass over one by itself.

    Args:
        since: stamp of the last message that was read; chunks that end before it have been.

    Returns:
        How many messages of ``wanted`` lie in them; None where there are no chunks, or all are whole.
    """
    keys = {_key(connection) for connection in wanted}
    lost, found = 0, False
    for storage in _storages(reader):
        chunks = getattr(storage, "chunks", [])
        ids = [connection.id for connection in storage.connections if _key(connection) in keys]
        whole = []
        for chunk in chunks:
            storage.chunks = [chunk]
            try:
                if since is None or chunk.message_end_time >= since:
                    next(storage.messages(storage.connections), None)
                whole.append(chunk)
            except Exception:
                found = True
                lost += sum(chunk.channel_count.get(each, 0) for each in ids)
        if chunks:
            storage.chunks = whole
    return lost if found else None
