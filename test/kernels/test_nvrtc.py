"""How the libraries of NVIDIA's compiler are found and loaded; a stand-in that is compiled here plays one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmark.gpu import nvrtc

#: Like the NVRTC of CUDA 13.0 it opens its built-in functions by name and has no path of its own to look along.
COMPILER = """
#include <dlfcn.h>
extern "C" int nvrtcVersion(int* major, int* minor) { *major = 99; *minor = 7; return 0; }
extern "C" int finds_its_builtins() { return dlopen("libnvrtc-builtins.so.99.7", RTLD_NOW) != nullptr; }
"""


def build(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "g++",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{path.name}",
        "-x",
        "c++",
        "-",
        "-o",
        str(path),
        "-ldl",
    ]
    subprocess.run(command, input=source, text=True, check=True)


def test_an_nvrtc_finds_the_built_in_functions_that_lie_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path / "lib" / "libnvrtc.so.99", COMPILER)
    build(tmp_path / "lib" / "libnvrtc-builtins.so.99.7", "")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    library = nvrtc.libraries.__wrapped__()[99]
    assert library.finds_its_builtins()


def test_an_nvrtc_without_such_a_file_is_loaded_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path / "lib" / "libnvrtc.so.98", COMPILER.replace("99", "98"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    assert not nvrtc.libraries.__wrapped__()[98].finds_its_builtins()
