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


# Nodes in this process, and the processors below them.


@pytest.fixture
def machine(monkeypatch):
    """The processors under the node's engines; a GPU that works is among them."""
    from scripted import Machine

    from bnn_perception.ros import classifier_node, engine

    machine = Machine()
    monkeypatch.setattr(engine, "make_backend", machine.make_backend)
    monkeypatch.setattr(
        classifier_node, "why_unusable", lambda: None if machine.gpu_works else "the driver has left"
    )
    monkeypatch.setattr(classifier_node, "why_not_installed", lambda: None)
    return machine


@pytest.fixture
def patient(monkeypatch):
    """No camera is silent for too long."""
    from bnn_perception.ros import health

    monkeypatch.setattr(health, "SILENCE", 1e6)


@pytest.fixture
def host(peer, english):
    """A function that starts the node, by default on the reference backend."""
    from hosted import Hosted

    def start(model=english, **parameters):
        return Hosted(peer, model, **{"backend": "reference", "device": "cpu", **parameters})

    return start


@pytest.fixture
def hosted_on(host, machine, patient):
    """A function that starts the node on the stand-in's device."""

    def start(device, **parameters):
        return host(backend="binary", device=device, **parameters)

    return start


@pytest.fixture
def slow(machine):
    """Lets the first engine wait in its maker: ``slow.set()`` lets it go on."""
    import threading

    from scripted import PATIENCE

    go_on = threading.Event()

    def wait():
        assert go_on.wait(PATIENCE)

    machine.before_making = wait
    yield go_on
    go_on.set()
