"""Where camera frames come from: a folder, a video, a webcam, a recording or a rendered scene.

``open_source(uri)`` picks the kind by the form of ``uri``; :mod:`bnn_perception.frames.source` says what all have in
common.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bnn_perception.frames import bags
from bnn_perception.frames.boxes import Box
from bnn_perception.frames.images import SUFFIXES, ImageError, find_images, read_image
from bnn_perception.frames.recordings import Recording
from bnn_perception.frames.source import FOLDER_RATE, RawImage, Source, SourceError, SourceFrame

#: Extensions of the files that are videos. FFmpeg plays far more, text files among them, as characters on a screen.
VIDEOS = {
    ".3gp", ".avi", ".flv", ".h264", ".h265", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
}  # fmt: skip

#: Frames a second of the rendered scene, and of a video that does not state its rate.
DEFAULT_RATE = 30.0

_logger = logging.getLogger(__name__)


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
        # A file that is no video is refused at once, not when the first frame is asked for.
        self._open().release()

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
        # Most containers state duration times rate, which is a few frames off; a tenth is more than that.
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


class RenderedScene(Source):
    """The drive past road signs of :class:`bnn_perception.scenes.drive.Scene`, 30 pictures a second, without an end."""

    knows_boxes = True

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
            yield SourceFrame(
                f"{self.uri}#{index}",
                stamp,
                RawImage.of(pixels, "rgb8"),
                truth=ROAD_SIGNS[class_id],
                boxes=(Box(*scene.sign_box),),
            )


def holds_video(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a video or a recording, in a file or a folder, and not of images."""
    path = Path(path)
    return bags.is_recording(path) or (path.suffix.lower() in VIDEOS and not path.is_dir())


def open_source(
    uri: str,
    *,
    topic: str | None = None,
    truth: str | None = None,
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
        topic: which topic of a recording is played; None takes the one with the most images.
        truth: which topic of a recording has the right labels; None takes the only one that is called truth.
        decode: whether compressed images of a recording are decoded.
        loop: whether the source starts again at its end.
        width, height: size of the pictures of a scene.
        warn: called with one line for every frame that is refused.

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
        if bags.is_recording(path):
            return Recording(uri, path, topic=topic, truth=truth, decode=decode, loop=loop, warn=warn)
        if path.is_dir():
            return ImageFolder(uri, path, loop=loop, warn=warn)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return ImageFolder(uri, path, loop=loop, warn=warn)
    if suffix in VIDEOS:
        return Video(uri, path, loop=loop, warn=warn)
    raise SourceError(
        f"{path}: the ending '{suffix}' is not known for an image, a video or a recording; "
        "convert it to .png, .mp4 or .mcap"
    )
