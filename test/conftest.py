"""What every test finds: a private ROS graph, and the data folder where there is one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Set before rclpy is imported. Nothing here talks to a robot, or to a test that runs beside.
# Linux keeps the ports of domains 0 to 101 free (the others lie among those that it gives to outgoing connections).
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
if os.environ.get("ROS_DISTRO") == "humble":
    os.environ["ROS_LOCALHOST_ONLY"] = "1"
else:
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="bnn_perception-log-"))

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
