"""Matrix products by cuBLAS that may be captured in a CUDA graph.

CuPy's own wrappers refuse to run while a stream is capturing (``NotImplementedError`` in cupy.cuda.cublas.setStream, in
CuPy 13 and 14 alike), although cuBLAS itself allows it. So the library that CuPy has loaded is called directly.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.protocol import BackendError

# From cublas_api.h and library_types.h of CUDA 11.0 to 13; the values have not changed.
_OP_N, _OP_T = 0, 1
_REAL_TYPES = {"float32": 0, "float16": 2}  # CUDA_R_32F, CUDA_R_16F
_COMPUTE_32F = 68
_GEMM_DEFAULT = -1

#: What cuBLAS recommends for Hopper, the most of any GPU; a graph must not share the one that cuBLAS has by itself.
_WORKSPACE_BYTES = 32 << 20

_Handle = ctypes.c_void_p
_Pointer = ctypes.c_void_p
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (ctypes.POINTER(_Handle),),
    "cublasDestroy_v2": (_Handle,),
    "cublasSetStream_v2": (_Handle, _Pointer),
    "cublasSetWorkspace_v2": (_Handle, _Pointer, ctypes.c_size_t),
    "cublasGemmEx": (
        *(_Handle, ctypes.c_int, ctypes.c_int),  # handle, transa, transb
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),  # m, n, k
        ctypes.POINTER(ctypes.c_float),  # alpha
        *(_Pointer, ctypes.c_int, ctypes.c_int),  # A, its type, lda
        *(_Pointer, ctypes.c_int, ctypes.c_int),  # B, its type, ldb
        ctypes.POINTER(ctypes.c_float),  # beta
        *(_Pointer, ctypes.c_int, ctypes.c_int),  # C, its type, ldc
        *(ctypes.c_int, ctypes.c_int),  # compute type, algorithm
    ),
}


def load_library() -> ctypes.CDLL:
    """The cuBLAS that CuPy uses.

    Raises:
        BackendError: where CuPy has none.
    """
    try:
        from cupy.cuda import cublas, runtime  # noqa: F401  # importing cublas loads the library
    except ImportError as error:
        raise BackendError(
            f"cuBLAS cannot be loaded ({error}); install it: pip install nvidia-cublas-cu12"
        ) from None
    # The library's major version is CUDA's. RTLD_NOLOAD: the one that is loaded, wherever CuPy has found it.
    name = f"libcublas.so.{runtime.runtimeGetVersion() // 1000}"
    try:
        library = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError as error:
        raise BackendError(f"CuPy has not loaded {name} ({error}); install CuPy 13 or 14") from None
    for function, arguments in _PROTOTYPES.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = ctypes.c_int
    return library


class Cublas:
    """A handle of cuBLAS on one stream, with a workspace of its own.

    Products of float32 are sums of float32 products; TF32 is not used. Products of float16 are summed in float32.
    """

    def __init__(self, gpu: Gpu, stream: Any) -> None:
        self._library = load_library()
        self._handle = _Handle()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        # Setting the stream resets the workspace, so in this order.
        self._call("cublasSetStream_v2", self._handle, stream.ptr)
        self._workspace = gpu.cupy.empty((_WORKSPACE_BYTES,), "uint8")
        self._call("cublasSetWorkspace_v2", self._handle, self._workspace.data.ptr, _WORKSPACE_BYTES)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)

    def multiply(self, a: Any, b: Any, out: Any) -> None:
        """Enqueue ``out = a @ b.T`` on the stream.

        Args:
            a: (m, k), b: (n, k), out: (m, n), on the GPU, contiguous, all float32 or all float16.
        """
        (m, k), n = a.shape, b.shape[0]
        kind = _REAL_TYPES[a.dtype.name]
        # cuBLAS counts by columns: row-major (m, n) is its n x m matrix, here b.T' @ a'.
        self._call(
            "cublasGemmEx",
            *(self._handle, _OP_T, _OP_N, n, m, k, ctypes.byref(self._one)),
            *(b.data.ptr, kind, k, a.data.ptr, kind, k, ctypes.byref(self._zero), out.data.ptr, kind, n),
            *(_COMPUTE_32F, _GEMM_DEFAULT),
        )

    def close(self) -> None:
        """Give the handle back. Calling it again does nothing."""
        if self._handle:
            self._library.cublasDestroy_v2(self._handle)
            self._handle = _Handle()

    def _call(self, function: str, *args: Any) -> None:
        status = getattr(self._library, function)(*args)
        if status != 0:
            raise BackendError(f"cuBLAS: {function} failed with status {status}; make the backend anew")
