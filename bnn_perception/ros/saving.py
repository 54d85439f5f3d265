"""The saving thread: decodes the images that the collect node has taken, and adds them to its folder.

A disk may take a second over a file. So callbacks only hand over messages, and what comes while too many wait is
dropped and counted.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bnn_perception.collection import Collection, Outcome, stamp_name
from bnn_perception.ros.collect_parameters import CollectSettings
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.pipeline import unpack
from bnn_perception.ros.worker import Worker

#: Messages that wait for the disk at most.
MAX_WAITING = 8

#: Seconds that the thread may be busy with one message.
PATIENCE = 30.0


@dataclass(frozen=True)
class Shot:
    """A message whose image, or the boxes in it, are to be saved.

    Attributes:
        camera: its place in ``image_topics``.
        message: sensor_msgs Image or CompressedImage.
        detections: vision_msgs Detection2DArray, whose boxes are saved; None where the region is.
        stamp: of the image, in nanoseconds.
        settings: of the moment in which it came, the label among them.
    """

    camera: int
    message: Any
    detections: Any
    stamp: int
    settings: CollectSettings


class Sink(Protocol):
    """What the saving thread tells the node, all of it in the saving thread."""

    def refused(self, camera: int, error: RefusedFrame) -> None:
        """An image cannot be used."""

    def failed(self, error: OSError) -> None:
        """An image could not be written."""

    def unexpected(self, line: str) -> None:
        """An exception that nobody foresaw has cost what the line says."""


class Saver:
    """The saving thread, from :meth:`start` to :meth:`stop`, and what it shares with the others.

    Args:
        collection: that images are added to; used by the thread alone, but for its counts.
        sink: the node.

    Attributes:
        became: what became of images since the start.
        refused: messages that could not be used, by reason.
        failed: images that could not be written.
        unusable: boxes that hold no pixel of their image.
        dropped: messages that came while :data:`MAX_WAITING` others waited.
    """

    def __init__(self, collection: Collection, sink: Sink) -> None:
        self.collection = collection
        self.became: Counter[Outcome] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed = 0
        self.unusable = 0
        self.dropped = 0
        self._sink = sink
        self._condition = threading.Condition()
        self._waiting: deque[Shot] = deque()
        self._closed = False
        self.worker = Worker("saving", self._step, sink.unexpected, PATIENCE)

    def start(self) -> None:
        """Start the thread. To be called once."""
        self.worker.start()

    def put(self, shot: Shot) -> None:
        """Hand over a message; never waits."""
        with self._condition:
            if len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                return
            self._waiting.append(shot)
            self._condition.notify()

    def stop(self, patience: float) -> bool:
        """Save what waits and end the thread; returns whether it has ended within so many seconds."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        return self.worker.join(patience)

    def _step(self) -> bool:
        with self._condition:
            while not self._waiting and not self._closed:
                self._condition.wait()
            if not self._waiting:
                return False
            shot = self._waiting.popleft()
        self.worker.attempt(f"saving an image of camera {shot.camera}", self._save, shot)
        return True

    def _save(self, shot: Shot) -> None:
        settings = shot.settings
        try:
            frame, regions = unpack(shot.message, shot.detections, settings)
        except RefusedFrame as error:
            self.refused[error.reason] += 1
            self._sink.refused(shot.camera, error)
            return
        name = stamp_name(shot.stamp)
        if len(settings.image_topics) > 1:
            name += f"-{shot.camera}"
        for number, region in enumerate(regions):
            if region is None:
                self.unusable += 1
                continue
            own = name if shot.detections is None else f"{name}-box{number}"
            try:
                outcome = self.collection.add(
                    settings.label, own, replace(frame, region=region), settings.limits
                )
            except OSError as error:
                self.failed += 1
                self._sink.failed(error)
                continue
            self.became[outcome] += 1
