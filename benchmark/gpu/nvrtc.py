"""Compiles kernels to machine code, and that back to text, on machines with or without a GPU.

NVRTC and nvdisasm come as wheels (``pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvdisasm``) or with a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from bnn_perception.backends.cuda.specs import SMS
from bnn_perception.errors import CommandError

INSTALL = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvdisasm"


def _places(folder: str, pattern: str) -> Iterator[Path]:
    """Files in NVIDIA's wheels and toolkits."""
    spec = importlib.util.find_spec("nvidia")
    for package in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(package).glob(f"*/{folder}/{pattern}"))
    toolkits = [os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    for toolkit in filter(None, toolkits):
        for name in (folder, f"{folder}64"):
            yield from sorted(Path(str(toolkit)).glob(f"{name}/{pattern}"))


@cache
def libraries() -> dict[int, ctypes.CDLL]:
    """The NVRTC of each major version of CUDA that is installed."""
    found: dict[int, ctypes.CDLL] = {}
    for path in _places("lib", "libnvrtc.so.*"):
        name = re.fullmatch(r"libnvrtc\.so\.(\d+)", path.name)
        if name and int(name[1]) not in found:
            found[int(name[1])] = _load(path)
    return found


def _load(path: Path) -> ctypes.CDLL:
    """An NVRTC with the library of built-in functions that lies beside it.

    It opens that one by name when it compiles. The NVRTC of CUDA 13.0, which comes with PyTorch, does not look beside
    itself, and finds what the process holds already.
    """
    library = ctypes.CDLL(str(path))
    builtins = path.with_name("libnvrtc-builtins.so.{}.{}".format(*_version(library)))
    if builtins.exists():
        ctypes.CDLL(str(builtins))
    return library


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def _library(sm: int) -> ctypes.CDLL:
    """The oldest NVRTC that knows an SM; what runs on JetPack 6 is then what is looked at."""
    known = SMS[sm].cuda if sm in SMS else (12, 13)
    for major in known:
        if major in libraries():
            return libraries()[major]
    raise CommandError(f"NVRTC of CUDA {known[0]} was not found; {INSTALL}")


def version(sm: int = 87) -> tuple[int, int]:
    """The version of the CUDA that compiles for an SM, (12, 9) say.

    Raises:
        CommandError: where it is not installed.
    """
    return _version(_library(sm))


def compile_cubin(source: str, options: Sequence[str], sm: int) -> bytes:
    """Machine code of a kernel's source for one SM; see :func:`compile_with_log`."""
    return compile_with_log(_library(sm), source, options, sm)[0]


def compile_with_log(library: ctypes.CDLL, source: str, options: Sequence[str], sm: int) -> tuple[bytes, str]:
    """Machine code of a kernel's source for one SM, and what the compiler says.

    Args:
        library: one of :func:`libraries`.
        source: CUDA C++ without includes.
        options: ``-D`` options and others.
        sm: compute capability times ten.

    Raises:
        CommandError: with the compiler's message.
    """
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        # The last two as CuPy compiles.
        every = [f"--gpu-architecture=sm_{sm}", *options, "-ftz=true", "--device-as-default-execution-space"]
        array = (ctypes.c_char_p * len(every))(*(option.encode() for option in every))
        status = library.nvrtcCompileProgram(program, len(every), array)
        log = _text(library, program, "ProgramLog").strip()
        if status != 0:
            raise CommandError(f"NVRTC refused a kernel for sm_{sm}: {log}")
        return _bytes(library, program, "CUBIN"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    return _bytes(library, program, what).rstrip(b"\0").decode(errors="replace")


def _check(status: int) -> None:
    if status != 0:
        raise CommandError(f"NVRTC failed with status {status}")


def disassemble(cubin: bytes) -> str:
    """Machine code as nvdisasm prints it (SM 7.5 and later).

    Raises:
        CommandError: where nvdisasm is not installed or refuses the code.
    """
    program = next(_places("bin", "nvdisasm"), None) or shutil.which("nvdisasm")
    if program is None:
        raise CommandError(f"nvdisasm was not found; {INSTALL}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(program), "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"nvdisasm refused the machine code: {done.stderr.strip()}")
    return done.stdout
