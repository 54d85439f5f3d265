"""NVRTC by ctypes, from NVIDIA's wheels: compiles kernels for any SM without a GPU or a driver."""

from __future__ import annotations

import ctypes
import re
import site
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Where the wheels put the library, by major version of CUDA.
_PLACES = {12: ("cuda_nvrtc", "libnvrtc.so.12"), 13: ("cu13", "libnvrtc.so.13")}
WHEELS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}


class CompileError(RuntimeError):
    """NVRTC's log."""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel."""

    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


@cache
def library(major: int) -> ctypes.CDLL | None:
    """NVRTC of a major version of CUDA, None where its wheel is not installed."""
    folder, name = _PLACES[major]
    for packages in (*site.getsitepackages(), *sys.path):
        path = Path(packages) / "nvidia" / folder / "lib" / name
        if path.is_file():
            return ctypes.CDLL(str(path))
    return None


def compile_kernel(major: int, source: str, options: Sequence[str], sm: int) -> tuple[bytes, Usage]:
    """Compile a source that holds one kernel for an SM.

    Returns:
        the cubin, and what ptxas says of it.

    Raises:
        CompileError: with the log.
    """
    nvrtc = library(major)
    assert nvrtc is not None
    program = ctypes.c_void_p()
    arguments = [f"-arch=sm_{sm}", "--ptxas-options=-v", "-ftz=true", *options]  # CuPy adds -ftz=true
    array = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    assert status == 0
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(arguments), array)
        log = _text(nvrtc, program, "ProgramLog")
        if status != 0:
            raise CompileError(log)
        return _bytes(nvrtc, program, "CUBIN"), _usage(log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.raw


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    return _bytes(nvrtc, program, what).rstrip(b"\0").decode()


def _usage(log: str) -> Usage:
    def number(pattern: str) -> int:
        return sum(int(found) for found in re.findall(pattern, log))

    registers = number(r"Used (\d+) registers")
    assert registers > 0, log
    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Usage(registers, number(r"(\d+) bytes smem"), spills, number(r"(\d+) bytes stack frame"))
