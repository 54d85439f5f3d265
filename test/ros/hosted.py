"""The classifier node in the tests' own process, and what is heard of it over real DDS."""

from __future__ import annotations

from nodes import Diagnostics, image, picture
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification, LabelInfo

from bnn_perception.ros.classifier_node import ClassifierNode

NODE = "/bnn/classifier"

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Hosted:
    """A node in this process that answers, and what is heard of it.

    Attributes:
        infos: all label infos, the first that of the start.
    """

    def __init__(self, peer, model, is_ready=True, **parameters):
        self._peer = peer
        self.diagnostics = Diagnostics(peer)
        self.infos = peer.subscribe(LabelInfo, "/bnn/label_info", LATCHED)
        self.answers = peer.subscribe(Classification, "/bnn/labels")
        self.node = peer.host(ClassifierNode, model=str(model), **{"diagnostics_period": 0.1, **parameters})
        if self.node.settings.autostart:
            self.node.start()
            if is_ready:
                peer.until(lambda: self.infos)

    def camera(self, topic="/bnn/image"):
        """A publisher on the topic that the node has been seen to answer."""
        return self._peer.camera(image(picture("red", 4, 4)), topic, self.answers)

    def unanswered(self, topic="/bnn/image"):
        """A publisher on the topic of a node that cannot answer."""
        return self._peer.node.create_publisher(
            Image, topic, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )

    def set(self, **values):
        for result in self._peer.set_parameters(NODE, **values):
            assert result.successful, result.reason

    def get(self, *names):
        """Values of parameters."""
        return [parameter_value_to_python(self._peer.get_parameter(NODE, n)) for n in names]

    def labels(self):
        """The labels of the newest label info."""
        return [entry.class_name for entry in self.infos[-1].class_map]

    def says(self, text, level=None):
        """Wait until diagnostics say it, with this level."""
        self.diagnostics.until(
            lambda status, values: text in status.message and level in (None, status.level)
        )
