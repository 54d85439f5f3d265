"""Compiles the kernels for the very SM that is there, by NVRTC; CuPy keeps the results on disk."""

from __future__ import annotations

from typing import Any

from bnn_perception.backends.cuda.device import Gpu, with_remedy
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.specs import KernelSpec
from bnn_perception.backends.protocol import BackendError


class Kernels:
    """The compiled kernels of one backend, by source and geometry."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._compiled: dict[tuple[str, tuple[str, ...]], Any] = {}

    def __getitem__(self, spec: KernelSpec) -> Any:
        """The kernel of a spec, compiled when it is first asked for: ``kernel(grid, block, args)`` launches it.

        Raises:
            BackendError: where it cannot be compiled or kept, though CUDA has not failed.
        """
        key = spec.kernel, spec.options
        if key not in self._compiled:
            try:
                self._compiled[key] = self._compile(spec)
            except self._gpu.errors:  # for the GPU to say
                raise
            except Exception as error:  # without NVRTC, without a place to write to
                raise BackendError(f"device cuda cannot be used: {with_remedy(error)}") from error
        return self._compiled[key]

    def _compile(self, spec: KernelSpec) -> Any:
        code = kernel_source(spec.kernel)
        module = self._gpu.cupy.RawModule(code=code, options=spec.options, backend="nvrtc")
        return module.get_function(spec.kernel)
