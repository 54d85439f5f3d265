"""Backends evaluate a model. One file each, one protocol, one :func:`make_backend`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnn_perception.frames.preprocess import Frame
from bnn_perception.net.model import Model

BACKENDS = ("binary", "float", "reference")
DEVICES = ("auto", "cpu", "cuda")


class BackendError(RuntimeError):
    """A backend that cannot be made, or that failed while it ran and must be made anew.

    Results of the call that raised it do not exist; nothing is ever answered from a failed device.
    """


class Backend(Protocol):
    """Evaluates one model. Owns its weights and scratch memory; used by one thread at a time.

    Attributes:
        name: which backend this is, ``cpu_binary`` say.
        is_float: whether its logits are those of the float twin, not of the binary net.
        device_name: of the processor it runs on, for logs and diagnostics.
        times: milliseconds of each stage of the last :meth:`logits`, in order (``preprocess``, ``inference``; a
            GPU adds ``upload`` and the like).
    """

    name: str
    is_float: bool
    device_name: str
    times: dict[str, float]

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """Evaluate 1 or more frames, which may differ in size and encoding.

        Returns:
            (len(frames), classes) float32.

        Raises:
            BackendError: where the device fails.
        """
        ...

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        """The input and every layer's output of one frame, by name, for tests.

        ``input``: (H, W, C) uint8; layers: (height, width, words) uint32; the last: (classes,) float32. A layer that
        has a stream is followed by ``<layer>.stream``, (height, width, channels) int32, where the backend keeps it:
        what no shortcut reads may be left out. The float backends yield the input and the last only.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory. Calling it again does nothing."""
        ...


class StageTimer:
    """Takes the time of consecutive stages."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """End ``stage`` here."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self._last = now


def check_choice(model: Model, backend: str, device: str) -> None:
    """Check what can be known about a choice without making the backend.

    Raises:
        BackendError: where the choice cannot be met, with the remedy.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend '{backend}' is not one of {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise BackendError(f"device '{device}' is not one of {', '.join(DEVICES)}")
    if backend == "float" and model.float_twin is None:
        raise BackendError(f"model '{model.name}' has no float twin (float.onnx); use backend binary")
    if backend == "reference" and device == "cuda":
        raise BackendError("backend reference runs on the CPU only; use device cpu")


def make_backend(model: Model, backend: str = "binary", device: str = "auto", threads: int = 0) -> Backend:
    """Make the backend that the user asked for; there is no silent fallback.

    Args:
        model: to evaluate.
        backend: ``binary``, ``float`` (the float twin) or ``reference``.
        device: ``cuda``, ``cpu``, or ``auto``: CUDA where there is a usable GPU, otherwise the CPU.
            ``reference`` always runs on the CPU.
        threads: of the CPU backends; 0 takes as many as pay off.

    Raises:
        BackendError: where the choice cannot be met, with the remedy.
    """
    check_choice(model, backend, device)
    if backend == "reference":
        from bnn_perception.backends.reference import ReferenceBackend

        return ReferenceBackend(model)
    if device == "cuda" or (device == "auto" and _cuda_is_usable()):
        if backend == "binary":
            from bnn_perception.backends.cuda.binary import CudaBinaryBackend

            return CudaBinaryBackend(model)
        from bnn_perception.backends.cuda.float import CudaFloatBackend

        return CudaFloatBackend(model)
    if backend == "binary":
        from bnn_perception.backends.cpu.binary import CpuBinaryBackend

        return CpuBinaryBackend(model, threads)
    from bnn_perception.backends.cpu.float import CpuFloatBackend

    return CpuFloatBackend(model, threads)


def _cuda_is_usable() -> bool:
    from bnn_perception.backends.cuda.device import why_unusable

    return why_unusable() is None
