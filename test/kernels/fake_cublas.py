"""libcublas, as far as it is called: products by NumPy, in the order of the stand-in's streams."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from fake_cupy import FakeCupy, find_stream

_TYPES = {0: np.float32, 2: np.float16}  # CUDA_R_32F, CUDA_R_16F


class FakeCublas:
    """The library. What a call is given is checked as cuBLAS would: pointers, leading dimensions, order of calls."""

    def __init__(self, world: FakeCupy) -> None:
        self.world = world
        self.streams: dict[int, Any] = {}
        self.workspaces: dict[int, int] = {}
        self.products = 0

    def cublasCreate_v2(self, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 0xB1A5 + len(self.streams)
        self.streams[handle._obj.value] = None
        return 0

    def cublasDestroy_v2(self, handle: ctypes.c_void_p) -> int:  # noqa: N802
        del self.streams[handle.value]
        return 0

    def cublasSetStream_v2(self, handle: ctypes.c_void_p, stream: int) -> int:  # noqa: N802
        self.streams[handle.value] = find_stream(stream)
        self.workspaces.pop(handle.value, None)  # as the documentation says
        return 0

    def cublasSetWorkspace_v2(self, handle: ctypes.c_void_p, pointer: int, size: int) -> int:  # noqa: N802
        assert self.world.covers(pointer, size)
        self.workspaces[handle.value] = size
        return 0

    def cublasGemmEx(self, handle: ctypes.c_void_p, *args: Any) -> int:  # noqa: N802
        (
            transa,
            transb,
            m,
            n,
            k,
            alpha,
            a,
            a_type,
            lda,
            b,
            b_type,
            ldb,
            beta,
            c,
            c_type,
            ldc,
            compute,
            algorithm,
        ) = args
        # Only what the package asks for: c = a' * b, columns first, sums in float32, the default algorithm.
        if (transa, transb, alpha._obj.value, beta._obj.value, compute, algorithm) != (
            1,
            0,
            1.0,
            0.0,
            68,
            -1,
        ):
            return 7  # CUBLAS_STATUS_INVALID_VALUE
        if handle.value not in self.workspaces or lda < k or ldb < k or ldc < m:
            return 7
        left, right = self._columns(a, a_type, k, m, lda), self._columns(b, b_type, k, n, ldb)
        out = self._columns(c, c_type, m, n, ldc)

        def work() -> None:
            out[...] = left.astype(np.float32).T @ right.astype(np.float32)

        self.products += 1
        self.streams[handle.value].enqueue(work)
        return 0

    def _columns(self, pointer: int, kind: int, rows: int, columns: int, leading: int) -> np.ndarray:
        """A column-major matrix in the GPU's memory."""
        dtype = np.dtype(_TYPES[kind])
        size = leading * columns * dtype.itemsize
        assert self.world.covers(pointer, size)
        memory = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint8)), (size,))
        return memory.view(dtype).reshape(columns, leading)[:, :rows].T
