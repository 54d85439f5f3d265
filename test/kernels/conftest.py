"""What the tests of the kernels share: the host that runs them, and a stand-in for the GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import host_module  # noqa: E402
from fake_cupy import FakeCupy, FakeDriver  # noqa: E402

from bnn_perception.backends.cuda import graph  # noqa: E402


@pytest.fixture(autouse=True)
def _host_compiler() -> None:
    reason = host_module.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FakeCupy]:
    """Makes a GPU that the shim runs, and puts it in the place of CuPy. Tiles tuned on this machine are not read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(graph, "driver", FakeDriver)

    def make(**options: object) -> FakeCupy:
        world = FakeCupy(**options)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "cupy", world)  # type: ignore[arg-type]
        return world

    return make
