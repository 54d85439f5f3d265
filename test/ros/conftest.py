"""Fixtures of the tests over real DDS."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_perception.net import bits
from bnn_perception.net.folder import save_model
from bnn_perception.net.layers import OutputDense, Thermometer
from bnn_perception.net.model import InputSpec, Model


@pytest.fixture
def peer():
    from nodes import Peer

    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory):
    """A function that saves a model which tells red, green and blue apart, under labels of one's choice."""

    def save(*labels):
        layers = (
            Thermometer("encode", channels=3, levels=1, thresholds=np.full((3, 1), 128, np.uint8)),
            OutputDense(
                "logits",
                (1, 1, 3),
                3,
                bits.pack(np.eye(3, dtype=bool)),
                np.ones(3, np.float32),
                np.zeros(3, np.float32),
            ),
        )
        folder = tmp_path_factory.mktemp("models") / "-".join(labels)
        save_model(Model("-".join(labels), labels, InputSpec(1, 1), layers), folder)
        return folder

    return save


@pytest.fixture(scope="session")
def english(colour_model):
    return colour_model("red", "green", "blue")


@pytest.fixture(scope="session")
def german(colour_model):
    return colour_model("rot", "gruen", "blau")
