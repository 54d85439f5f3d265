"""Labelled frames: of a recording that tells the truth, and of videos and recordings in a folder for each class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import CommandError
from bnn_perception.frames import bags
from bnn_perception.frames.dataset import LabelledImages, match_label, read_dataset, unknown_class
from bnn_perception.frames.encoded import MAX_PIXELS
from bnn_perception.frames.frame import ENCODINGS
from bnn_perception.frames.images import SUFFIXES, ImageError
from bnn_perception.frames.recordings import Recording
from bnn_perception.frames.source import Source, SourceError, SourceFrame
from bnn_perception.frames.sources import VIDEOS, holds_video, open_source
from bnn_perception.ros.image_msg import RefusedFrame, view


class Clip(NamedTuple):
    """Where frames come from.

    Attributes:
        source: of the frames, which reports those that it refuses to the list that :class:`LabelledFrames` is given.
        label: class of all of its frames; None where each has its own truth.
    """

    source: Source
    label: int | None


class LabelledFrames:
    """The frames of videos and recordings whose label is known, read one after the other.

    See :class:`~bnn_perception.frames.dataset.LabelledImages`. Frames without a truth are passed over.
    """

    def __init__(self, clips: Sequence[Clip], labels: Sequence[str], refused: list[str]) -> None:
        self.refused = refused
        self._clips = clips
        self._names = labels
        self._labels: list[int] = []

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self._labels, dtype=np.int64)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Index and pixels of every frame that can be read.

        Raises:
            ImageError: for a truth that is no label of the model, and where no frame has a truth.
        """
        self.refused.clear()
        self._labels.clear()
        for source, label in self._clips:
            try:
                for frame in source:
                    truth = self._label(frame) if label is None else label
                    if truth is not None and (pixels := self._pixels(frame)) is not None:
                        self._labels.append(truth)
                        yield len(self._labels) - 1, pixels
            except SourceError as error:
                self.refused.append(str(error))
        if not self._labels and not self.refused:
            raise ImageError(f"{self._clips[0].source.uri}: no truth has the stamp of a frame")

    def _label(self, frame: SourceFrame) -> int | None:
        """The class of a frame that tells its truth."""
        label = None if frame.truth is None else match_label(frame.truth, self._names)
        if frame.truth is not None and label is None:
            raise ImageError(f"{frame.name}: its truth '{frame.truth}' is no label of the model")
        return label

    def _pixels(self, frame: SourceFrame) -> NDArray[np.uint8] | None:
        """(height, width, 3) uint8 RGB; None where the frame is refused."""
        image: Any = frame.image  # its fields are those of the message
        try:
            seen = view(image, MAX_PIXELS)
        except RefusedFrame as refusal:
            self.refused.append(f"{frame.name}: {refusal}")
            return None
        return np.ascontiguousarray(seen.pixels[..., list(ENCODINGS[seen.encoding].rgb)])

    def read_some(self, indices: Collection[int]) -> dict[int, NDArray[np.uint8]]:
        """Index and pixels of some frames, in one pass over all."""
        return {index: pixels for index, pixels in self if index in indices}


def open_labelled(
    data: str, labels: Sequence[str], topic: str | None, truth: str | None, say: Callable[[str], None]
) -> LabelledImages:
    """Labelled images of whatever form: those of :func:`read_dataset`, a recording, or videos in class folders.

    Args:
        data: a path.
        labels: the model's, in order.
        topic: of the images of a recording; None takes the one with the most.
        truth: topic of ``vision_msgs/Classification`` with the right labels; None takes the one that is called truth.
        say: told with one line what is chosen, or cannot be opened.

    Raises:
        Error: naming the file or folder and what is wrong.
    """
    path = Path(data)
    refused: list[str] = []
    if bags.is_recording(path):
        source = open_source(data, topic=topic, truth=truth, decode=True, warn=refused.append)
        if isinstance(source, Recording) and source.truth_topic is None:
            raise CommandError(
                f"{path}: has not just one topic of vision_msgs/Classification that is called truth; --truth names "
                "another"
            )
        clips = [Clip(source, None)]
    elif holds_video(path):
        raise CommandError(
            f"{path}: a video has no labels; name a folder that has a folder of videos for each class"
        )
    else:
        files = videos_by_class(path, say)
        if not files:
            return read_dataset(data, labels)
        clips = [
            Clip(
                open_source(str(file), topic=topic, decode=True, warn=refused.append),
                label_of(path / name, labels),
            )
            for name, file in files
        ]
    for line in refused:
        say(line)
    return LabelledFrames(clips, labels, refused)


def videos_by_class(path: Path, say: Callable[[str], None]) -> list[tuple[str, Path]]:
    """The videos and recordings below the folders of a folder, each with its folder's name, sorted.

    None where there are images too, which are what a labelled set consists of.
    """
    if not path.is_dir():
        return []
    files = [
        file
        for file in sorted(path.glob("*/**/*"))
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    videos = [file for file in files if file.suffix.lower() in VIDEOS | bags.SUFFIXES]
    if videos and any(file.suffix.lower() in SUFFIXES for file in files):
        say(f"{path}: its videos are left out, {videos[0]} for one: it holds images")
        return []
    return [(file.relative_to(path).parts[0], file) for file in videos]


def label_of(folder: Path, labels: Sequence[str]) -> int:
    """The class that a folder is named after.

    Raises:
        ImageError: where it is none of the model's.
    """
    label = match_label(folder.name, labels)
    if label is None:
        raise unknown_class(folder, labels)
    return label
