"""Makes the backend that the user asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from bnn_perception.backends.protocol import Backend, BackendError
from bnn_perception.frames.frame import Frame
from bnn_perception.net.model import Model

BACKENDS = ("binary", "float", "reference")
DEVICES = ("auto", "cpu", "cuda")


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


def warn(reason: str) -> None:
    """Log why ``auto`` took the CPU; without any set-up of logging it goes to standard error."""
    logging.getLogger("bnn_perception").warning("device auto took the CPU: %s", reason)


def make_backend(
    model: Model,
    backend: str = "binary",
    device: str = "auto",
    threads: int = 0,
    report: Callable[[str], None] = warn,
) -> Backend:
    """Make the backend that the user asked for; there is no silent fallback.

    Args:
        model: to evaluate.
        backend: ``binary``, ``float`` (the float twin) or ``reference``.
        device: ``cuda``, ``cpu``, or ``auto``: CUDA where there is a usable GPU, otherwise the CPU.
            ``reference`` always runs on the CPU.
        threads: of the CPU backends; 0 takes as many as pay off.
        report: with ``auto``, called with the reason where there is a GPU that cannot be used, and the CPU is taken.

    Raises:
        BackendError: where the choice cannot be met, with the remedy.
    """
    check_choice(model, backend, device)
    if backend == "reference":
        from bnn_perception.backends.reference import ReferenceBackend

        return ReferenceBackend(model)
    if device == "cuda":
        return _make_cuda(model, backend)
    if device == "auto":
        from bnn_perception.backends.cuda.device import find_obstacle

        obstacle = find_obstacle()
        if obstacle is None:
            try:
                return _make_cuda(model, backend)
            except BackendError as error:
                report(str(error))
        elif obstacle.is_fault:
            report(obstacle.reason)
    if backend == "binary":
        from bnn_perception.backends.cpu.binary import CpuBinaryBackend

        return CpuBinaryBackend(model, threads)
    from bnn_perception.backends.cpu.float import CpuFloatBackend

    return CpuFloatBackend(model, threads)


def _make_cuda(model: Model, backend: str) -> Backend:
    """The CUDA backend, which has evaluated a frame; whatever keeps it from that is a BackendError."""
    made: Backend | None = None
    try:
        if backend == "binary":
            from bnn_perception.backends.cuda.binary import CudaBinaryBackend

            made = CudaBinaryBackend(model)
        else:
            from bnn_perception.backends.cuda.float import CudaFloatBackend

            made = CudaFloatBackend(model)
        # A driver without a function, a kernel that does not load: these show only when something runs.
        made.logits([Frame(np.zeros((model.input.height, model.input.width, 3), np.uint8))])
        made.times = {}
    except Exception as error:
        if made is not None:
            with suppress(Exception):  # what a broken backend says at its end is not the reason
                made.close()
        if isinstance(error, BackendError):
            raise
        # Without a part of CUDA, without a place for compiled kernels: CuPy raises errors of many types.
        from bnn_perception.backends.cuda.device import with_remedy

        raise BackendError(f"device cuda cannot be used: {with_remedy(error)}") from error
    return made
