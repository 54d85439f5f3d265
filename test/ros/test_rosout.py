"""Why a node ends reaches who has no terminal of it."""

from __future__ import annotations

import os

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import ending, running
from rcl_interfaces.msg import Log


@pytest.mark.parametrize(
    ("command", "parameter", "reason"),
    [
        # In the loading thread, when the node has been made.
        ("classifier_node", "device:=cuda", "device cuda cannot be used: CuPy"),
        ("camera_node", "source:=/nowhere", "'/nowhere': no such file or folder"),
    ],
)
def test_a_start_that_fails_is_told_on_rosout(peer, tmp_path, command, parameter, reason):
    (tmp_path / "cupy.py").write_text("raise ImportError('not this time')", encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    lines = peer.subscribe(Log, "/rosout")
    # It waits for listeners, but not for long: on a busy machine it has ended before it is found.
    for _ in range(10):
        with running(command, parameter, environment={"PYTHONPATH": path}) as process:
            output, code = ending(process)
        peer.work(0.5)
        if any(line.level == 50 for line in lines):
            break
    assert code == 1
    (line,) = (line for line in lines if line.level == 50)
    assert line.name == command
    assert line.msg.startswith(reason)
    # As it stands on the terminal, where it stands once.
    assert output.splitlines()[-1] == f"{command}: {line.msg}"
    assert output.count(reason) == 1
