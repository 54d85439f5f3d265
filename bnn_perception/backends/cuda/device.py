"""The GPU: whether there is a usable one, what it is, and what its failures are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from bnn_perception.backends.cuda.specs import Target
from bnn_perception.backends.protocol import BackendError
from bnn_perception.errors import one_line

INSTALL = "pip install cupy-cuda12x (cupy-cuda13x for CUDA 13; on JetPack 6: 'cupy-cuda12x<14' 'numpy<2')"


#: CuPy compiles each kernel once and keeps it.
CACHE_REMEDY = "set CUPY_CACHE_DIR to a folder that can be written to"

NVRTC_REMEDY = "install the CUDA toolkit of its version, or with CuPy 14: pip install 'cupy-cuda12x[ctk]'"


def with_remedy(error: Exception) -> str:
    """What keeps a GPU that is there from being used, on one line, and what can be done."""
    reason = one_line(error, with_type=True)
    if "nvrtc" in reason.lower():
        return f"NVRTC, which compiles the kernels, is missing or broken ({reason}); {NVRTC_REMEDY}"
    if _is_of_a_file(error):
        return f"compiled kernels cannot be kept ({reason}); {CACHE_REMEDY}"
    return f"it failed while the kernels were made ready ({reason})"


def _is_of_a_file(error: BaseException) -> bool:
    """Whether an error is the system's and names a file; one of the loader of libraries names none."""
    return isinstance(error, OSError) and error.filename is not None


def why_not_installed() -> str | None:
    """That CuPy is not there, with the remedy; None where it is. Imports nothing, so that a callback can ask."""
    return None if find_spec("cupy") else f"CuPy is not installed: {INSTALL}"


def why_unusable() -> str | None:
    """Why CUDA cannot be used on this machine, with the remedy; None where it can."""
    try:
        import cupy
    except ImportError as error:
        if error.name == "cupy":
            return f"CuPy is not installed: {INSTALL}"
        return f"CuPy cannot be imported ({one_line(error, with_type=True)}); install it again: {INSTALL}"
    except Exception as error:  # a CuPy built for another NumPy or CUDA raises what its parts raise
        if _is_of_a_file(error):
            return f"CuPy cannot be imported ({one_line(error, with_type=True)}); {CACHE_REMEDY}"
        return f"CuPy cannot be imported ({one_line(error, with_type=True)}); install it again: {INSTALL}"
    try:
        # Not cupy.cuda.is_available(): some versions raise in it, and it hides the reason.
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"no usable NVIDIA driver ({one_line(error, with_type=True)}); install the driver of your GPU"
    return None if count > 0 else "no NVIDIA GPU was found"


class Gpu:
    """One GPU as a backend uses it: entered for every use, it turns the failures of CUDA into a :class:`BackendError`.

    After the first failure it is unusable: an error of a kernel stays with the process's CUDA context, and results
    of what ran before it cannot be trusted.

    Attributes:
        cupy: the module.
        name: of the GPU.
        target: what tiles are chosen for.
        integrated: whether CPU and GPU share one memory (Jetson).

    Raises:
        BackendError: where CUDA cannot be used, with the remedy.
    """

    def __init__(self, index: int = 0) -> None:
        reason = why_unusable()
        if reason is not None:
            raise BackendError(f"device cuda cannot be used: {reason}")
        import cupy

        self.cupy: Any = cupy
        self._failure: str | None = None
        self.name = f"GPU {index}"
        with self.failures():
            self._device = cupy.cuda.Device(index)
            attributes = self._device.attributes
            self.name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
            self.target = Target(int(self._device.compute_capability), int(attributes["MultiProcessorCount"]))
            self.integrated = bool(attributes["Integrated"]) and bool(attributes["CanMapHostMemory"])
        self.index = index

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Make this the current GPU of the thread.

        Raises:
            BackendError: where CUDA fails inside, or has failed before.
        """
        if self._failure is not None:
            raise BackendError(f"{self.name} cannot be used: {self._failure}; make the backend anew")
        with self.failures(), self._device:
            yield

    def close(self) -> None:
        """Refuse any further use."""
        self._failure = self._failure or "the backend is closed"

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turns failures of CUDA into a :class:`BackendError`."""
        cuda = self.cupy.cuda
        try:
            yield
        except (
            cuda.runtime.CUDARuntimeError,
            cuda.driver.CUDADriverError,
            cuda.memory.OutOfMemoryError,
            cuda.compiler.CompileException,
            cuda.nvrtc.NVRTCError,
        ) as error:
            self._failure = one_line(error, with_type=True)
            raise BackendError(f"{self.name} failed ({self._failure}); make the backend anew") from error
