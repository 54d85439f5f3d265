"""What every test finds: a private ROS graph, and the data folder where there is one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

from bnn_perception.ros.process import claim_domain, private_graph

# Nothing here talks to a robot, or to tests that run beside: each process of a run has a domain of its own.
os.environ.update(private_graph(claim_domain()))
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="bnn_perception-log-"))

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("bnn_perception", deadline=None)
hypothesis.settings.load_profile("bnn_perception")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data():
    """A function that gives a folder of the development data, which is not part of the project, or skips the test."""
    folder = Path(os.environ.get("BNN_DATA") or ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"no {name} in {folder}; set BNN_DATA to the folder that holds it")
        return path

    return find


@pytest.fixture
def one_torch_thread():
    """PyTorch takes one thread: more only get into each other's way on nets as small as those of the tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
