"""Compiles an unmodified .cu with g++ against the shim and launches its kernels on the host.

Modes: ``plain`` runs in this process, ``apart`` the same code in a process of its own, for kernels that are known to be
wrong and may write anywhere; ``asan`` (AddressSanitizer and UndefinedBehaviorSanitizer) and ``tsan`` (ThreadSanitizer)
run each launch in a process of their own too. Builds are kept under build/host_kernels, by digest of
everything that goes into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

SHIM = Path(__file__).resolve().parent / "shim"
BUILD = Path(__file__).resolve().parents[2] / "build" / "host_kernels"

Argument: TypeAlias = "NDArray | np.generic"

#: Bytes before and after each array in plain mode; a kernel that writes there has left the array.
GUARD_BYTES = 256
GUARD = 0xA5

#: popcnt is an instruction of every x86-64 machine that runs CUDA; without the option g++ calls a library function.
_MACHINE = ("-mpopcnt",) if platform.machine() in ("x86_64", "AMD64") else ()
_COMMON = (
    *("g++", "-std=c++17", "-g1", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-psabi"),
    *_MACHINE,
)
#: Options of the kernels' code and of the runtime, which is told of the sanitizer but not compiled with it.
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("-O1",), ()),
    "apart": (("-O1",), ()),
    "asan": (
        (
            *(
                "-O1",
                "-fsanitize=address,undefined",
                "-fno-sanitize-recover=all",
                "-fsanitize-sections=cuda_shared",
            ),
            # Kernels are free to compute an address past an array that they do not read.
            *("-fno-sanitize=pointer-overflow", "-fno-omit-frame-pointer"),
        ),
        ("-DSHIM_ASAN",),
    ),
    "tsan": (("-O1", "-fsanitize=thread"), ("-DSHIM_TSAN",)),
}
_LINK = {"plain": (), "apart": (), "asan": ("-fsanitize=address,undefined",), "tsan": ("-fsanitize=thread",)}


class LaunchError(RuntimeError):
    """A launch that the shim, a sanitizer or a guard refused; the message holds its report."""


def why_not() -> str | None:
    """Why kernels cannot be run on this host, None where they can."""
    if os.name != "posix":
        return "the shim runs on POSIX systems"
    if shutil.which("g++") is None:
        return "g++ is not installed (apt install g++)"
    return None


class HostModule:
    """The kernels of one source with one set of options.

    Args:
        source: CUDA C++; its includes have been resolved.
        options: ``-D`` options of its geometry.
        mode: ``plain``, ``apart``, ``asan`` or ``tsan``.
    """

    def __init__(self, source: str, options: Sequence[str] = (), mode: str = "plain") -> None:
        self.mode = mode
        names = re.findall(
            r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^()]*\)\s+)?(\w+)\s*\(', source
        )
        # Dynamic shared memory is the launch's, not the file's.
        source = re.sub(
            r"extern\s+__shared__\s+(\w+)\s+(\w+)\s*\[\s*\]\s*;",
            r"\1* const \2 = static_cast<\1*>(shim::dynamic_shared());",
            source,
        )
        entries = "".join(f"SHIM_ENTRY({name})\n" for name in names)
        text = f'#include "cuda_shim.h"\n{source}\n{entries}'
        self._path = _build_kernel(text, tuple(options), mode)
        self._library = ctypes.CDLL(str(self._path)) if mode == "plain" else None

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument],
        *,
        shared_bytes: int = 0,
        seed: int = 0,
        poison: int = 0xCD,
    ) -> None:
        """Launch and wait. Arrays (contiguous) are passed by address and changed in place, NumPy scalars by value.

        Args:
            kernel: its name.
            grid, block: up to three numbers each.
            args: the kernel's arguments.
            shared_bytes: dynamic shared memory.
            seed: order of blocks and threads: 0 ascending, 1 descending, else shuffled.
            poison: byte that fills shared memory when a block starts.

        Raises:
            LaunchError: with the report.
        """
        dims = [*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3]]
        for arg in args:
            assert isinstance(arg, np.generic) or arg.flags.c_contiguous, "arrays must be contiguous"
        if self._library is not None:
            self._launch_here(kernel, dims, args, shared_bytes, seed, poison)
        else:
            self._launch_elsewhere(kernel, dims, args, shared_bytes, seed, poison)

    def _launch_here(
        self,
        kernel: str,
        dims: list[int],
        args: Sequence[Argument],
        shared_bytes: int,
        seed: int,
        poison: int,
    ) -> None:
        assert self._library is not None
        guarded = [_Guarded(arg) for arg in args]
        pointers = (ctypes.c_void_p * max(1, len(args)))(*[g.argument for g in guarded])
        launch = _Launch(
            (ctypes.c_uint * 3)(*dims[:3]),
            (ctypes.c_uint * 3)(*dims[3:]),
            shared_bytes,
            pointers,
            seed,
            poison,
        )
        entry = getattr(self._library, f"{kernel}__launch")
        entry.restype = ctypes.c_char_p
        error = entry(ctypes.byref(launch))
        if error:
            raise LaunchError(f"{kernel}: {error.decode()}")
        for index, g in enumerate(guarded):
            if not g.copy_back():
                raise LaunchError(f"{kernel}: wrote outside argument {index}")

    def _launch_elsewhere(
        self,
        kernel: str,
        dims: list[int],
        args: Sequence[Argument],
        shared_bytes: int,
        seed: int,
        poison: int,
    ) -> None:
        name = kernel.encode()
        parts = [
            struct.pack("<10I", *dims, shared_bytes, seed, poison, 0),
            struct.pack("<I", len(name)),
            name,
        ]
        parts.append(struct.pack("<I", len(args)))
        places = []
        for arg in args:
            parts.append(struct.pack("<IQ", int(isinstance(arg, np.ndarray)), arg.nbytes))
            places.append(sum(map(len, parts)))
            parts.append(arg.tobytes())
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "launch"
            file.write_bytes(b"".join(parts))
            environment = {
                **os.environ,
                "TSAN_OPTIONS": "halt_on_error=1",
                "UBSAN_OPTIONS": "print_stacktrace=1",
            }
            # The kernels leak nothing, and the fibers' stacks are not told to the leak checker.
            environment["ASAN_OPTIONS"] = "detect_leaks=0"
            done = subprocess.run(
                [str(self._path), str(file)], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise LaunchError(
                    f"{kernel} ({self.mode}, exit {done.returncode}): {done.stderr.strip()[:4000]}"
                )
            written = file.read_bytes()
        for arg, place in zip(args, places):
            if isinstance(arg, np.ndarray) and arg.flags.writeable:
                flat = np.frombuffer(written, dtype=arg.dtype, count=arg.size, offset=place)
                arg[...] = flat.reshape(arg.shape)


class _Launch(ctypes.Structure):
    """The twin of shim::Launch."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_bytes", ctypes.c_size_t),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("seed", ctypes.c_uint),
        ("poison", ctypes.c_uint),
    )


class _Guarded:
    """One argument, in plain mode: an array stands between two guards."""

    def __init__(self, value: Argument) -> None:
        self._value = value
        if isinstance(value, np.ndarray):
            # CUDA allocations are aligned to 256 bytes; the guards keep the array so.
            room = np.full(value.nbytes + 3 * GUARD_BYTES, GUARD, dtype=np.uint8)
            first = -room.ctypes.data % GUARD_BYTES
            self._room = room[first : first + value.nbytes + 2 * GUARD_BYTES]
            self._room[GUARD_BYTES:-GUARD_BYTES] = value.reshape(-1).view(np.uint8)
            self._pointer = ctypes.c_void_p(self._room.ctypes.data + GUARD_BYTES)
            self.argument = ctypes.addressof(self._pointer)
        else:
            self._scalar = np.array(value)
            self.argument = self._scalar.ctypes.data

    def copy_back(self) -> bool:
        """Whether the guards are whole; the array then holds what the kernel left."""
        if not isinstance(self._value, np.ndarray):
            return True
        if self._value.flags.writeable:
            flat = self._room[GUARD_BYTES:-GUARD_BYTES].view(self._value.dtype)
            self._value[...] = flat.reshape(self._value.shape)
        return bool(np.all(self._room[:GUARD_BYTES] == GUARD) and np.all(self._room[-GUARD_BYTES:] == GUARD))


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@cache
def _compiler() -> str:
    return subprocess.run(
        ["g++", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]


def _compile(command: list[str], target: Path) -> Path:
    """Build ``target`` unless it is there; several processes may want it at once."""
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LaunchError(f"g++ refused the kernel:\n{done.stderr[:6000]}")
        partial.replace(target)
    return target


@cache
def _runtime(mode: str) -> list[Path]:
    """The objects that every kernel of a mode is linked with."""
    objects = []
    for name in ("runtime", "replay") if mode != "plain" else ("runtime",):
        command = [*_COMMON, "-O2", *MODES[mode][1], "-I", str(SHIM), "-c", str(SHIM / f"{name}.cpp")]
        sources = [(SHIM / file).read_text() for file in (f"{name}.cpp", "cuda_shim.h")]
        objects.append(_compile(command, BUILD / f"{name}-{mode}-{_digest(_compiler(), command, sources)}.o"))
    return objects


def _build_kernel(text: str, options: tuple[str, ...], mode: str) -> Path:
    runtime = _runtime(mode)
    command = [*_COMMON, *MODES[mode][0], *_LINK[mode], *options, "-I", str(SHIM)]
    command += ["-shared"] if mode == "plain" else ["-rdynamic"]
    header = (SHIM / "cuda_shim.h").read_text()
    key = _digest(_compiler(), command, text, header, [path.name for path in runtime])
    target = BUILD / (f"{key}.so" if mode == "plain" else key)
    if target.exists():
        return target
    BUILD.mkdir(parents=True, exist_ok=True)
    source = BUILD / f"{key}-{os.getpid()}.cpp"
    source.write_text(text)
    try:
        return _compile([*command, str(source), *map(str, runtime), "-ldl"], target)
    finally:
        source.unlink()
