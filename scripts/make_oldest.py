#!/usr/bin/env python3
"""Make an environment of the oldest packages that setup.py takes: ``make_oldest.py VENV``.

Of each requirement the oldest version that has a wheel for this Python, as uv resolves it; the others are what those
need. Prints what was taken. The package itself is not installed: run it from the checkout.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent

#: Extras whose lower bounds are claims; ROS's and CuPy's have tests of their own.
EXTRAS = ("standalone", "test")


def requirements() -> list[str]:
    """What setup.py requires, with the extras."""
    stated: dict[str, Any] = {}
    with mock.patch("setuptools.setup", lambda **fields: stated.update(fields)):
        runpy.run_path(str(ROOT / "setup.py"))
    extras = [requirement for extra in EXTRAS for requirement in stated["extras_require"][extra]]
    return [*stated["install_requires"], *extras]


def main(folder: str) -> int:
    target = Path(folder)
    venv.create(target, with_pip=True, clear=True)
    python = target / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    oldest = ["--resolution", "lowest-direct", "--only-binary", ":all:"]
    command: list[str | Path] = [
        python,
        "-m",
        "uv",
        "pip",
        "install",
        "--python",
        python,
        *oldest,
        *requirements(),
    ]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
