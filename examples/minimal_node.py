"""A ROS 2 node around a Classifier: sensor_msgs/Image on `image` in, the best label as std_msgs/String on `label` out.

It takes rgb8 and bgr8. The package's own node does more: several cameras, every encoding, diagnostics, parameters, and
no callback that computes.
"""

from __future__ import annotations

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

import bnn_perception


class MinimalNode(Node):
    def __init__(self) -> None:
        super().__init__("minimal_classifier")
        self.classifier = bnn_perception.load_classifier("road_signs")
        self.labels = self.create_publisher(String, "label", 1)
        self.create_subscription(Image, "image", self.on_image, qos_profile_sensor_data)

    def on_image(self, message: Image) -> None:
        # A row may be longer than its pixels.
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        pixels = rows[:, : message.width * 3].reshape(message.height, message.width, 3)
        (best,) = self.classifier.predict(bnn_perception.Frame(pixels, message.encoding))
        self.labels.publish(String(data=best.label))


if __name__ == "__main__":
    rclpy.init()
    node = MinimalNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.classifier.close()
        node.destroy_node()
        rclpy.try_shutdown()
