"""The node of examples/, over real DDS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import ENDING, image
from std_msgs.msg import String

import bnn_perception
from bnn_perception.scenes.crops import random_crop_image
from bnn_perception.scenes.signs import ROAD_SIGNS

ROOT = Path(__file__).resolve().parents[2]


def test_the_minimal_node_labels_frames(peer):
    """Two signs, one in a message whose rows are longer than their pixels, get the labels that the classifier gives."""
    rng = np.random.default_rng(5)
    stop, priority = (
        random_crop_image(ROAD_SIGNS.index(name), rng, 64) for name in ("stop", "priority road")
    )
    with bnn_perception.load_classifier("road_signs", backend="reference") as classifier:
        wanted = [classifier.predict(picture)[0].label for picture in (stop, priority)]
    assert wanted[0] != wanted[1]  # otherwise the second answer could be the first again
    heard = peer.subscribe(String, "/label")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "minimal_node.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        publisher = peer.node.create_publisher(type(image(stop)), "/image", 1)
        for message, label in ((image(stop), wanted[0]), (image(priority, padding=5), wanted[1])):
            while not heard or heard[-1].data != label:
                assert process.poll() is None
                peer.send(publisher, message)
                peer.work(0.1)
        assert {answer.data for answer in heard} == set(wanted)
    finally:
        process.terminate()
        assert process.wait(ENDING) == 0
