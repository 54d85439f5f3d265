"""What a node subscribes: images, and a detector's boxes in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2DArray

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # where they are until ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from bnn_perception.frames.messages import stamp_of
from bnn_perception.ros.health import CameraHealth
from bnn_perception.ros.pairing import Pairing
from bnn_perception.ros.parameters import InputSettings
from bnn_perception.ros.silence import SUFFIX, why_silent

#: A stamp further from the clock than this (milliseconds) belongs to another time: a recording, or simulated time.
CLOCK_TOLERANCE = 60_000.0


#: Images, and boxes, that DDS keeps for this node where one waits for the other.
DEPTH_OF_PAIRS = 10


#: What a box takes in memory, about.
BYTES_OF_A_BOX = 4096


class Cameras:
    """Subscribes the topics of a node and hands over what comes, all in the executor's thread.

    Args:
        node: that subscribes.
        settings: gives the settings of the moment.
        take: given the number of a camera, its image, the boxes in it (None where there are none to wait for),
            time.perf_counter() at the entry of the callback, and the image's age in milliseconds (None where its
            stamp and the clock have nothing in common).
        skip: given the number of a camera of which an image came sooner than ``max_rate`` lets it.
        cameras: of the topics, in the order of ``image_topics``; what is noticed of each is written there.
    """

    def __init__(
        self,
        node: Node,
        settings: Callable[[], InputSettings],
        take: Callable[[int, Any, Detection2DArray | None, float, float | None], None],
        skip: Callable[[int], None],
        cameras: Sequence[CameraHealth],
    ) -> None:
        self._node = node
        self._settings = settings
        self._take = take
        self._skip = skip
        self._cameras = cameras
        self._images: list[Any] = []
        self._boxes: dict[int, Any] = {}
        self._pairings = {number: Pairing(camera.unpaired) for number, camera in enumerate(cameras)}
        self._due = [0.0] * len(cameras)

    @property
    def are_subscribed(self) -> bool:
        """Whether messages come."""
        return bool(self._images)

    def subscribe(self) -> None:
        """Let messages come."""
        settings = self._settings()
        now = time.monotonic()
        for number, camera in enumerate(self._cameras):
            camera.last_frame = camera.last_boxes = camera.last_pair = now
            self._images.append(self._subscribe_images(number, settings))
            if topic := settings.boxes_of(number):
                self._boxes[number] = self._node.create_subscription(
                    Detection2DArray,
                    topic,
                    partial(self._on_detections, number),
                    QoSProfile(depth=DEPTH_OF_PAIRS, reliability=ReliabilityPolicy.BEST_EFFORT),
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )

    def unsubscribe(self) -> None:
        """Let no more messages come."""
        subscriptions = [*self._images, *self._boxes.values()]
        self._images, self._boxes = [], {}
        for subscription in subscriptions:
            self._node.destroy_subscription(subscription)
        for pairing in self._pairings.values():
            pairing.clear()

    def describe(self) -> list[str]:
        """Topic and quality of service of each camera's images, and the topic of its boxes, for the log."""
        lines = []
        for number, images in enumerate(self._images):
            profile = images.qos_profile
            line = f"{images.topic_name} ({profile.reliability.short_key}, depth {profile.depth})"
            boxes = self._boxes.get(number)
            lines.append(line if boxes is None else f"{line} with boxes from {boxes.topic_name}")
        return lines

    def why_silent(self, camera: int) -> tuple[str, int]:
        """What keeps frames away as far as the graph tells, and how many publishers there are."""
        return why_silent(self._node, self._images[camera])

    def why_no_boxes(self, camera: int) -> tuple[str, int]:
        """What keeps a camera's boxes away, and how many publishers there are."""
        return why_silent(self._node, self._boxes[camera], is_of_boxes=True)

    def _subscribe_images(self, camera: int, settings: InputSettings) -> Any:
        kind: Any = Image
        name = settings.image_topics[camera]
        if settings.image_transport == "compressed":
            kind, name = CompressedImage, f"{name}{SUFFIX}"
        # Best effort takes every camera's frames; depth 1 is the newest frame and not one that waited its turn.
        depth = DEPTH_OF_PAIRS if settings.boxes_of(camera) else 1
        create = partial(
            self._node.create_subscription,
            kind,
            name,
            partial(self._on_image, camera),
            QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        # DDS counts from the subscription's making on.
        before = self._cameras[camera].lost
        try:
            return create(
                event_callbacks=SubscriptionEventCallbacks(
                    message_lost=partial(self._on_lost, camera, before)
                )
            )
        except UnsupportedEventTypeError:
            self._node.get_logger().info(
                "this DDS does not tell of lost messages; diagnostics will not count them"
            )
            return create()

    def _on_image(self, camera: int, message: Image | CompressedImage) -> None:
        received = time.perf_counter()
        settings, health = self._settings(), self._cameras[camera]
        health.last_frame = time.monotonic()
        if not settings.boxes_of(camera):
            self._put(camera, message, None, received, settings)
            return
        tolerance = _nanoseconds(settings.sync_tolerance)
        pair = self._pairings[camera].image(stamp_of(message.header), message, len(message.data), tolerance)
        self._put_pair(camera, pair, received, settings)

    def _on_detections(self, camera: int, message: Detection2DArray) -> None:
        received = time.perf_counter()
        settings = self._settings()
        self._cameras[camera].last_boxes = time.monotonic()
        tolerance = _nanoseconds(settings.sync_tolerance)
        size = len(message.detections) * BYTES_OF_A_BOX
        pair = self._pairings[camera].detections(stamp_of(message.header), message, size, tolerance)
        self._put_pair(camera, pair, received, settings)

    def _put_pair(
        self, camera: int, pair: tuple[Any, Any] | None, received: float, settings: InputSettings
    ) -> None:
        if pair is not None:
            self._cameras[camera].last_pair = time.monotonic()
            self._put(camera, *pair, received, settings)

    def _put(
        self,
        camera: int,
        image: Any,
        detections: Detection2DArray | None,
        received: float,
        settings: InputSettings,
    ) -> None:
        """Hand over an image, with its boxes where those are answered, unless it comes too soon."""
        if settings.max_rate and not self._is_due(camera, received, 1 / settings.max_rate):
            self._skip(camera)
            return
        age = (self._node.get_clock().now().nanoseconds - stamp_of(image.header)) * 1e-6
        known = abs(age) <= CLOCK_TOLERANCE
        self._cameras[camera].foreign_stamps += not known
        self._take(camera, image, detections, received, age if known else None)

    def _is_due(self, camera: int, now: float, period: float) -> bool:
        """Whether a frame is due. One that comes late by up to half a period does not put off those after it."""
        if now < self._due[camera]:
            return False
        self._due[camera] = max(self._due[camera] + period, now + period / 2)
        return True

    def _on_lost(self, camera: int, before: int, event: Any) -> None:
        self._cameras[camera].lost = before + event.total_count


def cameras_of(node: Node, settings: InputSettings) -> list[CameraHealth]:
    """The cameras of a node's settings, with the names that their topics have on the graph.

    That of a compressed one is without its suffix.
    """
    suffix = SUFFIX if settings.image_transport == "compressed" else ""
    cameras = []
    for number, topic in enumerate(settings.image_topics):
        boxes = settings.boxes_of(number)
        cameras.append(
            CameraHealth(
                node.resolve_topic_name(topic + suffix).removesuffix(suffix),
                boxes_topic=boxes and node.resolve_topic_name(boxes),
            )
        )
    return cameras


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
