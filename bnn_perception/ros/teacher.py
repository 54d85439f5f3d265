"""Teaches the nodes what a rendered scene shows, as a person would: sets labels, asks for a model, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from vision_msgs.msg import Classification

from bnn_perception.errors import CommandError
from bnn_perception.ros.collect_report import COLLECTION, IMAGES_OF
from bnn_perception.ros.diagnostics import as_mapping
from bnn_perception.ros.watcher import CLASSIFIER, Watcher

#: The node that is told what the camera shows.
COLLECTOR = "/bnn/collector"

#: Frames of an approach after which the label is taken away: before the shortest ends, so that no frame of the next
#: sign comes under the label of this one.
STEADY = 16

#: Seconds for the answer to a request.
PATIENCE = 60.0


class Teacher(Watcher):
    """A watcher that also teaches.

    Args:
        frames: how many count when the answers are compared with the truth.
        enough: images that are wanted, by label; the labels are signs, but for ``other``.
        other: the label of all other signs.

    Attributes:
        is_teaching: whether labels are set.
        images: of each label that the collect node has saved, by its newest diagnostics.
    """

    def __init__(self, frames: int, enough: Mapping[str, int], other: str) -> None:
        super().__init__(frames, knows_truth=True)
        self.is_teaching = False
        self.images: dict[str, int] = {}
        self._enough = enough
        self._other = other
        self._sign = ""
        self._frames_of_sign = 0
        self._setters: dict[str, Any] = {
            node: self.create_client(SetParameters, f"{node}/set_parameters")
            for node in (CLASSIFIER, COLLECTOR)
        }

    def label_of(self, sign: str) -> str:
        """What a frame that shows a sign is to be called."""
        return sign if sign in self._enough else self._other

    def has_enough(self) -> bool:
        """Whether there are as many images of each label as are wanted."""
        return all(self.images.get(label, 0) >= number for label, number in self._enough.items())

    def forget(self) -> None:
        """Let the frames that count begin now."""
        self.answers.clear()
        self.truths.clear()

    def set(self, node: str, name: str, value: Any) -> None:
        """Set a parameter, as ``ros2 param set`` does.

        Raises:
            CommandError: where the node does not answer, or refuses.
        """
        client = self._setters[node]
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        if not self.work_until(client.service_is_ready, PATIENCE):
            raise CommandError(f"{node} is not there")
        future = client.call_async(request)
        if not self.work_until(future.done, PATIENCE):
            raise CommandError(f"{node} does not answer a request for {name}")
        answer: Any = future.result()
        (result,) = answer.results
        if not result.successful:
            raise CommandError(f"{node} refused {name}: {result.reason}")

    def _on_truth(self, message: Classification) -> None:
        super()._on_truth(message)
        if not self.is_teaching:
            return
        sign = message.results[0].class_id
        if sign != self._sign:
            self._sign, self._frames_of_sign = sign, 0
            label = self.label_of(sign)
            # What there is enough of would only take the others' time.
            self._say(label if self.images.get(label, 0) < self._enough[label] else "")
        self._frames_of_sign += 1
        if self._frames_of_sign == STEADY:
            self._say("")

    def _say(self, label: str) -> None:
        """Set the label that the camera shows from now on, without waiting for the answer."""
        request = SetParameters.Request(parameters=[Parameter("label", value=label).to_parameter_msg()])
        self._setters[COLLECTOR].call_async(request)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        super()._on_diagnostics(message)
        for status in message.status:
            if status.name == f"{COLLECTOR}: {COLLECTION}":
                values = as_mapping(status.values)
                self.images = {
                    key[len(IMAGES_OF) :]: int(number)
                    for key, number in values.items()
                    if key.startswith(IMAGES_OF)
                }
