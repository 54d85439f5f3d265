"""The image topics of the classifier node: their subscriptions, and the messages that come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # where they are until ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from bnn_perception.ros.health import CameraHealth
from bnn_perception.ros.parameters import Settings
from bnn_perception.ros.pipeline import Arrival, Pipeline
from bnn_perception.ros.silence import SUFFIX, why_silent

#: A stamp further from the clock than this (milliseconds) belongs to another time: a recording, or simulated time.
CLOCK_TOLERANCE = 60_000.0


class Cameras:
    """Subscribes the image topics of a node and hands over what comes, all in the executor's thread.

    Args:
        node: that subscribes.
        settings: gives the settings of the moment.
        pipeline: takes the messages.
        cameras: of the topics, in the order of ``image_topics``; what is noticed of each is written there.
    """

    def __init__(
        self,
        node: Node,
        settings: Callable[[], Settings],
        pipeline: Pipeline,
        cameras: Sequence[CameraHealth],
    ) -> None:
        self._node = node
        self._settings = settings
        self._pipeline = pipeline
        self._cameras = cameras
        self._subscriptions: list[Any] = []
        self._due = [0.0] * len(cameras)

    @property
    def are_subscribed(self) -> bool:
        """Whether messages come."""
        return bool(self._subscriptions)

    def subscribe(self) -> None:
        """Let messages come."""
        now = time.monotonic()
        for camera in self._cameras:
            camera.last_frame = now
        self._subscriptions = [
            self._subscribe(camera, topic) for camera, topic in enumerate(self._settings().image_topics)
        ]

    def unsubscribe(self) -> None:
        """Let no more messages come."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            self._node.destroy_subscription(subscription)

    def describe(self) -> list[str]:
        """Topic and quality of service of each subscription, for the log."""
        return [
            f"{s.topic_name} ({s.qos_profile.reliability.short_key}, depth {s.qos_profile.depth})"
            for s in self._subscriptions
        ]

    def why_silent(self, camera: int) -> tuple[str, int]:
        """What keeps frames away as far as the graph tells, and how many publishers there are."""
        return why_silent(self._node, self._subscriptions[camera])

    def _subscribe(self, camera: int, topic: str) -> Any:
        kind: Any = Image
        name = topic
        if self._settings().image_transport == "compressed":
            kind, name = CompressedImage, f"{topic}{SUFFIX}"
        # Best effort takes every camera's frames; depth 1 is the newest frame and not one that waited its turn.
        create = partial(
            self._node.create_subscription,
            kind,
            name,
            partial(self._on_image, camera),
            QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
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
        if settings.max_rate and not self._is_due(camera, received, 1 / settings.max_rate):
            self._pipeline.skip(camera)
            return
        stamp = message.header.stamp
        now = self._node.get_clock().now().nanoseconds
        age = (now - stamp.sec * 1_000_000_000 - stamp.nanosec) * 1e-6
        known = abs(age) <= CLOCK_TOLERANCE
        health.foreign_stamps += not known
        self._pipeline.put(Arrival(camera, message, settings, received, age if known else None))

    def _is_due(self, camera: int, now: float, period: float) -> bool:
        """Whether a frame is due. One that comes late by up to half a period does not put off those after it."""
        if now < self._due[camera]:
            return False
        self._due[camera] = max(self._due[camera] + period, now + period / 2)
        return True

    def _on_lost(self, camera: int, before: int, event: Any) -> None:
        self._cameras[camera].lost = before + event.total_count
