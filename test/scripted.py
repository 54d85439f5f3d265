"""Stand-ins that do what a test tells them to: a clock, processors that fail, engines that answer by number."""

from __future__ import annotations

import threading
import time

import numpy as np

from bnn_perception.backends import BackendError
from bnn_perception.classifier import Prediction

#: Seconds for another thread to do what takes it none.
PATIENCE = 20.0


def wait_until(condition, state=lambda: ""):
    """Wait for what another thread does; ``state`` tells how far it has come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, state()
        time.sleep(0.002)


class Clock:
    """A clock that moves only when it is told to. Stands in for the module ``time``."""

    def __init__(self, now=1000.0):
        self.now = now

    def advance(self, milliseconds):
        self.now += milliseconds * 1e-3

    def perf_counter(self):
        return self.now

    def monotonic(self):
        return self.now


class Machine:
    """Stands in for the processors: makes backends, breaks the GPU and mends it.

    Attributes:
        gpu_works, cpu_works: whether they do; the exception that the CPU raises may stand here instead.
        calls: backend, device and threads of each call of :meth:`make_backend`.
        open: backends that are not closed.
        closed: names of the backends that were closed, in order.
        before_making: called at the start of each :meth:`make_backend`; may wait or raise.
        favourites: the class that a backend answers with, by its name; without one all are equally likely.
        before_logits: called with the name of a backend before it evaluates; may wait or raise.
    """

    def __init__(self):
        self.gpu_works = True
        self.cpu_works = True
        self.open = []
        self.closed = []
        self.calls = []
        self.before_making = lambda: None
        self.favourites = {}
        self.before_logits = lambda name: None

    @property
    def made(self):
        return len(self.calls)

    def make_backend(self, model, backend, device, threads, report):
        self.calls.append((backend, device, threads))
        self.before_making()
        if device == "cuda" and not self.gpu_works:
            raise BackendError("no usable GPU")
        where = "cpu" if device == "cpu" or not self.gpu_works else "cuda"
        return Processor(self, f"{where}_{backend}", len(model.labels))


class Processor:
    """A backend without a net.

    Attributes:
        frames: height, width and encoding of each frame so far.
    """

    is_float = False
    times = {"inference": 0.0}  # noqa: RUF012

    def __init__(self, machine, name, classes):
        self.name = name
        self.device = name.partition("_")[0]
        self.device_name = f"a stand-in {self.device}"
        self.frames = []
        self._machine = machine
        self._classes = classes
        machine.open.append(self)

    def logits(self, frames):
        self.frames += [(*frame.pixels.shape[:2], frame.encoding) for frame in frames]
        if self.name.startswith("cuda") and not self._machine.gpu_works:
            raise BackendError("the GPU has fallen off the bus")
        if self.name.startswith("cpu") and self._machine.cpu_works is not True:
            raise self._machine.cpu_works or BackendError("the CPU has caught fire")
        self._machine.before_logits(self.name)
        logits = np.zeros((len(frames), self._classes), np.float32)
        if self.name in self._machine.favourites:
            logits[:, self._machine.favourites[self.name]] = 5
        return logits

    def close(self):
        self._machine.open.remove(self)
        self._machine.closed.append(self.name)


class NumberReader:
    """A classifier and its backend in one: the label of a frame is ``NAME:N``, N being the frame's first byte.

    Attributes:
        batches: the numbers of the frames of each call.
        regions: the region of each frame so far.
        faults: what the next calls raise, one each; None where a call goes well.
        gate: a call waits until it is set.
        entered: set when a call has begun.
        closed: how often it was closed.
        on_call: called at the end of each call, before it answers.
    """

    is_float = False
    device = "cpu"
    device_name = "a stand-in"

    def __init__(self, name="first"):
        self.name = name
        self.times = {"inference": 0.0}
        self.batches = []
        self.regions = []
        self.faults = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.closed = 0
        self.on_call = lambda: None

    @property
    def backend(self):
        return self

    def classify_with_scores(self, frames, top_k=1):
        assert not self.closed, f"{self.name} answers after it was closed"
        numbers = [int(frame.pixels[0, 0, 0]) for frame in frames]
        self.batches.append(numbers)
        self.regions += [frame.region for frame in frames]
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self.on_call()
        scores = np.float32([1 / (1 + rank) for rank in range(top_k)])
        return [
            ([Prediction(rank, f"{self.name}:{number}", 1 / (1 + rank)) for rank in range(top_k)], scores)
            for number in numbers
        ]

    def close(self):
        self.closed += 1
