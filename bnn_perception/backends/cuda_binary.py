"""Evaluates the binary net on an NVIDIA GPU: one CUDA graph from the camera's bytes to the logits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import BackendError
from bnn_perception.cuda.compile import Kernels
from bnn_perception.cuda.device import Gpu
from bnn_perception.cuda.graph import StagedGraph
from bnn_perception.cuda.memory import SharedBuffer
from bnn_perception.cuda.network import Array, Step, network
from bnn_perception.cuda.specs import MAX_FRAMES
from bnn_perception.cuda.tiles import TileTable
from bnn_perception.cuda.upload import FrameUpload
from bnn_perception.model import Model
from bnn_perception.preprocess import Frame

#: Graphs that are kept, one for each number of frames and size of the upload; a camera needs one, and one more for each
#: number of frames that come together.
MAX_GRAPHS = 64


class CudaBinaryBackend:
    """Evaluates a model with the kernels of ``kernels/``; see :class:`bnn_perception.backends.Backend`.

    Frames go to the GPU as they are (only their regions), in page-locked memory; all that follows is one graph
    launch, and one wait at its end. Batches of more than :data:`MAX_FRAMES` frames are cut.

    Args:
        model: to evaluate.
        tiles: how the layers are cut; by default the tables that ship and that were tuned on this machine.
        gpu: which one, as CUDA counts.

    Raises:
        BackendError: where there is no usable GPU, or it fails.
    """

    name = "cuda_binary"

    def __init__(self, model: Model, tiles: TileTable | None = None, gpu: int = 0) -> None:
        self.model = model
        self.times: dict[str, float] = {}
        self._gpu = Gpu(gpu)
        self.device_name = self._gpu.name
        try:
            steps = network(model, self._gpu.target, TileTable.load() if tiles is None else tiles)
        except ValueError as error:
            raise BackendError(str(error)) from None
        self._graphs: dict[tuple[int, int], StagedGraph] = {}
        with self._gpu():
            self._stream = self._gpu.cupy.cuda.Stream(non_blocking=True)
        with self._current():
            self._upload = FrameUpload(self._gpu, model.input)
            self._network = _DeviceNetwork(self._gpu, steps)
            # Now, not at the first frame: compile, allocate and find out whether the GPU works.
            self._network.reserve(1)
            self._network.compile(1)
            self._stream.synchronize()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the GPU and the stream current: all that is enqueued, allocations included, keeps its order."""
        with self._gpu(), self._stream:
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
        with self._current():
            start = time.perf_counter()
            graph = self._graph(count, self._stage(frames))
            staged = (time.perf_counter() - start) * 1e3
            graph.launch()
            self._stream.synchronize()
            for stage, milliseconds in graph.times().items():
                times[stage] = times.get(stage, 0.0) + milliseconds
            times["upload"] += staged
            return self._network.logits.host[:count].copy()

    def _stage(self, frames: Sequence[Frame]) -> int:
        """Make the host's side ready; returns the bytes to upload."""
        grown = self._network.reserve(len(frames))
        bytes_, larger = self._upload.stage(frames)
        if grown or larger:
            self._graphs.clear()  # they hold the addresses of what was there before
        return bytes_

    def _graph(self, count: int, bytes_: int) -> StagedGraph:
        graph = self._graphs.pop((count, bytes_), None)
        if graph is None:
            self._network.compile(count)  # which may allocate, so not while capturing
            if len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph = StagedGraph(
                self._gpu,
                self._stream,
                [
                    ("upload", lambda: self._upload.copy(self._stream, bytes_)),
                    ("preprocess", lambda: self._network.preprocess(self._upload.device, count)),
                    ("inference", lambda: self._network.infer(count)),
                    ("download", lambda: self._network.download(self._stream, count)),
                ],
            )
        self._graphs[count, bytes_] = graph  # the one used last stands last
        return graph

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        with self._current():
            self._upload.copy(self._stream, self._stage([frame]))
            self._network.preprocess(self._upload.device, 1)
            self._network.infer(1)
            outputs = list(self._network.outputs())
        name, pixels = outputs[0]
        height, width, channels = self.model.input.shape
        yield name, pixels[..., None].view(np.uint8).reshape(height, width, 4)[..., :channels]
        yield from outputs[1:]

    def close(self) -> None:
        # Dropping the last reference frees GPU memory, streams and graphs.
        for resource in ("_graphs", "_network", "_upload", "_stream"):
            self.__dict__.pop(resource, None)
        self._gpu.close()


class _DeviceNetwork:
    """The steps of a network with their arrays on the GPU."""

    def __init__(self, gpu: Gpu, steps: Sequence[Step]) -> None:
        self._gpu = gpu
        self._steps = steps
        self._kernels = Kernels(gpu)
        self._constants = [[gpu.cupy.asarray(constant) for constant in step.constants] for step in steps]
        self._frames = 0

    def reserve(self, frames: int) -> bool:
        """Have arrays for a number of frames; returns whether they had to be made anew."""
        if frames <= self._frames:
            return False
        self._frames = 1 << (frames - 1).bit_length()
        zeros = self._gpu.cupy.zeros

        def on_gpu(array: Array) -> Any:
            return zeros((self._frames, *array.shape), array.dtype)

        *inner, last = self._steps
        self.logits = SharedBuffer(self._gpu, (self._frames, *last.output.shape), last.output.dtype)
        self._outputs = [*(on_gpu(step.output) for step in inner), self.logits.device]
        self._scratch = [[on_gpu(array) for array in step.scratch] for step in self._steps]
        return True

    def compile(self, frames: int) -> None:
        """Have the kernels for a number of frames."""
        for step in self._steps:
            self._kernels[step.spec(frames)]

    def preprocess(self, upload: Any, frames: int) -> None:
        """Enqueue the preprocessing on the current stream."""
        self._launch(0, upload, frames)

    def infer(self, frames: int) -> None:
        """Enqueue the layers on the current stream."""
        for index in range(1, len(self._steps)):
            self._launch(index, self._outputs[index - 1], frames)

    def _launch(self, index: int, source: Any, frames: int) -> None:
        spec = self._steps[index].spec(frames)
        args = (source, *self._constants[index], self._outputs[index], *self._scratch[index])
        self._kernels[spec](spec.grid, spec.block, args)

    def download(self, stream: Any, frames: int) -> None:
        """Enqueue the copy of the logits to the host."""
        self.logits.download(stream, self.logits.host[:frames].nbytes)

    def outputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Name and output of each step for the first frame."""
        for step, output in zip(self._steps, self._outputs):
            yield step.name, output[0].get()
