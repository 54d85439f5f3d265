#!/usr/bin/env python3
"""Build the message package ``msgs/vision_msgs`` into the virtual environment that runs this script.

For machines without a ROS installation: the ROS 2 wheels on PyPI hold ``rclpy`` and the common interfaces,
but not ``vision_msgs``. The messages that the nodes take and publish are therefore generated here with
the rosidl wheels, cmake and a C++ compiler. Package name, field names and types are those of the real
package, and so are the type hashes: both sides of a topic may use either.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "msgs" / "vision_msgs"

# The wheels' CMake exports name the interpreter of the container in which they were built.
_BUILD_INCLUDE = re.compile(r"/opt/python/[^/;\"]+/include/python[\d.]+")
_BUILD_NUMPY = re.compile(r"/opt/python/[^/;\"]+/lib/python[\d.]+/site-packages/numpy/_?core/include")


def main() -> int:
    missing = missing_packages()
    problem = None
    if missing:
        problem = f"packages are missing: sudo apt install {' '.join(missing)}"
    elif sys.prefix == sys.base_prefix:
        problem = "run it with the python of a virtual environment"
    if problem is not None:
        print(f"build_messages: {problem}", file=sys.stderr)
        return 1
    return build(Path(sys.prefix))


def missing_packages() -> list[str]:
    """Debian's and Ubuntu's packages that building messages needs and this machine lacks."""
    needed = {
        f"python{sysconfig.get_python_version()}-dev": Path(
            sysconfig.get_path("include"), "Python.h"
        ).is_file()
    }
    needed.update({program: shutil.which(program) is not None for program in ("g++", "make")})
    return [package for package, is_there in needed.items() if not is_there]


def build(prefix: Path) -> int:
    """Generate, compile and install the package below ``prefix``."""
    point_exports_at_this_machine(prefix / "share")
    with tempfile.TemporaryDirectory(prefix="vision_msgs-") as scratch:
        configure = [
            "cmake",
            f"-S{PACKAGE}",
            f"-B{scratch}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPYTHON_INSTALL_DIR={Path(sysconfig.get_path('purelib')).relative_to(prefix)}",
        ]
        steps = [configure, ["cmake", "--build", scratch, "--parallel"], ["cmake", "--install", scratch]]
        return 0 if all(run(step, prefix) for step in steps) else 1


def point_exports_at_this_machine(share: Path) -> None:
    """Replace the build container's include paths in the wheels' CMake exports by those of this interpreter."""
    import numpy

    for export in share.glob("*/cmake/*rosidl_generator_pyExport.cmake"):
        text = export.read_text(encoding="utf-8")
        here = _BUILD_INCLUDE.sub(lambda _: sysconfig.get_path("include"), text)
        here = _BUILD_NUMPY.sub(lambda _: numpy.get_include(), here)
        if here != text:
            export.write_text(here, encoding="utf-8")


def run(command: list[str], prefix: Path) -> bool:
    """Run one step quietly; on failure print its output."""
    environment = dict(os.environ, AMENT_PREFIX_PATH=str(prefix))
    environment["PATH"] = f"{prefix / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
    step = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if step.returncode != 0:
        print(step.stdout, step.stderr, file=sys.stderr)
        print(
            f"build_messages: '{' '.join(command)}' ended with code {step.returncode}",
            file=sys.stderr,
        )
    return step.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
