"""Makes the backend that the user asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bnn_perception.backends.protocol import Backend, BackendError
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
    if device == "auto" and _gpu_is_there():
        try:
            return _make_cuda(model, backend)
        except BackendError as error:
            report(str(error))
    if backend == "binary":
        from bnn_perception.backends.cpu.binary import CpuBinaryBackend

        return CpuBinaryBackend(model, threads)
    from bnn_perception.backends.cpu.float import CpuFloatBackend

    return CpuFloatBackend(model, threads)


def _gpu_is_there() -> bool:
    from bnn_perception.backends.cuda.device import why_unusable

    return why_unusable() is None


def _make_cuda(model: Model, backend: str) -> Backend:
    """The CUDA backend; whatever keeps it from being made is a BackendError."""
    try:
        if backend == "binary":
            from bnn_perception.backends.cuda.binary import CudaBinaryBackend

            return CudaBinaryBackend(model)
        from bnn_perception.backends.cuda.float import CudaFloatBackend

        return CudaFloatBackend(model)
    except BackendError:
        raise
    # Without a part of CUDA, without a place for compiled kernels: CuPy raises errors of many types.
    except Exception as error:
        from bnn_perception.backends.cuda.device import with_remedy

        raise BackendError(f"device cuda cannot be used: {with_remedy(error)}") from error
