"""SIGTERM at any moment of a node's start: it ends at once, without a traceback, and leaves no shared memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import apart, in_a_container

PROGRAM = Path(__file__).parent / "early_end.py"

#: How many moments within the first seconds; `make fuzz` takes enough of them to meet every line of a start.
MOMENTS, SECONDS = (60, 4.0) if os.environ.get("FUZZ") else (6, 2.5)

#: Starts that run at a time. Each has a graph and a /dev/shm of its own.
AT_A_TIME = 2

#: What the tracing of ROS 2 keeps for all processes of a user.
TRACING = "lttng-ust-"


def end(node, arguments, place, moment):
    """How the node ends that is told to end so many seconds after its start; see early_end.py."""
    command = [sys.executable, "-m", "bnn_perception", node, "--ros-args"]
    for argument in arguments:
        command += ["-p", argument]
    done = subprocess.run(
        # -S: this interpreter needs nothing that is installed, and starts sooner without.
        [*in_a_container("64m"), sys.executable, "-S", str(PROGRAM), f"{moment:.3f}", *command],
        env={**os.environ, **apart(place)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("node", ["classifier_node", "camera_node"])
def test_a_node_that_is_told_to_end_while_it_starts_leaves_nothing(english, node):
    arguments = [f"model:={english}", "device:=cpu"] if node == "classifier_node" else ["source:=scene"]
    in_a_container("64m")  # skips here and not in a thread
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ends = [
            pool.submit(end, node, arguments, place % AT_A_TIME, moment)
            for place, moment in enumerate(np.linspace(0, SECONDS, MOMENTS))
        ]
        for done in ends:
            told = done.result()
            # Before rclpy takes over the signal ends Python itself; a shell calls that 143.
            assert told["code"] in (0, -signal.SIGTERM), told
            assert "Traceback" not in told["output"], told
            # What rcl says of a context that has ended under it is no news; what the node would say is.
            assert "unexpected error" not in told["output"], told
            assert "cannot be" not in told["output"], told
            assert [name for name in told["left"] if not name.startswith(TRACING)] == [], told
