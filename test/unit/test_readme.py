"""What README and the pages for users tell people to type exists: targets, commands, options, arguments, links."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from bnn_perception.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("training.md", "jetson.md", "robot.md", "node.md", "seeing.md", "performance-cpu.md")
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

#: Lines of the shell blocks, without their comments.
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def lines_with(start):
    return [line for line in LINES if start in line]


def test_there_is_something_to_check():
    assert {"make demo", "make test"} <= set(LINES)
    assert lines_with("python -m bnn_perception")
    assert lines_with("ros2 launch")


TARGETS = set(re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join([*LINES, PAGES]), re.MULTILINE))


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("line", lines_with(" -m bnn_perception "))
def test_commands_take_these_arguments(line):
    _, _, _, name, *arguments = shlex.split(line)
    command = COMMANDS[name]
    if command.is_node:
        return
    module = importlib.import_module(f"bnn_perception.{command.module}")
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers(required=True))
    parser.parse_args([name, *arguments])


@pytest.mark.parametrize("line", lines_with("ros2 launch"))
def test_launch_files_take_these_arguments(line):
    _, _, package, file, *arguments = shlex.split(line)
    assert package == "bnn_perception"
    text = (ROOT / "launch" / file).read_text(encoding="utf-8")
    for argument in arguments:
        name, separator, _ = argument.partition(":=")
        assert separator
        assert f'"{name}"' in text


@pytest.mark.parametrize("extra", sorted(set(re.findall(r"\.\[([a-z0-9,]+)\]", PAGES))))
def test_extras_exist(extra):
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name in extra.split(","):
        assert f'"{name}": ' in setup


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_the_readme_is_short():
    """Everything that is not for a robot's owner stands in docs/."""
    assert len(README.split()) < 900


#: What is built against NumPy and would pull its second major version over apt's.
NEEDS_NUMPY = ("numba", "onnx", "cupy")


@pytest.mark.parametrize("name", ["README.md", "docs/jetson.md", "docs/robot.md"])
def test_what_a_robot_installs_keeps_the_numpy_of_its_cv_bridge(name):
    """Under Ubuntu 22.04 and 24.04: there is no `python`, pip is that of python3, and may be managed by apt."""
    text = (ROOT / name).read_text(encoding="utf-8")
    installs = re.findall(r"^.*pip install (.*?)(?:  +#.*)?$", text, re.MULTILINE)
    installs = [line for line in installs if any(package in line for package in NEEDS_NUMPY)]
    assert installs
    assert [line for line in installs if "'numpy<2'" not in line] == []
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for block in (block for block in blocks if "pip install" in block):
        assert not re.search(r"^pip ", block, re.MULTILINE), "python3 -m pip"
        assert (
            "PIP_BREAK_SYSTEM_PACKAGES=1" in block or "bin/activate" in block or NEEDS_NUMPY[0] not in block
        )
