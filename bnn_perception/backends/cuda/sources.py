"""The text of the kernels."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from bnn_perception.resources import resource_folder


@cache
def kernel_source(kernel: str) -> str:
    """The source of kernels/<kernel>.cu with its includes put in place, so that it is whole: CuPy's cache of compiled
    kernels goes by the text that it is given and does not look into includes."""
    return _resolve(resource_folder("kernels") / f"{kernel}.cu", set())


def _resolve(path: Path, included: set[str]) -> str:
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        include = re.fullmatch(r'#include "(\w+\.cuh)"', line)
        if line == "#pragma once":
            lines.append("")
        elif include is None:
            lines.append(line)
        elif include[1] not in included:
            included.add(include[1])
            lines += [_resolve(path.with_name(include[1]), included), f'#line {number + 1} "{path.name}"']
    return "\n".join(lines) + "\n"
