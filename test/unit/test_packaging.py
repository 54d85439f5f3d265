"""What is stated in several places says the same: manifest, setup, parameters, README, commands."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from bnn_perception.__main__ import COMMANDS
from bnn_perception.ros.collect_parameters import PARAMETERS as COLLECT_PARAMETERS
from bnn_perception.ros.diagnostics import CAMERA, COMPARE, ENGINE
from bnn_perception.ros.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ET.parse(ROOT / "package.xml").getroot()


#: Parameters of each node that has a file of them, with its name and the page that lists them.
NODES = [
    pytest.param("classify.yaml", "node.md", PARAMETERS, id="classifier"),
    pytest.param("collect.yaml", "collect.md", COLLECT_PARAMETERS, id="collector"),
]


@pytest.mark.parametrize(("file", "page", "parameters"), NODES)
def test_defaults_are_the_yaml_file(file, page, parameters):
    shipped = yaml.safe_load((ROOT / "config" / file).read_text(encoding="utf-8"))
    assert shipped == {"/**": {"ros__parameters": {p.name: p.default for p in parameters}}}


@pytest.mark.parametrize(("file", "page", "parameters"), NODES)
def test_comments_in_the_yaml_file_are_the_descriptions(file, page, parameters):
    text = " ".join((ROOT / "config" / file).read_text(encoding="utf-8").replace("#", " ").split()).lower()
    for parameter in parameters:
        assert parameter.description.lower() in text, parameter.name


@pytest.mark.parametrize(("file", "page", "parameters"), NODES)
def test_the_page_of_the_node_has_a_row_for_every_parameter(file, page, parameters):
    """Rows of the form | `name` | default | what it can be | description |."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in text.splitlines()
        if line.startswith("|") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    }
    for parameter in parameters:
        assert parameter.name in rows, f"docs/{page} has no row for the parameter {parameter.name}"
        default, allowed, description = rows[parameter.name]
        assert yaml.safe_load(default.strip("`")) == parameter.default, parameter.name
        assert description.rstrip(".").lower().startswith(parameter.description.lower()), parameter.name
        if parameter.bounds is not None:
            numbers = [float(number.replace("_", "")) for number in re.findall(r"-?\d[\d_]*\.?\d*", allowed)]
            assert numbers == [float(bound) for bound in parameter.bounds], parameter.name
        for choice in parameter.choices:
            assert choice in allowed, parameter.name


@pytest.mark.parametrize(("file", "page", "parameters"), NODES)
def test_every_parameter_describes_itself(file, page, parameters):
    pytest.importorskip("rcl_interfaces", reason="rclpy is not installed")
    for parameter in parameters:
        descriptor = parameter.descriptor()
        assert descriptor.description
        assert descriptor.read_only == parameter.read_only
        if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
            (bounds,) = [*descriptor.integer_range, *descriptor.floating_point_range]
            assert bounds.from_value <= parameter.default <= bounds.to_value
            assert (bounds.from_value, bounds.to_value) == parameter.bounds
        if parameter.choices:
            assert parameter.default in parameter.choices
            assert descriptor.additional_constraints == f"one of {', '.join(parameter.choices)}"


def test_setup_takes_its_facts_from_the_manifest():
    command = [sys.executable, "setup.py", "--quiet", "--name", "--version", "--description", "--license"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    fields = ("name", "version", "description", "license")
    assert done.stdout.splitlines() == [
        " ".join((MANIFEST.findtext(field) or "").split()) for field in fields
    ]


def build(*commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """setup.py as colcon calls it: what it builds goes to the folder and not beside the sources.

    numba is hidden, for compiling takes long: what would compile says that it cannot.
    """
    (folder / "numba.py").write_text("raise ImportError('hidden by the test')\n", encoding="utf-8")
    first = ["egg_info", "--egg-base", str(folder), "build", "--build-base", str(folder / "build")]
    last = ["--single-version-externally-managed", "--record", str(folder / "record")]
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *first, "install", *commands, *last],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installation_by_colcon_compiles_ahead_and_does_without(tmp_path):
    done = build("--prefix", str(tmp_path / "install"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "install").rglob("classifier_node.py"))
    said = done.stderr.splitlines()
    # The installed package found its models and went as far as to ask for numba.
    assert "bnn_perception compile: backend binary needs numba on the CPU (hidden by the test)" in done.stderr
    assert said[-1] == "bnn_perception: nothing was compiled ahead; the first start of the node will compile"


def test_a_package_for_other_machines_compiles_nothing(tmp_path):
    done = build("--root", str(tmp_path / "root"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "root").rglob("classifier_node.py"))
    assert "compile" not in done.stdout + "\n".join(
        line for line in done.stderr.splitlines() if "byte-compiling" not in line
    )


def test_manifest_names_what_the_nodes_import():
    """Every ROS package that is imported under ros/ and launch/ is a dependency."""
    imported = set()
    for path in [*(ROOT / "bnn_perception" / "ros").glob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    ros = {name for name in imported if name.endswith(("_msgs", "_interfaces"))} | (
        imported & {"rclpy", "cv_bridge", "launch", "launch_ros"}
    )
    assert len(ros) >= 8  # rclpy, launch, launch_ros, cv_bridge and four packages of messages
    assert ros <= {element.text for element in MANIFEST.findall("exec_depend")}


def test_manifest_names_what_has_a_rosdep_key():
    """After `rosdep install` alone the binary net answers on the CPU, and the tests can be collected."""
    names = {
        kind: {element.text for element in MANIFEST.findall(kind)} for kind in ("exec_depend", "test_depend")
    }
    assert {"python3-numba", "python3-numpy", "python3-opencv", "python3-yaml"} <= names["exec_depend"]
    assert {"python3-hypothesis", "python3-pytest"} <= names["test_depend"]


#: What tests import beside what rosdep brings.
WITHOUT_KEY = ("onnx", "onnxruntime", "tflite", "rosbags", "rich", "matplotlib", "torch", "brevitas")


def test_what_rosdep_does_not_bring_is_skipped(tmp_path):
    """`colcon test` after `rosdep install` alone: every file can be collected, or is skipped as a whole."""
    for name in WITHOUT_KEY:
        (tmp_path / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('hidden by the test', name='{name}')\n", encoding="utf-8"
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", "test/unit"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_cpu_backends.py" in done.stdout
    assert "test_import_qonnx.py" not in done.stdout


def test_the_extra_of_the_tests_names_what_they_import():
    """setuptools among it, which runs setup.py here and comes with no Python from 3.12 on."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (extra,) = re.findall(r'^    "test": \[(.*?)^    \],$', setup, re.MULTILINE | re.DOTALL)
    for name in ("hypothesis", "pytest", "pytest-xdist", "setuptools"):
        assert re.search(rf'"{name}>=[\d.]+"', extra), name
    for name in ("ONNX", "TFLITE", "*NVRTC"):
        assert f" {name}," in extra


def test_rclpy_cupy_and_torch_stay_in_their_rooms():
    rooms = {
        "rclpy": ("ros",),
        "cupy": ("backends/cuda",),
        "torch": ("training",),
        "brevitas": ("training",),
    }
    for path in (ROOT / "bnn_perception").rglob("*.py"):
        place = path.relative_to(ROOT / "bnn_perception").as_posix()
        for module, allowed in rooms.items():
            if re.search(rf"^\s*(import|from) {module}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
                assert place.startswith(allowed), f"{place} imports {module}"


def test_every_command_is_there():
    for name, command in COMMANDS.items():
        path = ROOT / "bnn_perception" / (command.module.replace(".", "/") + ".py")
        assert path.is_file(), name
        assert re.search(
            rf"^def {'main' if command.is_node else 'run'}\(", path.read_text(encoding="utf-8"), re.M
        ), name


def test_make_venv_leaves_a_folder_that_is_no_environment(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    command = [sys.executable, "scripts/make_venv.py", str(tmp_path), os.environ.get("ROS_DISTRO", "kilted")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "exists and is no virtual environment; name another folder, VENV=..." in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("sourced", "asked", "said"),
    [
        (None, "humble", "DISTRO=humble: wheels of ROS 2 are known for kilted and jazzy"),
        ("humble", "jazzy", "ROS 2 humble is sourced; leave DISTRO=jazzy out, or start a new shell"),
    ],
)
def test_make_venv_knows_its_distributions(tmp_path, sourced, asked, said):
    command = [sys.executable, "scripts/make_venv.py", str(tmp_path / "venv"), asked]
    environment = {name: value for name, value in os.environ.items() if name != "ROS_DISTRO"}
    if sourced:
        environment |= {"ROS_DISTRO": sourced, "AMENT_PREFIX_PATH": "/opt/ros/humble"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"make_venv: {said}" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_each_distribution_has_an_environment_of_its_own():
    # What a make around these tests has been told, and hands on.
    told = {"ROS_DISTRO", "DISTRO", "VENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}

    def makes(**variables):
        environment = {name: value for name, value in os.environ.items() if name not in told}
        line = ["make", "--always-make", "--dry-run", "test", *(f"{k}={v}" for k, v in variables.items())]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0].split()[2:4]

    assert makes() == [".venv", "kilted"]
    assert makes(DISTRO="jazzy") == [".venv-jazzy", "jazzy"]
    assert makes(ROS_DISTRO="humble") == [".venv-humble", "humble"]


def test_each_distribution_has_its_wheels():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name in ("kilted", "jazzy"):
        assert setup.count(f'    "{name}": [') == 2  # of ROS, and for messages


def test_the_aggregator_s_prefixes_are_the_names_of_statuses():
    """Of /bnn/classifier, as the launch file names it."""
    file = ROOT / "config" / "diagnostic_aggregator.yaml"
    parameters = yaml.safe_load(file.read_text(encoding="utf-8"))["analyzers"]["ros__parameters"]
    analyzers = parameters["perception"]["analyzers"].values()
    names = [f"/bnn/classifier: {kind}" for kind in (ENGINE, COMPARE, f"{CAMERA}/bnn/image")]
    prefixes = [
        prefix
        for analyzer in analyzers
        for prefix in analyzer.get("startswith") or analyzer["find_and_remove_prefix"]
    ]
    for name in names:
        assert any(name.startswith(prefix) for prefix in prefixes), name
