"""What the CUDA backends share: frames up, one launch, logits down, whatever the network between them is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.graph import Stage, StagedGraph
from bnn_perception.backends.cuda.memory import SharedBuffer
from bnn_perception.backends.cuda.specs import MAX_FRAMES, KernelSpec
from bnn_perception.backends.cuda.upload import FrameUpload
from bnn_perception.backends.protocol import Device
from bnn_perception.frames.frame import Frame
from bnn_perception.net.model import Model

#: Graphs that are kept, one for each number of frames and size of the upload; a camera needs one, and one more for each
#: number of frames that come together.
MAX_GRAPHS = 64


@dataclass(frozen=True)
class Launch:
    """One kernel of a network, ready to be enqueued on the current stream.

    Attributes:
        layer: that it belongs to.
        spec: the kernel and its geometry; None for a matrix product by cuBLAS.
        enqueue: does it; neither allocates nor waits.
    """

    layer: str
    spec: KernelSpec | None
    enqueue: Callable[[], None]


class DeviceNetwork(Protocol):
    """A network with its arrays on the GPU. The GPU and the stream are current in every call.

    Attributes:
        logits: (frames, classes) float32, what the last kernel writes.
    """

    logits: SharedBuffer

    def reserve(self, frames: int) -> bool:
        """Have arrays for a number of frames; returns whether they had to be made anew."""
        ...

    def compile(self, frames: int) -> None:
        """Do what cannot be done while a graph is captured: compile, load, allocate."""
        ...

    def launches(self, upload: Any, frames: int) -> Sequence[Launch]:
        """From the upload buffer to the logits, the preprocessing first."""
        ...

    def outputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Name and value of the input and of each layer's output for the first frame, as far as they are kept."""
        ...

    def close(self) -> None:
        """Give back what the garbage collector does not."""
        ...


def padded_count(count: int) -> int:
    """The number of frames that a batch is filled up to, by an eighth at most.

    A graph is captured for each number of frames, and a detector finds another number of objects in every image.
    """
    granule = 1 << max(0, (count - 1).bit_length() - 4)
    return min(MAX_FRAMES, -(-count // granule) * granule)


class CudaBackend:
    """Evaluates a network on the GPU; see :class:`bnn_perception.backends.Backend`.

    Frames go to the GPU as they are (only their regions), in page-locked memory; all that follows is one graph
    launch, and one wait at its end. Batches of more than :data:`MAX_FRAMES` frames are cut.

    Args:
        model: to evaluate.
        build: makes the network, given the GPU and the stream.
        gpu: which one, as CUDA counts.
        graph: False to enqueue kernel by kernel, for comparison.

    Attributes:
        gpu, stream, network: what it runs on, for benchmarks; inside :meth:`current` only.

    Raises:
        BackendError: where there is no usable GPU, or it fails.
    """

    name = "cuda"
    is_float = False
    device: Device = "cuda"

    def __init__(
        self, model: Model, build: Callable[[Gpu, Any], DeviceNetwork], gpu: int = 0, graph: bool = True
    ) -> None:
        self.model = model
        self.times: dict[str, float] = {}
        self.gpu = Gpu(gpu)
        self.device_name = self.gpu.name
        self._sequence: type[StagedGraph] | type[StagedCalls] = StagedGraph if graph else StagedCalls
        self._sequences: dict[tuple[int, int], StagedGraph | StagedCalls] = {}
        with self.gpu():
            self.stream = self.gpu.cupy.cuda.Stream(non_blocking=True)
        with self.current():
            self._upload = FrameUpload(self.gpu, model.input)
            self.network = build(self.gpu, self.stream)
            # Now, not at the first frame: compile, allocate and find out whether the GPU works.
            self.network.reserve(1)
            self.network.compile(1)
            self.stream.synchronize()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU and the stream current: all that is enqueued, allocations included, keeps its order."""
        with self.gpu(), self.stream:
            yield

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        times: dict[str, float] = {}
        rows = []
        for first in range(0, len(frames), MAX_FRAMES):
            rows.append(self._evaluate(frames[first : first + MAX_FRAMES], times))
        self.times = times
        return np.concatenate(rows)

    def _evaluate(self, frames: Sequence[Frame], times: dict[str, float]) -> NDArray[np.float32]:
        count = len(frames)
        padded = padded_count(count)
        with self.current():
            start = time.perf_counter()
            batch = [*frames, *[frames[-1]] * (padded - count)]
            sequence = self._prepared(padded, self._stage(batch))
            staged = (time.perf_counter() - start) * 1e3
            sequence.launch()
            self.stream.synchronize()
            for stage, milliseconds in sequence.times().items():
                times[stage] = times.get(stage, 0.0) + milliseconds
            times["upload"] += staged
            return self.network.logits.host[:count].copy()

    def _stage(self, frames: Sequence[Frame]) -> int:
        """Make the host's side ready; returns the bytes to upload."""
        self.reserve(len(frames))
        bytes_, larger = self._upload.stage(frames)
        if larger:
            self._sequences.clear()  # they hold the address of the buffer that was there before
        return bytes_

    def reserve(self, frames: int) -> None:
        """Have arrays for a number of frames; inside :meth:`current`, and before the network is used directly."""
        if self.network.reserve(frames):
            self._sequences.clear()  # they hold the addresses of the arrays that were there before

    def _prepared(self, count: int, bytes_: int) -> StagedGraph | StagedCalls:
        sequence = self._sequences.pop((count, bytes_), None)
        if sequence is None:
            self.network.compile(count)  # which may allocate, so not while capturing
            if len(self._sequences) >= MAX_GRAPHS:
                del self._sequences[next(iter(self._sequences))]
            preprocess, *layers = self.network.launches(self._upload.device, count)
            logits = self.network.logits
            # Once as single launches: CUDA loads a kernel when it is first launched, which a capture may not do.
            self._upload.copy(self.stream, bytes_)
            enqueue([preprocess, *layers])
            sequence = self._sequence(
                self.gpu,
                self.stream,
                [
                    ("upload", lambda: self._upload.copy(self.stream, bytes_)),
                    ("preprocess", preprocess.enqueue),
                    ("inference", lambda: enqueue(layers)),
                    ("download", lambda: logits.download(self.stream, logits.host[:count].nbytes)),
                ],
            )
        self._sequences[count, bytes_] = sequence  # the one used last stands last
        return sequence

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        with self.current():
            self._upload.copy(self.stream, self._stage([frame]))
            enqueue(self.network.launches(self._upload.device, 1))
            outputs = list(self.network.outputs())
        name, pixels = outputs[0]
        height, width, channels = self.model.input.shape
        yield name, pixels[..., None].view(np.uint8).reshape(height, width, 4)[..., :channels]
        yield from outputs[1:]

    def close(self) -> None:
        network = self.__dict__.pop("network", None)
        if network is not None:
            network.close()
        # Dropping the last reference frees GPU memory, streams and graphs.
        for resource in ("_sequences", "_upload", "stream"):
            self.__dict__.pop(resource, None)
        self.gpu.close()


def enqueue(launches: Sequence[Launch]) -> None:
    """Enqueue one after the other on the current stream."""
    for launch in launches:
        launch.enqueue()


class StagedCalls:
    """What :class:`StagedGraph` is, without a graph: each launch enqueues every kernel anew."""

    def __init__(self, gpu: Gpu, stream: Any, stages: Sequence[Stage]) -> None:
        cuda = gpu.cupy.cuda
        self._elapsed = cuda.get_elapsed_time
        self._stream = stream
        self._stages = stages
        self._events = [cuda.Event() for _ in range(len(stages) + 1)]

    def launch(self) -> None:
        """Enqueue all stages on the stream, without waiting."""
        self._events[0].record(self._stream)
        for (_, function), event in zip(self._stages, self._events[1:]):
            function()
            event.record(self._stream)

    def times(self) -> dict[str, float]:
        """Milliseconds of each stage of the last launch, which has been waited for."""
        return {
            name: float(self._elapsed(before, after))
            for (name, _), before, after in zip(self._stages, self._events[:-1], self._events[1:])
        }
