"""The binary net on the CPU: a program of :mod:`bnn_perception.native` and the threads that run it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cpu.processor import device_name, thread_count
from bnn_perception.backends.cpu.program import Program
from bnn_perception.backends.cpu.threads import Workers
from bnn_perception.backends.protocol import BackendError, Device, StageTimer
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare
from bnn_perception.net.model import Model

#: Multiply-accumulates of a net for each thread that it pays off to wake: a desktop core does these in a third of a
#: millisecond, and to wake another takes about a tenth of one.
MACS_PER_THREAD = 100_000_000


class CpuBinaryBackend:
    """Evaluates a binary model on the CPU, one frame after another, each on all threads.

    The calling thread is one of the threads. The others sleep outside the interpreter, so that they never need
    its lock, and are woken once a frame; a frame does not wait for one that is late. Two backends share nothing and
    may run at the same time.
    """

    name = "cpu_binary"
    is_float = False
    device: Device = "cpu"

    def __init__(self, model: Model, threads: int = 0) -> None:
        """Lay out the model, start the threads and evaluate a black frame, so that no frame pays for compilation.

        Args:
            model: to evaluate.
            threads: to run on, 0 for as many as pay off.

        Raises:
            BackendError: where numba is missing.
        """
        try:
            from bnn_perception import native
        except ImportError as error:
            raise BackendError(
                f"backend binary needs numba on the CPU ({error}); pip install numba"
            ) from None
        threads = thread_count(threads, useful=1 + model.macs // MACS_PER_THREAD)
        self.model = model
        self.device_name = device_name(threads)
        self.times: dict[str, float] = {}
        self.program = Program(model, threads, native)
        self.workers = Workers(self.program, self.program.steps, threads)
        self._finalizer = weakref.finalize(self, self.workers.stop)
        height, width, _ = model.input.shape
        self.logits([Frame(np.zeros((height, width, 3), np.uint8))])

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        self.times = {"preprocess": 0.0, "inference": 0.0}
        rows = np.empty((len(frames), len(self.model.labels)), np.float32)
        for frame, row in zip(frames, rows):
            row[:] = self._evaluate(frame)
        return rows

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        self._evaluate(frame)
        yield "input", self.program.pixels.copy()
        for name, output in self.program.outputs.items():
            yield name, output.copy()

    def close(self) -> None:
        self._finalizer()

    def _evaluate(self, frame: Frame) -> NDArray[np.float32]:
        if not self._finalizer.alive:
            raise BackendError("the backend is closed")
        timer = StageTimer()
        prepare(frame, self.model.input, out=self.program.pixels)
        timer.mark("preprocess")
        self.workers.evaluate()
        timer.mark("inference")
        for stage, milliseconds in timer.milliseconds.items():
            self.times[stage] = self.times.get(stage, 0.0) + milliseconds
        return self.program.outputs[self.model.layers[-1].name]
