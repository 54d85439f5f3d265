"""The nodes where there is little shared memory, as in a container: /dev/shm of its own in a mount namespace."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import PATIENCE, in_a_container


def run_with_little(size, *command):
    """Run the command with a /dev/shm of this size; what it wrote."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_PROFILES_FILE")}
    done = subprocess.run(
        [*in_a_container(size), *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_no_frame_is_lost_in_a_small_shared_memory(english):
    """A segment of 32 MB each for the camera, the classifier and who watches does not fit into 64 MB."""
    if "fastrtps" not in rclpy.get_rmw_implementation_identifier():
        pytest.skip("the segment is Fast DDS's")
    output = run_with_little(
        "64m", sys.executable, "-m", "bnn_perception", "demo", "--model", str(english), "--frames", "60"
    )
    sent, lost = re.search(r"(\d+) sent, .* (\d+) lost in transport", output).groups()
    assert (sent, lost) == ("60", "0"), output


def test_a_camera_says_that_its_images_do_not_fit():
    if "fastrtps" not in rclpy.get_rmw_implementation_identifier():
        pytest.skip("the segment is Fast DDS's")
    parameters = ["--ros-args", "-p", "source:=scene", "-p", "frames:=1", "-p", "patience:=0.0"]
    output = run_with_little("4m", sys.executable, "-m", "bnn_perception", "camera_node", *parameters)
    said = "MB free, and images will get lost; give /dev/shm 128 MB or more (docker run --shm-size=128m)"
    assert re.search(rf"WARN.*/dev/shm has \d {re.escape(said)}", output), output
