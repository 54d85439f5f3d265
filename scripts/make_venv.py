#!/usr/bin/env python3
"""Make the virtual environment in which the demo and the tests run: ``make_venv.py VENV DISTRO [EXTRA ...]``.

Two kinds of machine:

* A ROS 2 installation is sourced: the environment sees it (and apt's NumPy and OpenCV), and only what is missing
  comes from PyPI. Nothing of apt's is shadowed by another major version.
* No ROS: ``rclpy`` and the messages of a distribution come from PyPI as wheels, and scripts/build_messages.py generates
  ``vision_msgs``.

The package itself is installed editable, so that models and kernels are those of the checkout.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

from build_messages import missing_packages

ROOT = Path(__file__).resolve().parent.parent
BUILD_MESSAGES = ROOT / "scripts" / "build_messages.py"
# Pythons for which the ROS 2 wheels are built.
OLDEST, NEWEST = (3, 10), (3, 13)
# Distributions that setup.py has the wheels of.
WHEELS = ("kilted", "jazzy")


class SetupError(Exception):
    """What this machine lacks, in one line with the remedy."""


def main(folder: str, distribution: str, *extras: str) -> int:
    target = Path(folder)
    try:
        if os.environ.get("ROS_DISTRO") and os.environ.get("AMENT_PREFIX_PATH"):
            check_sourced_ros(distribution)
            create(target, system_site_packages=True)
            # apt's OpenCV and NumPy are not shadowed: cv_bridge is built for them.
            base = "tools" if importlib.util.find_spec("cv2") else "standalone"
            install(target, [base, *extras], numpy_of_this_machine())
        else:
            check_bare_machine(distribution)
            create(target, system_site_packages=False)
            install(target, ["standalone", f"messages-{distribution}", *extras], [])
            print("make_venv: generating vision_msgs", flush=True)
            run(python_of(target), BUILD_MESSAGES)
    except SetupError as error:
        print(f"make_venv: {error}", file=sys.stderr)
        return 1
    return 0


def check_sourced_ros(distribution: str) -> None:
    """Check that the sourced ROS installation is the one that is asked for, for this Python, and complete."""
    if distribution != os.environ["ROS_DISTRO"]:
        raise SetupError(
            f"ROS 2 {os.environ['ROS_DISTRO']} is sourced; leave DISTRO={distribution} out, or start a new shell"
        )
    if importlib.util.find_spec("rclpy") is None:
        raise SetupError(
            f"ROS 2 {distribution} is sourced, but {sys.executable} cannot import rclpy; "
            "name the Python of that installation: make PYTHON=/usr/bin/python3"
        )
    for package in ("diagnostic_msgs", "sensor_msgs", "vision_msgs"):
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise SetupError(f"{package} is not installed: sudo apt install ros-{distribution}-{name}")


def numpy_of_this_machine() -> list[str]:
    """The requirement that keeps the major version of the NumPy that is there."""
    if importlib.util.find_spec("numpy") is None:
        return []
    import numpy

    return [f"numpy<{int(numpy.__version__.split('.')[0]) + 1}"]


def check_bare_machine(distribution: str) -> None:
    """Check that the wheels exist for this machine and that messages can be built on it."""
    if distribution not in WHEELS:
        raise SetupError(f"DISTRO={distribution}: wheels of ROS 2 are known for {' and '.join(WHEELS)}")
    if platform.machine() != "x86_64":
        raise SetupError(
            f"the ROS 2 wheels exist for x86_64, not for {platform.machine()}; "
            "install ROS 2 with apt, source its setup.bash and run make again"
        )
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetupError(
            f"{sys.executable} is Python {platform.python_version()}; the ROS 2 wheels are built for "
            f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}: make PYTHON=python3.12"
        )
    missing = missing_packages()
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")
    if missing:
        raise SetupError(f"packages are missing: sudo apt install {' '.join(missing)}")


def create(target: Path, system_site_packages: bool) -> None:
    """Make the environment anew.

    Raises:
        SetupError: where the folder holds something else, which would be deleted.
    """
    if target.exists() and (
        not target.is_dir() or (any(target.iterdir()) and not (target / "pyvenv.cfg").exists())
    ):
        raise SetupError(f"{target} exists and is no virtual environment; name another folder, VENV=...")
    print(f"make_venv: making {target} with Python {platform.python_version()}", flush=True)
    venv.create(target, system_site_packages=system_site_packages, with_pip=True, clear=True)


def install(target: Path, extras: list[str], requirements: list[str]) -> None:
    """Install the package, editable, with its extras and further requirements."""
    print(f"make_venv: installing the package with [{','.join(extras)}]", flush=True)
    package = f"{ROOT}[{','.join(extras)}]"
    run(
        python_of(target),
        "-m",
        "pip",
        "install",
        "-qq",  # errors alone
        "--use-pep517",
        "--editable",
        package,
        *requirements,
    )


def python_of(target: Path) -> Path:
    return target / "bin" / "python"


def run(*command: str | Path) -> None:
    """Run one step; its own messages say what went wrong."""
    line = [str(part) for part in command]
    code = subprocess.run(line, check=False).returncode
    if code != 0:
        raise SetupError(f"'{' '.join(line)}' ended with exit code {code}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
