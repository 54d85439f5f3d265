"""Where camera frames come from: a folder, a video, a webcam, a recording or a rendered scene.

``open_source(uri)`` picks the kind by the form of ``uri``. Every source is an iterator factory: each ``for`` over it
starts anew, and with ``loop`` never ends. A frame that cannot be read costs that frame alone: it is counted in
``Source.refused`` and reported; what makes the whole source useless raises :class:`SourceError`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error, one_line
from bnn_perception.frames.images import SUFFIXES, ImageError, find_images, read_image

#: Endings of recordings.
RECORDINGS = {".mcap", ".db3"}

#: Endings of videos. FFmpeg plays far more, text files among them, as characters on a screen.
VIDEOS = {
    ".3gp", ".avi", ".flv", ".h264", ".h265", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
}  # fmt: skip

#: Frames a second where the source has no rate of its own: a folder of images.
FOLDER_RATE = 10.0

#: Frames a second of the rendered scene, and of a video that does not state its rate.
DEFAULT_RATE = 30.0

# A 100-megapixel rgb8 image. A message that unpacks to more is broken, or meant to exhaust the memory.
_MAX_MESSAGE = 300_000_000

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_logger = logging.getLogger(__name__)


class SourceError(Error):
    """A source that cannot be opened or goes on no longer; one line that names it and the remedy."""


@dataclass(frozen=True)
class RawImage:
    """Pixels, with the fields of sensor_msgs/Image under their names there.

    Attributes:
        height, width: in pixels.
        encoding: as in sensor_msgs/image_encodings.
        is_bigendian: 0 or 1.
        step: bytes from one row to the next.
        data: (n,) uint8, contiguous. From a recording it is what was recorded, consistent with the rest or not.
    """

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], encoding: str) -> RawImage:
        """The image of ``pixels`` (height, width, channels), without a copy where they are contiguous."""
        height, width, channels = pixels.shape
        return cls(height, width, encoding, 0, width * channels, np.ascontiguousarray(pixels).reshape(-1))


@dataclass(frozen=True)
class CompressedImage:
    """An encoded image, with the fields of sensor_msgs/CompressedImage.

    Attributes:
        format: such as "jpeg" or "rgb8; jpeg compressed bgr8".
        data: (n,) uint8, the file.
    """

    format: str
    data: NDArray[np.uint8]

    def decode(self) -> RawImage:
        """The pixels as bgr8.

        Raises:
            ImageError: where they cannot be decoded.
        """
        import cv2

        if self.data.size == 0:
            raise ImageError(f"the compressed image of format '{self.format}' is empty")
        try:
            pixels = cv2.imdecode(self.data, cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise ImageError(f"cannot be decoded: {str(error).strip().splitlines()[-1]}") from None
        if pixels is None:
            raise ImageError(
                f"the {self.data.size} bytes of format '{self.format}' are not an image that can be decoded"
            )
        return RawImage.of(np.asarray(pixels, np.uint8), "bgr8")


@dataclass(frozen=True)
class SourceFrame:
    """One frame.

    Attributes:
        name: of the frame, for messages: a file, or a place in a video or recording.
        stamp: when it was taken, in nanoseconds on the clock of the source; rises through a source, loops included.
        image: raw or compressed.
        truth: the label that is known to be right, None where nothing is known.
        frame_id: the coordinate frame as recorded, "" where there is none.
    """

    name: str
    stamp: int
    image: RawImage | CompressedImage
    truth: str | None = None
    frame_id: str = ""


class Source:
    """Frames from one place.

    Attributes:
        uri: what was opened.
        loop: start again at the end.
        live: frames come at a pace of their own, and reading one waits for it.
        compressed: frames are :class:`CompressedImage`, otherwise :class:`RawImage`.
        refused: number of frames so far that could not be read.
    """

    live = False
    compressed = False

    def __init__(self, uri: str, *, loop: bool, warn: Callable[[str], None]) -> None:
        self.uri = uri
        self.loop = loop
        self.refused = 0
        self._warn = warn

    def __iter__(self) -> Iterator[SourceFrame]:
        """Frames from the first on.

        Raises:
            SourceError: where not one frame can be read, or a webcam falls silent.
        """
        shift = 0  # length of the passes before
        while True:
            first, last, step = None, 0, round(1e9 / FOLDER_RATE)
            for frame in self._one_pass():
                if first is None:
                    first = frame.stamp
                else:
                    step = frame.stamp - last
                last = frame.stamp
                yield replace(frame, stamp=last + shift)
            if first is None:
                raise SourceError(
                    f"{self.uri}: not one frame could be read; the warnings before name the reasons"
                )
            if not self.loop:
                return
            shift += last - first + step

    def _one_pass(self) -> Iterator[SourceFrame]:
        raise NotImplementedError

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self._warn(reason)


class ImageFolder(Source):
    """The image files at or below a folder, sorted by path, or one image file; 10 a second.

    Where the folder holds nothing but two or more folders with images, those are taken for classes: the truth of a
    frame is the name of its folder.
    """

    def __init__(self, uri: str, path: Path, *, loop: bool, warn: Callable[[str], None]) -> None:
        super().__init__(uri, loop=loop, warn=warn)
        try:
            self._files = find_images(path)
        except ImageError as error:
            raise SourceError(str(error)) from None
        inside = [file.relative_to(path).parts for file in self._files] if path.is_dir() else []
        has_classes = all(len(parts) > 1 for parts in inside) and len({parts[0] for parts in inside}) > 1
        self._truths = [parts[0] if has_classes else None for parts in inside] or [None]

    def _one_pass(self) -> Iterator[SourceFrame]:
        for index, (file, truth) in enumerate(zip(self._files, self._truths)):
            try:
                image = RawImage.of(read_image(file), "rgb8")
            except ImageError as error:
                self._refuse(str(error))
                continue
            yield SourceFrame(str(file), round(index * 1e9 / FOLDER_RATE), image, truth)


class Video(Source):
    """The frames of a video file, at its own rate."""

    def __init__(self, uri: str, path: Path, *, loop: bool, warn: Callable[[str], None]) -> None:
        super().__init__(uri, loop=loop, warn=warn)
        self._path = path
        self._open().release()  # a file that is no video is found out before the first frame is asked for

    def _open(self) -> Any:
        import cv2

        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            raise SourceError(
                f"{self._path}: is not a video that OpenCV can open; convert it, for example by "
                f"'ffmpeg -i {self._path.name} -c:v libx264 out.mp4'"
            )
        return capture

    def _one_pass(self) -> Iterator[SourceFrame]:
        import cv2

        capture = self._open()
        try:
            rate = capture.get(cv2.CAP_PROP_FPS)
            if not 0.1 <= rate <= 1000:  # 0 or NaN where the container does not say
                rate = DEFAULT_RATE
            expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            index = 0
            while True:
                ok, pixels = capture.read()
                if not ok:
                    break
                image = RawImage.of(np.asarray(pixels, np.uint8), "bgr8")
                yield SourceFrame(f"{self._path}#{index}", round(index * 1e9 / rate), image)
                index += 1
        finally:
            capture.release()
        # The count of most containers is duration times rate, a few frames off; a tenth is more than that.
        if index < 0.9 * expected:
            self._refuse(
                f"{self._path}: ends after frame {index} of {expected:.0f}: the file is damaged or cut short"
            )


class Webcam(Source):
    """A camera of this computer, at its own pace."""

    live = True

    def __init__(self, uri: str, index: int, *, warn: Callable[[str], None]) -> None:
        super().__init__(uri, loop=False, warn=warn)
        import cv2

        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            raise SourceError(
                f"{uri}: camera {index} cannot be opened; look whether /dev/video{index} exists, "
                "no other program uses it and you are in the group 'video'"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not one that has waited

    def _one_pass(self) -> Iterator[SourceFrame]:
        index = 0
        while True:
            ok, pixels = self._capture.read()
            if not ok:
                raise SourceError(
                    f"{self.uri}: the camera stopped delivering after {index} frames; is it plugged in?"
                )
            yield SourceFrame(
                f"{self.uri}#{index}", time.monotonic_ns(), RawImage.of(np.asarray(pixels, np.uint8), "bgr8")
            )
            index += 1


class Recording(Source):
    """Images of one topic of an MCAP file, a SQLite file or a rosbag2 folder, as they were recorded.

    Without a topic it is the one with the most images. Stamps are those of the recorder. Messages that were
    compressed one by one (zstd) are read whether or not the metadata says so. ``decode`` turns compressed images
    into raw ones.
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
        with contextlib.closing(self._open()) as reader:
            self._topic, self._type = self._choose(reader.connections, topic)
        self.compressed = self._type.endswith("CompressedImage") and not decode

    def _open(self) -> Any:
        try:
            from rosbags.rosbag2 import Reader
        except ModuleNotFoundError:
            raise SourceError(
                f"{self._path}: reading recordings takes rosbags: pip install 'rosbags>=0.11.7'"
            ) from None
        try:
            reader = Reader(self._path)
            reader.open()
        except Exception as error:  # a reader of arbitrary bytes raises whatever they provoke
            raise SourceError(
                f"{self._path}: cannot be opened as a recording: {_reason(error)}; "
                "'mcap recover' or 'ros2 bag reindex' mends one that was cut short"
            ) from None
        return reader

    def _choose(self, connections: list[Any], topic: str | None) -> tuple[str, str]:
        """The topic to play and the type of its messages."""
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
        chosen = max((key for key in counts if not topic or key[0] == topic), key=lambda key: counts[key])
        if not topic and len(topics) > 1:
            others = ", ".join(name for name in topics if name != chosen[0])
            self._warn(f"{self._path}: plays {chosen[0]}; name a topic for another: {others}")
        return chosen

    def _one_pass(self) -> Iterator[SourceFrame]:
        from rosbags.typesys import Stores, get_typestore

        # Image and CompressedImage have been the same since the first ROS 2.
        types = get_typestore(Stores.ROS2_HUMBLE)
        with contextlib.closing(self._open()) as reader:
            wanted = [
                c for c in reader.connections if (c.topic, _message_type(c)) == (self._topic, self._type)
            ]
            messages = reader.messages(wanted)
            index = -1
            while True:
                try:
                    _, stamp, data = next(messages)
                except StopIteration:
                    return
                except Exception as error:  # as in _open
                    self._refuse(f"{self._path}: ends after {index + 1} images: {_reason(error)}")
                    return
                index += 1
                name = f"{self._path}:{self._topic}#{index}"
                try:
                    message: Any = types.deserialize_cdr(_uncompressed(data), self._type)
                    image = _image_of(message)
                    if self._decode and isinstance(image, CompressedImage):
                        image = image.decode()
                    frame_id = message.header.frame_id
                except Exception as error:  # as in _open
                    self._refuse(f"{name}: {_reason(error)}")
                    continue
                yield SourceFrame(name, stamp, image, frame_id=frame_id)


class RenderedScene(Source):
    """The drive past road signs of :class:`bnn_perception.scenes.drive.Scene`, 30 pictures a second, without an end."""

    def __init__(self, uri: str, seed: int, *, width: int, height: int, warn: Callable[[str], None]) -> None:
        super().__init__(uri, loop=False, warn=warn)
        self._arguments = (seed, width, height)

    def _one_pass(self) -> Iterator[SourceFrame]:
        from bnn_perception.scenes.drive import Scene
        from bnn_perception.scenes.signs import ROAD_SIGNS

        scene = Scene(*self._arguments)
        for index in itertools.count():
            pixels, class_id = scene.next()
            stamp = round(index * 1e9 / DEFAULT_RATE)
            yield SourceFrame(f"{self.uri}#{index}", stamp, RawImage.of(pixels, "rgb8"), ROAD_SIGNS[class_id])


def open_source(
    uri: str,
    *,
    topic: str | None = None,
    decode: bool = False,
    loop: bool = False,
    width: int = 640,
    height: int = 480,
    warn: Callable[[str], None] = _logger.warning,
) -> Source:
    """Open a source by the form of its ``uri``.

    Args:
        uri: ``scene`` or ``scene:SEED``; ``webcam``, ``webcam:INDEX`` or ``/dev/videoINDEX``; or the path of a folder
            of images, an image, a video, an MCAP or SQLite file, or a rosbag2 folder.
        topic: of a recording with several.
        decode: yield raw images where the recording holds compressed ones.
        loop: start again at the end.
        width, height: of the pictures of a scene.
        warn: is told of every frame that is refused, in one line.

    Raises:
        SourceError: naming the source and the remedy.
    """
    if match := re.fullmatch(r"scene(?::(.*))?", uri):
        seed = match[1] if match[1] is not None else "0"
        if not (seed.isascii() and seed.isdigit()):
            raise SourceError(f"{uri}: the seed '{seed}' is not a whole number from 0 on")
        return RenderedScene(uri, int(seed), width=width, height=height, warn=warn)
    if match := re.fullmatch(r"webcam(?::(.*))?|/dev/video(\d+)", uri):
        index = next((group for group in match.groups() if group is not None), "0")
        if not (index.isascii() and index.isdigit()):
            raise SourceError(f"{uri}: the index '{index}' of the camera is not a whole number from 0 on")
        return Webcam(uri, int(index), warn=warn)
    path = Path(uri).expanduser()
    try:
        if not uri or not path.exists():
            raise SourceError(
                f"'{uri}': no such file or folder; a source is scene, scene:SEED, webcam:INDEX, or the path of a "
                "folder of images, a video or a recording"
            )
        if path.is_dir():
            if (path / "metadata.yaml").exists():
                return Recording(uri, path, topic=topic, decode=decode, loop=loop, warn=warn)
            bags = sorted(entry for entry in path.iterdir() if entry.suffix in RECORDINGS)
            if bags:
                raise SourceError(
                    f"{path}: has recordings but no metadata.yaml; name the file itself, such as {bags[0]}, "
                    "or run 'ros2 bag reindex'"
                )
            return ImageFolder(uri, path, loop=loop, warn=warn)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None
    suffix = path.suffix.lower()
    if suffix in RECORDINGS:
        return Recording(uri, path, topic=topic, decode=decode, loop=loop, warn=warn)
    if suffix == ".bag":
        raise SourceError(
            f"{path}: is a recording of ROS 1; convert it: rosbags-convert --src {path.name} --dst out"
        )
    if suffix in SUFFIXES:
        return ImageFolder(uri, path, loop=loop, warn=warn)
    if suffix in VIDEOS:
        return Video(uri, path, loop=loop, warn=warn)
    raise SourceError(
        f"{path}: the ending '{suffix}' is not known for an image, a video or a recording; "
        "convert it to .png, .mp4 or .mcap"
    )


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


def _reason(error: Exception) -> str:
    return one_line(error)
