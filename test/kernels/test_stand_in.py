"""The stand-in has nothing that CuPy has not: where CuPy is installed, GPU or not, every name is looked up there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cublas import FakeCublas
from fake_cupy import Array, Event, FakeCupy, Graph, Stream

from bnn_perception.backends import BackendError
from bnn_perception.backends.cuda import cublas


def names(namespace: Any, path: str) -> Iterator[str]:
    """Dotted names of what a namespace of the stand-in holds."""
    for name, value in vars(namespace).items():
        if isinstance(value, SimpleNamespace):
            yield from names(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


@pytest.fixture
def real() -> Any:
    """The real CuPy."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    return importlib.import_module("cupy")


def test_every_name_is_cupys(real: Any, fake_gpu: Callable[..., FakeCupy]) -> None:
    for path in names(fake_gpu().cuda, "cuda"):
        value = real
        for part in path.split("."):
            value = getattr(value, part)  # AttributeError names it


def test_every_method_is_cupys(real: Any) -> None:
    own = {"enqueue", "now"}  # of the stand-in alone
    for fake, cls in (
        (Stream, real.cuda.Stream),
        (Event, real.cuda.Event),
        (Graph, real.cuda.graph.Graph),
        (Array, real.ndarray),
    ):
        for name in vars(fake):
            if not name.startswith("_") and name not in own:
                assert hasattr(cls, name), f"{cls.__name__}.{name}"
    for name in ("zeros", "empty", "asarray", "ndarray", "RawModule"):
        assert hasattr(real, name)


def test_cublas_is_found_and_has_every_function(real: Any) -> None:
    """Without a GPU the library still loads; a handle is then refused."""
    try:
        library = cublas.load_library()
    except BackendError as error:
        pytest.skip(str(error))
    for name in vars(FakeCublas):
        if name.startswith("cublas"):
            assert getattr(library, name).argtypes is not None


def test_importing_the_backends_does_not_import_cupy() -> None:
    """In a process of its own, for other tests may have imported it."""
    modules = "bnn_perception.backends.cuda.float", "bnn_perception.backends.cuda.binary"
    code = f"import sys, {', '.join(modules)}; sys.exit('cupy' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
