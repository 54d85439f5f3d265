"""Compiles the kernels for the very SM that is there, by NVRTC; CuPy keeps the results on disk."""

from __future__ import annotations

from typing import Any

from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.specs import KernelSpec


class Kernels:
    """The compiled kernels of one backend, by source and geometry."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._compiled: dict[tuple[str, tuple[str, ...]], Any] = {}

    def __getitem__(self, spec: KernelSpec) -> Any:
        """The kernel of a spec, compiled when it is first asked for: ``kernel(grid, block, args)`` launches it."""
        key = spec.kernel, spec.options
        if key not in self._compiled:
            module = self._gpu.cupy.RawModule(
                code=kernel_source(spec.kernel), options=spec.options, backend="nvrtc"
            )
            self._compiled[key] = module.get_function(spec.kernel)
        return self._compiled[key]
