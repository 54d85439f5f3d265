"""A stand-in for CuPy that runs the real kernels on the host, through the shim.

It has what the CUDA backends use of CuPy, and is stricter than a GPU where that shows a mistake:

- A stream does nothing before it is waited for, so a result that is read too early is not there yet.
- Copies must stay inside allocations, and on the right side.
- Everything but asking for GPUs takes place while a GPU is current, so that it is done on that one.
- While a stream captures, allocations and waits are refused, and so is a kernel that was not launched before: it may
  have to be loaded.
- New device memory holds garbage unless it was asked to be 0.
- An injected error is sticky, as a kernel's error is on a GPU: every later call fails too.
"""

from __future__ import annotations

import ctypes
import itertools
import time
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from host_module import HostModule, LaunchError

GARBAGE = 0xDB


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818 (names as in CuPy and CUDA)
    pass


class NVRTCError(RuntimeError):
    pass


class _Bytes(np.ndarray):
    """Keeps the memory that it is of, as views of a real allocation do."""

    memory: Memory


class Memory:
    """Device or page-locked memory."""

    def __init__(self, world: FakeCupy, size: int, device: bool, mapped: bool = False) -> None:
        self.bytes = np.full(size, GARBAGE, dtype=np.uint8).view(_Bytes)
        self.bytes.memory = self
        self.size = size
        self.ptr = self.bytes.ctypes.data
        self.device = device
        self.mapped = mapped
        world.allocations.add(self)


class Event:
    def __init__(self) -> None:
        self.ptr = next(_handles)
        self.time: float | None = None
        _objects[self.ptr] = self

    def record(self, stream: Stream) -> None:
        stream.enqueue(self.now)

    def now(self) -> None:
        self.time = time.perf_counter()


class Graph:
    def __init__(self, world: FakeCupy, work: list[Callable[[], None]]) -> None:
        self.world = world
        self.work = work

    def launch(self, stream: Stream) -> None:
        self.world.check("graph")
        self.world.graph_launches += 1
        stream.pending += self.work


class Stream:
    def __init__(self, world: FakeCupy, non_blocking: bool = False) -> None:
        assert non_blocking, "a blocking stream would wait for the default stream"
        world.check("stream")
        self.world = world
        self.ptr = next(_handles)
        self.pending: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        _objects[self.ptr] = self

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.pending if self.captured is None else self.captured).append(work)

    def begin_capture(self) -> None:
        self.world.check("capture")
        assert self.captured is None
        self.captured = []

    def end_capture(self) -> Graph:
        assert self.captured is not None
        self.world.check("capture")
        work, self.captured = self.captured, None
        self.world.captures += 1
        return Graph(self.world, work)

    def synchronize(self) -> None:
        if self.captured is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        self.world.waits += 1
        while self.pending:
            self.world.check("run")
            self.pending.pop(0)()
        self.world.check("run")

    def __enter__(self) -> Stream:
        self.world.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.world.streams.pop() is self


class Array:
    """cupy.ndarray."""

    def __init__(self, world: FakeCupy, host: np.ndarray, memory: Memory) -> None:
        self.world = world
        self.host = host
        self.memory = memory
        self.shape, self.dtype, self.nbytes = host.shape, host.dtype, host.nbytes
        self.data = SimpleNamespace(ptr=host.ctypes.data)

    def __getitem__(self, key: Any) -> Array:
        return Array(self.world, self.host[key], self.memory)

    def reshape(self, *shape: int) -> Array:
        return Array(self.world, self.host.reshape(*shape), self.memory)

    def get(self) -> np.ndarray:
        self.world.stream.synchronize()
        return self.host.copy()


class RawModule:
    def __init__(self, world: FakeCupy, code: str, options: tuple[str, ...], backend: str) -> None:
        assert backend == "nvrtc"
        assert isinstance(options, tuple)
        world.check("compile")
        world.modules += 1
        self.world = world
        try:
            self.module = HostModule(code, options, world.mode)
        except LaunchError as error:
            raise CompileException(str(error)) from None

    def get_function(self, name: str) -> Callable[..., None]:
        loaded = False

        def launch(grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
            nonlocal loaded
            self.world.check("launch")
            if self.world.stream.captured is not None and not loaded:
                raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {name} is not loaded")
            loaded = True
            arrays = [arg.host if isinstance(arg, Array) else arg for arg in args]

            def work() -> None:
                try:
                    self.module.launch(name, grid, block, arrays, seed=next(self.world.seeds))
                except LaunchError as error:
                    if self.world.mode != "plain":
                        raise  # the sanitizer's report, for the test to show
                    self.world.error = CUDARuntimeError(f"cudaErrorLaunchFailure: {error}")
                    raise self.world.error from None

            self.world.stream.enqueue(work)

        return launch


class FakeCupy:
    """The module ``cupy``.

    Args:
        mode: of the shim.
        sm: compute capability times ten.
        multiprocessors: how many SMs the GPU has.
        integrated: whether CPU and GPU share one memory.

    Attributes:
        faults: an error for each kind of call (``launch``, ``run``, ``alloc``, ``capture``, ``graph``, ``compile``,
            ``stream``, ``device``), raised at the next such call, and at every call after it.
        attributes: of every GPU.
        captures, graph_launches, waits, modules: how often that happened.
    """

    def __init__(
        self, mode: str = "plain", sm: int = 87, multiprocessors: int = 16, integrated: bool = False
    ) -> None:
        self.__version__ = "13.6.0"
        self.mode = mode
        self.faults: dict[str, Exception] = {}
        self.error: Exception | None = None
        self.allocations: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.streams: list[Stream] = []
        self.devices: list[_Device] = []
        self.captures = self.graph_launches = self.waits = self.modules = 0
        self.device_count = 1
        self.seeds = itertools.cycle((0, 1, 7))
        self.attributes = attributes = {
            "MultiProcessorCount": multiprocessors,
            "Integrated": int(integrated),
            "CanMapHostMemory": 1,
        }
        self.RawModule = lambda code, options=(), backend="nvrtc": RawModule(self, code, options, backend)
        self.cuda = SimpleNamespace(
            Device=lambda index: _Device(self, index, attributes, sm),
            Stream=lambda non_blocking=False: Stream(self, non_blocking),
            Event=Event,
            get_elapsed_time=self._elapsed,
            PinnedMemory=self._pinned,
            PinnedMemoryPointer=lambda memory, offset: memoryview(memory.bytes)[offset:],
            UnownedMemory=self._unowned,
            MemoryPointer=self._pointer,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            compiler=SimpleNamespace(CompileException=CompileException),
            nvrtc=SimpleNamespace(NVRTCError=NVRTCError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=self._device_count,
                getDeviceProperties=lambda index: {"name": b"Shim" if index == 0 else b"Shim %d" % index},
                memGetInfo=lambda: (1 << 30, 8 << 30),
                driverGetVersion=lambda: 12060,
                runtimeGetVersion=lambda: 12090,
                memcpyAsync=self._memcpy_async,
                memcpyHostToDevice=1,
                memcpyDeviceToHost=2,
                hostAllocMapped=2,
            ),
        )

    @property
    def stream(self) -> Stream:
        """The current one. What runs on the default stream is not ordered with a non-blocking one: nothing may."""
        assert self.streams, "something was enqueued on the default stream"
        return self.streams[-1]

    def check(self, call: str) -> None:
        """Raise the fault injected into a kind of call, and from then on at every call."""
        assert call == "device" or self.devices, f"no GPU was made current: {call}"
        if self.error is None and call in self.faults:
            self.error = self.faults[call]
        if self.error is not None:
            raise self.error

    def _allocate(self, size: int) -> Memory:
        self.check("alloc")
        if self.stream.captured is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: allocation")
        return Memory(self, size, device=True)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        array = self.ndarray(shape, dtype, self._allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize))
        self.stream.enqueue(lambda: array.host.fill(0))
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.ndarray(shape, dtype, self._allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize))

    def asarray(self, values: np.ndarray) -> Array:
        array = self.ndarray(values.shape, values.dtype, self._allocate(values.nbytes))
        array.host[...] = values
        return array

    def ndarray(self, shape: tuple[int, ...], dtype: Any, memptr: Memory) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return Array(self, memptr.bytes.view(np.ndarray)[:size].view(dtype).reshape(shape), memptr)

    def _pinned(self, size: int, flags: int = 0) -> Memory:
        self.check("alloc")
        # hostAllocPortable, hostAllocMapped and hostAllocWriteCombined
        if not 0 <= flags <= 7:
            raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
        return Memory(self, size, device=False, mapped=bool(flags & self.cuda.runtime.hostAllocMapped))

    def _unowned(self, ptr: int, size: int, owner: Memory, device_id: int) -> Memory:
        assert owner.mapped, "the GPU has no address for memory that is not mapped"
        assert (ptr, size, device_id) == (owner.ptr, owner.size, self.devices[-1].id)
        return owner

    @staticmethod
    def _pointer(memory: Memory, offset: int) -> Memory:
        assert offset == 0
        return memory

    def _device_count(self) -> int:
        self.check("device")
        return self.device_count

    def _elapsed(self, before: Event, after: Event) -> float:
        if before.time is None or after.time is None:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event was not recorded")
        return (after.time - before.time) * 1e3

    def covers(self, pointer: int, size: int) -> bool:
        """Whether these bytes are the GPU's."""
        return any(
            m.device and m.ptr <= pointer and pointer + size <= m.ptr + m.size for m in self.allocations
        )

    def _memcpy_async(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self.check("copy")
        sides = {1: (True, False), 2: (False, True)}[kind]
        for pointer, device in zip((to, source), sides):
            inside = [m for m in self.allocations if m.ptr <= pointer and pointer + size <= m.ptr + m.size]
            if not inside or inside[0].device != device:
                raise CUDARuntimeError(
                    "cudaErrorInvalidValue: a copy leaves its allocation or is on the wrong side"
                )
        _objects[stream].enqueue(lambda: ctypes.memmove(to, source, size))


class _Device:
    def __init__(self, world: FakeCupy, index: int, attributes: dict[str, int], sm: int) -> None:
        world.check("device")
        self.world = world
        self.id = index
        self.attributes = attributes
        self.compute_capability = str(sm)

    def __enter__(self) -> None:
        self.world.devices.append(self)

    def __exit__(self, *_: object) -> None:
        assert self.world.devices.pop() is self


class FakeDriver:
    """libcuda.so.1, as far as it is called directly."""

    def cuEventRecordWithFlags(  # noqa: N802
        self, event: int, stream: int, flags: int
    ) -> int:
        if flags != 1 or _objects[stream].captured is None:
            return 1  # CUDA_ERROR_INVALID_VALUE: an external event outside of a capture
        _objects[event].record(_objects[stream])
        return 0


def find_stream(ptr: int) -> Stream:
    """The stream of a handle."""
    stream = _objects[ptr]
    assert isinstance(stream, Stream)
    return stream


_handles = itertools.count(0x1000)
_objects: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
