"""Buffers that the host and the GPU share: page-locked memory and a copy on the GPU, or, where both use one memory
(Jetson), page-locked memory that is mapped and needs no copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bnn_perception.backends.cuda.device import Gpu


class SharedBuffer:
    """An array on both sides.

    Attributes:
        host: as NumPy sees it.
        device: as the kernels see it.
        mapped: whether both are the same memory.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        cupy = gpu.cupy
        cuda = cupy.cuda
        self.mapped = gpu.integrated
        bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = cuda.PinnedMemory(bytes_, cuda.runtime.hostAllocMapped if self.mapped else 0)
        self._runtime = cuda.runtime
        self.host: NDArray[Any] = np.frombuffer(cuda.PinnedMemoryPointer(memory, 0), np.uint8, bytes_)
        self.host[...] = 0
        self.host = self.host.view(dtype).reshape(shape)
        if self.mapped:
            # With unified addressing, which every 64-bit platform has, the GPU uses the host's address.
            unowned = cuda.UnownedMemory(memory.ptr, bytes_, memory, gpu.index)
            self.device = cupy.ndarray(shape, dtype, cuda.MemoryPointer(unowned, 0))
        else:
            self.device = cupy.zeros(shape, dtype)

    def upload(self, stream: Any, bytes_: int) -> None:
        """Bring the first bytes to the GPU, in the order of ``stream``."""
        self._copy(
            stream, self.device.data.ptr, self.host.ctypes.data, bytes_, self._runtime.memcpyHostToDevice
        )

    def download(self, stream: Any, bytes_: int) -> None:
        """Bring the first bytes to the host, in the order of ``stream``."""
        self._copy(
            stream, self.host.ctypes.data, self.device.data.ptr, bytes_, self._runtime.memcpyDeviceToHost
        )

    def _copy(self, stream: Any, to: int, source: int, bytes_: int, kind: int) -> None:
        if not self.mapped:
            self._runtime.memcpyAsync(to, source, bytes_, kind, stream.ptr)
