"""What surrounds the classifier node where its load is measured: cameras that cost little, a floor, and a listener.

The cameras and the floor are processes of their own: ``python -m bnn_perception.ros.load cameras|floor JSON``.
"""

from __future__ import annotations

import array
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification, Detection2DArray, ObjectHypothesis

from bnn_perception.frames.boxes import Box
from bnn_perception.frames.messages import stamp_of
from bnn_perception.ros.detections import as_message
from bnn_perception.ros.process import prepare_process
from bnn_perception.ros.watcher import Listener

#: What cameras do: the newest frame, and never a wait for who takes it.
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

#: Side of a box in pixels.
BOX = 64


@dataclass(frozen=True)
class Scenario:
    """What the cameras publish.

    Attributes:
        cameras: how many.
        rate: frames a second of each.
        width, height: of the images, pixels.
        boxes: of a detector in each image; None where whole images are labelled.
    """

    cameras: int
    rate: float
    width: int
    height: int
    boxes: int | None = None

    @property
    def image_topics(self) -> list[str]:
        return [f"/camera{number}/image" for number in range(self.cameras)]

    @property
    def box_topics(self) -> list[str]:
        """Topics of the boxes; none where whole images are labelled."""
        return [] if self.boxes is None else [f"/camera{number}/boxes" for number in range(self.cameras)]

    @property
    def answers(self) -> tuple[Any, str]:
        """Type and topic of the answers of all cameras."""
        if self.boxes is None:
            return Classification, "/bnn/labels"
        return Detection2DArray, "/bnn/labeled_detections"

    def as_json(self) -> str:
        """For the command line of a process."""
        return json.dumps(asdict(self))


class Answers(Listener):
    """Takes the answers of all cameras.

    Attributes:
        taken: stamp of each answer, and when it came, nanoseconds of the system's clock.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__("listener")
        self.taken: list[tuple[int, int]] = []
        kind, topic = scenario.answers
        self.create_subscription(kind, topic, self._take, 100)

    def _take(self, message: Any) -> None:
        self.taken.append((stamp_of(message.header), time.time_ns()))


class Floor(Node):
    """Receives images as the classifier does, and answers each at once with one and the same label."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__("floor", namespace="bnn")
        kind, topic = scenario.answers
        self._answer = kind()
        if kind is Classification:
            self._answer.results = [ObjectHypothesis(class_id="floor", score=1.0)]
        self._publisher = self.create_publisher(kind, topic, 10)
        for image_topic in scenario.image_topics:
            self.create_subscription(Image, image_topic, self._on_image, SENSOR)
        for box_topic in scenario.box_topics:
            self.create_subscription(Detection2DArray, box_topic, lambda message: None, SENSOR)

    def _on_image(self, message: Image) -> None:
        self._answer.header = message.header
        self._publisher.publish(self._answer)


def publish_images(scenario: Scenario, sent: list[int]) -> None:
    """Publish until ROS is shut down; the cameras take turns, evenly in time.

    Args:
        scenario: what is published.
        sent: gets the stamp of each image, nanoseconds.
    """
    node = rclpy.create_node("cameras")
    pixels = np.random.default_rng(0).integers(0, 256, (scenario.height, scenario.width, 3), dtype=np.uint8)
    image = Image(
        height=scenario.height,
        width=scenario.width,
        encoding="rgb8",
        step=3 * scenario.width,
        data=array.array("B"),
    )
    image.data.frombytes(pixels.data)
    images = [node.create_publisher(Image, topic, SENSOR) for topic in scenario.image_topics]
    boxes = [node.create_publisher(Detection2DArray, topic, SENSOR) for topic in scenario.box_topics]
    detections = as_message(_boxes(scenario), image.header)
    period = 1 / (scenario.rate * scenario.cameras)
    due = time.perf_counter()
    camera = 0
    while rclpy.ok():
        image.header.stamp = node.get_clock().now().to_msg()
        images[camera].publish(image)
        if boxes:
            detections.header.stamp = image.header.stamp
            boxes[camera].publish(detections)
        sent.append(stamp_of(image.header))
        camera = (camera + 1) % scenario.cameras
        # One that comes late does not put off those after it, unless it is later than a whole period.
        due = max(due + period, time.perf_counter() - period)
        time.sleep(max(0.0, due - time.perf_counter()))


def _boxes(scenario: Scenario) -> list[Box]:
    """Boxes all over the image."""
    random = np.random.default_rng(1)
    count = scenario.boxes or 0
    x = random.uniform(BOX / 2, scenario.width - BOX / 2, count)
    y = random.uniform(BOX / 2, scenario.height - BOX / 2, count)
    return [Box(float(a), float(b), BOX, BOX) for a, b in zip(x, y)]


def _run_cameras(scenario: Scenario, file: Path) -> None:
    """Publish until Ctrl-C, then write the stamps of all images to a file."""
    sent: list[int] = []
    prepare_process(publishes_images=True)
    _until_told(partial(publish_images, scenario, sent))
    file.write_text(json.dumps(sent), encoding="ascii")


def _run_floor(scenario: Scenario) -> None:
    prepare_process()

    def spin() -> None:
        executor = SingleThreadedExecutor()
        executor.add_node(Floor(scenario))
        executor.spin()

    _until_told(spin)


def _until_told(work: Callable[[], None]) -> None:
    """ROS around some work that Ctrl-C ends."""
    rclpy.init(args=[])
    try:
        work()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():
            raise  # otherwise a signal has ended ROS, as a call into it said
    finally:
        rclpy.try_shutdown()


def main(argv: Sequence[str]) -> int:
    """Run the cameras or the floor: ``cameras JSON FILE`` or ``floor JSON``."""
    scenario = Scenario(**json.loads(argv[1]))
    if argv[0] == "cameras":
        _run_cameras(scenario, Path(argv[2]))
    else:
        _run_floor(scenario)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
