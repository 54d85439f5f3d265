"""``compile``: what it says of the kernels and where they are kept."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from bnn_perception import native
from bnn_perception.__main__ import main
from bnn_perception.cli import compile_


def test_kernels_that_are_kept_are_found(capsys):
    assert main(["compile", "--device", "cpu"]) == 0  # compiles them where nobody has yet
    capsys.readouterr()
    line = (
        "import sys; from bnn_perception.__main__ import main; sys.exit(main(['compile', '--device', 'cpu']))"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said.startswith("cpu_binary is ready after ")
    assert said.endswith(f"found in {native.evaluate.stats.cache_path}")


@pytest.mark.parametrize(
    ("path", "misses", "said"),
    [
        ("/cache", 1, ": compiled into /cache"),
        ("/cache", 0, ": found in /cache"),
        (
            None,
            1,
            ": compiled, and kept nowhere, for numba finds no directory to write to; set NUMBA_CACHE_DIR",
        ),
    ],
)
def test_it_says_whether_they_were_there(monkeypatch, path, misses, said):
    stats = SimpleNamespace(cache_path=path, cache_misses=misses)
    monkeypatch.setattr(native, "evaluate", SimpleNamespace(stats=stats))
    assert compile_._cache("cpu") == said


def test_a_device_that_is_not_there_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["compile", "--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("bnn_perception compile: device cuda cannot be used: ")
    assert main(["compile", "--model", "/nowhere"]) == 1
    assert "/nowhere" in capsys.readouterr().err
