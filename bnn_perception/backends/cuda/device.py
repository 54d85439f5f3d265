"""The GPU: whether there is a usable one, what it is, and what its failures are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnn_perception.backends.cuda.specs import Target
from bnn_perception.backends.protocol import BackendError
from bnn_perception.errors import one_line

INSTALL = "pip install cupy-cuda12x (cupy-cuda13x for CUDA 13; on JetPack 6: 'cupy-cuda12x<14' 'numpy<2')"

#: CuPy compiles each kernel once and keeps it.
CACHE_REMEDY = "set CUPY_CACHE_DIR to a folder that can be written to"

NVRTC_REMEDY = "install the CUDA toolkit of its version, or with CuPy 14: pip install 'cupy-cuda12x[ctk]'"

NO_GPU = "no NVIDIA GPU was found; in a container the GPU must be passed on (docker run --gpus all)"

#: NVIDIA's number among the makers of PCI devices.
NVIDIA = "0x10de"

PCI_DEVICES = Path("/sys/bus/pci/devices")

#: Of the driver on a PC, of that on a Jetson, and of Windows' under WSL.
DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")


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


@dataclass(frozen=True)
class Obstacle:
    """What keeps CUDA from being used.

    Attributes:
        reason: with the remedy, on one line.
        is_fault: whether something is out of order. A machine without a GPU, or without CuPy, is not.
    """

    reason: str
    is_fault: bool = False


def why_not_installed() -> str | None:
    """That CuPy is not there, with the remedy; None where it is. Imports nothing, so that a callback can ask."""
    spec = find_spec("cupy")
    if spec is None:
        return f"CuPy is not installed: {INSTALL}"
    if spec.loader is None or spec.origin is None:  # a folder of that name without an __init__.py
        return _remains(spec.submodule_search_locations)
    return None


def _remains(folders: Iterable[str] | None) -> str:
    return f"CuPy is not installed: {', '.join(folders or ())} is what is left of one, delete it; {INSTALL}"


def why_unusable() -> str | None:
    """Why CUDA cannot be used on this machine, with the remedy; None where it can."""
    obstacle = find_obstacle()
    return None if obstacle is None else obstacle.reason


def find_obstacle() -> Obstacle | None:
    """What keeps CUDA from being used on this machine; None where it can be, as far as is known before it is."""
    try:
        import cupy
    except ImportError as error:
        if error.name == "cupy":
            return Obstacle(f"CuPy is not installed: {INSTALL}")
        return _not_imported(error)
    except Exception as error:  # a CuPy built for another NumPy or CUDA raises what its parts raise
        return _not_imported(error)
    if not hasattr(cupy, "cuda"):
        return Obstacle(_remains(getattr(cupy, "__path__", None)))
    try:
        # Not cupy.cuda.is_available(): some versions raise in it, and it hides the reason.
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        # Without any driver CUDA says that the driver is too old.
        if "cudaErrorNoDevice" in str(error) or not is_nvidia_there():
            return Obstacle(NO_GPU)
        cause = one_line(error, with_type=True)
        reason = f"no usable NVIDIA driver ({cause}); install the driver of your GPU, or a newer one"
        return Obstacle(reason, is_fault=True)
    return None if count > 0 else Obstacle(NO_GPU)


def _not_imported(error: Exception) -> Obstacle:
    cause = one_line(error, with_type=True)
    reason = f"CuPy cannot be imported ({cause}); install it again: {INSTALL}"
    if _is_of_a_file(error):
        reason = f"CuPy cannot be imported ({cause}); {CACHE_REMEDY}"
    return Obstacle(reason, is_fault=is_nvidia_there())


def is_nvidia_there() -> bool:
    """Whether the system shows a device of NVIDIA's, with or without a driver."""
    if any(Path(device).exists() for device in DEVICE_FILES):
        return True
    for vendor in PCI_DEVICES.glob("*/vendor"):
        with suppress(OSError):
            if vendor.read_text(encoding="ascii").strip() == NVIDIA:
                return True
    return False


class Gpu:
    """One GPU as a backend uses it: entered for every use, it turns the failures of CUDA into a :class:`BackendError`.

    After the first failure it is unusable: an error of a kernel stays with the process's CUDA context, and results
    of what ran before it cannot be trusted.

    Attributes:
        cupy: the module.
        errors: the types that CuPy raises where CUDA fails.
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
        self.errors: tuple[type[Exception], ...] = (
            cupy.cuda.runtime.CUDARuntimeError,
            cupy.cuda.driver.CUDADriverError,
            cupy.cuda.memory.OutOfMemoryError,
            cupy.cuda.compiler.CompileException,
            cupy.cuda.nvrtc.NVRTCError,
        )
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
        try:
            yield
        except self.errors as error:
            self._failure = one_line(error, with_type=True)
            raise BackendError(f"{self.name} failed ({self._failure}); make the backend anew") from error
