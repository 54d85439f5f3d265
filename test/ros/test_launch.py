"""The launch files and the executables that they start, from an install tree as colcon and pip lay it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import PATIENCE, ROOT, ending, image, labels_of, picture, send_and_wait, stamp
from vision_msgs.msg import Classification

# What `ros2 launch FILE NAME:=VALUE ...` does.
DRIVER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


@pytest.fixture(scope="module")
def install_tree(tmp_path_factory):
    """The data files of the package under a prefix, as every installer lays them."""
    prefix = tmp_path_factory.mktemp("install")
    command = [sys.executable, "setup.py", "--quiet", "install_data", "--install-dir", str(prefix)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return prefix


def sourced(prefix):
    """The environment after sourcing the install tree, with the Python of the tests as `python3`."""
    first = {
        "AMENT_PREFIX_PATH": str(prefix),
        "PATH": os.path.dirname(sys.executable),
        "PYTHONPATH": str(ROOT),
    }
    paths = {
        name: os.pathsep.join(filter(None, [path, os.environ.get(name)])) for name, path in first.items()
    }
    return {**os.environ, **paths}


@contextlib.contextmanager
def launched(prefix, name, *arguments):
    """A launch file run in a process group of its own."""
    if importlib.util.find_spec("launch_ros") is None:
        pytest.skip("launch_ros is not installed; it comes with ROS 2 and is on no package index")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            DRIVER,
            str(prefix / "share" / "bnn_perception" / "launch" / name),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=sourced(prefix),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def interrupted(process):
    """What a launch wrote until Ctrl-C ended it, which a terminal sends to the whole group."""
    os.killpg(process.pid, signal.SIGINT)
    output, code = ending(process)
    assert code == 0, output
    assert "Traceback" not in output
    assert "process has died" not in output
    return output


def test_install_tree_is_a_ros_package(install_tree):
    share = install_tree / "share" / "bnn_perception"
    assert (install_tree / "share/ament_index/resource_index/packages/bnn_perception").is_file()
    assert (share / "package.xml").is_file()
    for folder in ("launch", "config", "models", "kernels"):
        here = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        installed = {path.relative_to(share) for path in (share / folder).rglob("*") if path.is_file()}
        assert installed == {path for path in here if "__pycache__" not in path.parts}


@pytest.mark.parametrize("name", ["classifier_node", "camera_node"])
def test_ros2_run_finds_the_executables(install_tree, name):
    """`ros2 run PACKAGE NAME` executes PREFIX/lib/PACKAGE/NAME."""
    done = subprocess.run(
        [install_tree / "lib" / "bnn_perception" / name, "nonsense"],
        env=sourced(install_tree),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{name}: 'nonsense' is no argument")


def test_classify_launch(peer, install_tree, english):
    answers = peer.subscribe(Classification, "/robot/labels")
    arguments = ("image_topic:=/camera/image_raw", "namespace:=robot", f"model:={english}")
    with launched(install_tree, "classify.launch.py", *arguments) as process:
        images = peer.camera(image(picture("red")), "/camera/image_raw", answers)
        for colour in ("green", "blue"):
            send_and_wait(peer, images, image(picture(colour)), answers)
            assert labels_of(answers[-1]) == [colour]
        interrupted(process)


def test_demo_launch(peer, install_tree, english):
    answers = peer.subscribe(Classification, "/bnn/labels")
    truths = peer.subscribe(Classification, "/bnn/truth")
    with launched(install_tree, "demo.launch.py", f"model:={english}", "backend:=reference") as process:
        peer.until(lambda: len(answers) >= 5 and len(truths) >= 5)
        peer.until(lambda: {stamp(answer) for answer in answers} & {stamp(truth) for truth in truths})
        output = interrupted(process)
    assert "on reference" in output
