"""CUDA graphs: everything between two points of a stream as one launch, with the time of its stages."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.protocol import BackendError

#: CU_EVENT_RECORD_EXTERNAL: the event becomes a node of the graph, and is recorded at each launch of it.
_EXTERNAL = 1


def driver() -> Any:
    """The CUDA driver's library.

    Raises:
        BackendError: where it is missing or has no cuEventRecordWithFlags (before CUDA 11.1).
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
        library.cuEventRecordWithFlags.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"the NVIDIA driver cannot be used ({error}); CUDA 11.4 or later is needed"
        ) from None
    return library


Stage = tuple[str, Callable[[], None]]


class StagedGraph:
    """A graph of named stages.

    CuPy records events into a graph only as dependencies, without a time, so the driver is asked directly.

    Args:
        gpu: where it runs.
        stream: that is captured, and on which the graph is launched. The caller has made both current.
        stages: name and function that enqueues the stage's work on the stream; it may neither allocate nor wait.
    """

    def __init__(self, gpu: Gpu, stream: Any, stages: Sequence[Stage]) -> None:
        cuda = gpu.cupy.cuda
        self._elapsed = cuda.get_elapsed_time
        self._stream = stream
        self._names = [name for name, _ in stages]
        self._events = [cuda.Event() for _ in range(len(stages) + 1)]
        library = driver()
        stream.begin_capture()
        try:
            self._record(library, self._events[0])
            for (_, enqueue), event in zip(stages, self._events[1:]):
                enqueue()
                self._record(library, event)
        finally:
            # Also after a failure: a stream that is left capturing would refuse everything.
            self._graph = stream.end_capture()

    def _record(self, library: Any, event: Any) -> None:
        status = library.cuEventRecordWithFlags(event.ptr, self._stream.ptr, _EXTERNAL)
        if status != 0:
            raise BackendError(f"the NVIDIA driver refused an event in a graph (CUDA error {status})")

    def launch(self) -> None:
        """Launch the graph on its stream, without waiting."""
        self._graph.launch(self._stream)

    def times(self) -> dict[str, float]:
        """Milliseconds of each stage of the last launch, which has been waited for."""
        return {
            name: float(self._elapsed(before, after))
            for name, before, after in zip(self._names, self._events[:-1], self._events[1:])
        }
