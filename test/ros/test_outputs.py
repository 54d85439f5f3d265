"""What the node publishes of its model, while two threads change it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from rclpy.clock import Clock
from scripted import PATIENCE

from bnn_perception.ros.outputs import Outputs


class Recorder:
    """A publisher that keeps what it is given."""

    def __init__(self):
        self.messages = []
        self.publish = self.messages.append


def outputs(threshold):
    """The outputs of a node that is none, and what they tell of labels: each time their names and the threshold."""
    publishers = {}
    node = SimpleNamespace(
        create_publisher=lambda _, topic, __: publishers.setdefault(topic, Recorder()),
        destroy_publisher=lambda publisher: None,
        get_clock=Clock,
    )
    annotated = SimpleNamespace(open=lambda topics: None, close=lambda: None)
    made = Outputs(node, ["/bnn/image"], [False], annotated, threshold)
    infos = publishers["label_info"].messages
    return made, lambda: [([each.class_name for each in i.class_map], i.threshold) for i in infos]


ENGLISH, GERMAN = SimpleNamespace(labels=("red", "green")), SimpleNamespace(labels=("rot", "gruen"))


def test_labels_and_threshold_are_told_as_they_change():
    threshold = 0.0
    made, told = outputs(lambda: threshold)
    made.tell_labels()  # nobody answers yet
    assert told() == []
    made.tell_labels(ENGLISH)
    threshold = 0.25
    made.tell_labels()
    made.tell_labels(GERMAN)
    assert told() == [(["red", "green"], 0.0), (["red", "green"], 0.25), (["rot", "gruen"], 0.25)]


@pytest.mark.parametrize("first", ["model", "threshold"])
def test_what_is_told_last_holds_the_newest_of_both(first):
    """Whichever thread looked first, and however long it took to publish what it saw."""
    values, looked, go_on = {"threshold": 0.0}, threading.Event(), threading.Event()

    def threshold():
        seen = values["threshold"]
        if not looked.is_set():
            looked.set()
            assert go_on.wait(PATIENCE)
        return seen

    made, told = outputs(threshold)
    if first == "threshold":
        looked.set()
        made.tell_labels(ENGLISH)
        looked.clear()
    one = threading.Thread(target=made.tell_labels, args=(GERMAN,) if first == "model" else ())
    one.start()
    assert looked.wait(PATIENCE)
    values["threshold"] = 0.25
    other = threading.Thread(target=made.tell_labels, args=(GERMAN,) if first == "threshold" else ())
    other.start()
    other.join(0.2)  # time enough to overtake
    go_on.set()
    for thread in (one, other):
        thread.join(PATIENCE)
    assert told()[-1] == (["rot", "gruen"], 0.25)


def test_an_answer_that_outlasts_the_outputs_is_dropped():
    """Its publishers have been destroyed, and nothing of it may be looked at."""
    made, _ = outputs(lambda: 0.0)
    with pytest.raises(AttributeError):
        made.publish_answer(None)
    made.close()
    made.publish_answer(None)
