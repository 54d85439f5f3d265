"""``compile``: what it says of the kernels and where they are kept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("numba", reason="numba is not installed")

import numba

from bnn_perception import native
from bnn_perception.__main__ import main
from bnn_perception.cli import compile_


def twice(number):
    return 2 * number


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


def test_a_cache_that_is_full_or_damaged_costs_the_time_to_compile(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(native, "_is_warned", False)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
        assert [native.compiled(twice)(number) for number in (1, 1.5)] == [2, 3]
    (record,) = caplog.records  # once
    assert record.levelname == "WARNING"
    assert "No space left on device" in record.getMessage()
    assert not list(tmp_path.rglob("*.nbc"))

    caplog.clear()
    monkeypatch.setattr(native, "_is_warned", False)
    assert native.compiled(twice)(1) == 2
    (kept,) = tmp_path.rglob("*.nbc")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert native.compiled(twice)(1) == 2
    assert len(caplog.records) == 1
    found = native.compiled(twice)
    assert found(1) == 2
    assert found.stats.cache_path


def test_a_device_that_is_not_there_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["compile", "--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("bnn_perception compile: device cuda cannot be used: ")
    assert main(["compile", "--model", "/nowhere"]) == 1
    assert "/nowhere" in capsys.readouterr().err


def test_a_cache_without_a_directory_is_told_once_with_the_remedy(monkeypatch, caplog):
    """It costs as long as a cold start, at every start."""
    plain = numba.njit

    def without_directory(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'twice': no locator available for file '/ro/native.py'")
        return plain(**options)

    monkeypatch.setattr(native.numba, "njit", without_directory)
    monkeypatch.setattr(native, "_is_warned", False)
    assert [native.compiled(twice)(number) for number in (1, 2)] == [2, 4]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "the CPU's kernels are compiled at every start, for numba finds no directory to write to; "
            "set NUMBA_CACHE_DIR to a folder that can be written to",
        )
    ]
