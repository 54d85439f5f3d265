"""What ``replay`` makes of image messages before the model sees them, in threads of their own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from bnn_perception.cli.label_files import Origin
from bnn_perception.cli.recorded_boxes import RecordedBoxes, read_detections
from bnn_perception.errors import one_line
from bnn_perception.frames.bags import Message
from bnn_perception.frames.encoded import MAX_PIXELS
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.messages import RAW
from bnn_perception.frames.preprocess import prepare
from bnn_perception.frames.recordings import read_message
from bnn_perception.net.model import InputSpec
from bnn_perception.ros.boxes_msg import regions
from bnn_perception.ros.image_msg import RefusedFrame, Region, decode, view

#: Messages that are made ready ahead at most.
AHEAD = 16

#: Threads that decode at most; each holds an image or two.
MOST_DECODERS = 8


class Unpacked(NamedTuple):
    """A frame, or its boxes, brought to the model's input, and where it comes from.

    Attributes:
        origin: in the recording.
        parts: the frame, or what each box encloses; None for a box that has no part of the image.
        detections: the ``vision_msgs/msg/Detection2DArray`` of the boxes; None for a whole frame.
    """

    origin: Origin
    parts: list[Frame | None]
    detections: Any


class Refused(Exception):  # noqa: N818 - what it is, not an error of the program
    """A frame that gets no labels; the message is one line.

    Attributes:
        reason: in a word, for the summary.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unpacker:
    """Makes ready what is in an image message: an image may be large, and many wait. Called by several threads.

    Args:
        spec: the model's input.
        region: of whole images that is classified.
        boxes: for each topic of images, where boxes are.
        margin: by which boxes are enlarged.
    """

    def __init__(
        self, spec: InputSpec, region: Region, boxes: Mapping[str, RecordedBoxes], margin: float
    ) -> None:
        self._spec = spec
        self._region = region
        self._boxes = boxes
        self._margin = margin

    def __call__(self, message: Message) -> Unpacked:
        """The frame or its boxes.

        Raises:
            Refused: with the reason.
        """
        kind, name = message.topic.type, message.topic.name
        recorded = _read(read_message, kind, message.data)
        origin = Origin(name, message.stamp, recorded.stamp, recorded.frame_id)
        detections = None
        if self._boxes:
            data = self._boxes[name].at(recorded.stamp)
            if data is None:
                raise Refused("no boxes", "no boxes have its stamp, or one near it")
            detections = _read(read_detections, data)
        try:
            frame = (view if kind == RAW else decode)(recorded.image, MAX_PIXELS, self._region)
            if detections is None:
                return Unpacked(origin, [self._prepared(frame)], None)
            height, width, _ = frame.pixels.shape
            found = regions(detections, width, height, self._margin)
        except RefusedFrame as refusal:
            raise Refused(refusal.reason, str(refusal)) from None
        parts = [region and self._prepared(replace(frame, region=region)) for region in found]
        return Unpacked(origin, parts, detections)

    def _prepared(self, frame: Frame) -> Frame:
        return Frame(prepare(frame, self._spec), "rgb8" if self._spec.channels == 3 else "mono8")


def _read(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of a message, whose bytes may be any.

    Raises:
        Refused: whatever they provoke.
    """
    try:
        return function(*arguments)
    except Exception as error:
        raise Refused("undecodable", f"a message that cannot be read: {one_line(error)}") from None


def in_other_threads(
    function: Callable[[Message], Unpacked], messages: Iterable[Message]
) -> Iterator[tuple[str, Future[Unpacked]]]:
    """What a function makes of each message, in order, and its topic; at most :data:`AHEAD` are under way."""
    pool = ThreadPoolExecutor(min(MOST_DECODERS, len(os.sched_getaffinity(0))), "decode")
    try:
        waiting: deque[tuple[str, Future[Unpacked]]] = deque()
        for message in messages:
            waiting.append((message.topic.name, pool.submit(function, message)))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)
