"""The topics ``image_annotated``: pictures with what was found drawn on them, for who looks.

They are made only while somebody subscribes them, in a thread of their own. The inference thread hands over references
and goes on; of each camera the newest answer waits, as its frame did.
"""

from __future__ import annotations

import array
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from bnn_perception.errors import one_line
from bnn_perception.frames.annotate import Mark, annotate
from bnn_perception.ros.pipeline import Answer
from bnn_perception.ros.publishing import publish
from bnn_perception.ros.worker import Worker

#: Seconds that the thread may be busy with one thing: a picture takes milliseconds to draw.
PATIENCE = 10.0


class AnnotatedImages:
    """Draws on copies of frames and publishes them.

    Args:
        node: that publishes.
        warn: called once with a line where pictures cannot be drawn.
        unexpected: called with a line about an exception that nobody foresaw.
    """

    def __init__(self, node: Node, warn: Callable[[str], None], unexpected: Callable[[str], None]) -> None:
        self._node = node
        self._warn = warn
        self._has_warned = False
        self._publishers: list[Any] = []
        # Held while a publisher is used or destroyed, and never while a picture is drawn.
        self._topics = threading.Lock()
        self._condition = threading.Condition()
        self._waiting: dict[int, tuple[Answer, float]] = {}
        self._closed = False
        self.worker = Worker("drawing", self._step, unexpected, PATIENCE)

    # Executor thread.

    def open(self, topics: Sequence[str]) -> None:
        """Announce a topic for each camera, and have the thread run from the first time on.

        Args:
            topics: names of the topics, in the order of the cameras.
        """
        # One picture is enough for who is slower than the camera.
        profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        self._publishers = [self._node.create_publisher(Image, topic, profile) for topic in topics]
        if not self.worker.has_started:
            self.worker.start()

    def has_audience(self) -> bool:
        """Whether anybody subscribes a picture."""
        return any(publisher.get_subscription_count() for publisher in self._publishers)

    def close(self) -> None:
        """Take the topics off the graph and forget what waits."""
        with self._condition:
            self._waiting.clear()
        with self._topics:
            publishers, self._publishers = self._publishers, []
            for publisher in publishers:
                self._node.destroy_publisher(publisher)

    def stop(self, patience: float) -> bool:
        """End the thread; returns whether it has ended within so many seconds, or was never started."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        return self.worker.join(patience)

    # Inference thread.

    def put(self, answer: Answer, latency: float) -> None:
        """Have an answer drawn where somebody looks at its camera.

        Args:
            answer: whose frame is left as it is.
            latency: to be shown, milliseconds.
        """
        camera = answer.arrival.camera
        if not self._publishers[camera].get_subscription_count():
            return
        with self._condition:
            self._waiting[camera] = answer, latency
            self._condition.notify()

    # The thread itself.

    def _step(self) -> bool:
        with self._condition:
            while not (self._closed or self._waiting):
                self._condition.wait()
            if self._closed:
                return False
            camera = next(iter(self._waiting))  # that which has waited longest
            answer, latency = self._waiting.pop(camera)
        self.worker.attempt("drawing a picture", self._draw, camera, answer, latency)
        return True

    def _draw(self, camera: int, answer: Answer, latency: float) -> None:
        try:
            import cv2  # noqa: F401 - what annotate() draws with
        except Exception as error:  # one built for another NumPy raises whatever it likes
            if not self._has_warned:
                self._has_warned = True
                self._warn(
                    f"image_annotated stays empty: it needs OpenCV, which cannot be imported ({one_line(error)}); "
                    "sudo apt install python3-opencv"
                )
            return
        message = picture(answer, latency)
        with self._topics:
            if self._publishers:  # otherwise they have been closed meanwhile
                publish(self._node, self._publishers[camera], message)


def picture(answer: Answer, latency: float) -> Image:
    """The frame of an answer as an rgb8 image, with its labels, regions and latency drawn on it."""
    marks = [
        Mark(region, [(name, score) for _, name, score in predictions])
        for region, predictions in zip(answer.regions, answer.predictions)
        if region is not None
    ]
    backend = answer.engine.backend
    note = f"{latency:.1f} ms  {answer.engine.spec.model.name}  {backend.name}"
    pixels = annotate(answer.frame, marks, note)
    height, width, channels = pixels.shape
    data = array.array("B")
    data.frombytes(pixels.data)
    return Image(
        header=answer.arrival.message.header,
        height=height,
        width=width,
        encoding="rgb8",
        step=width * channels,
        data=data,
    )
