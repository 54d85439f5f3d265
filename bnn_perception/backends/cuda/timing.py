"""Times on the GPU: CUDA events around many launches, and the clock around whole calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_perception.backends.cuda.backend import CudaBackend, Launch, enqueue
from bnn_perception.backends.cuda.specs import MAX_FRAMES
from bnn_perception.backends.cuda.upload import FrameUpload
from bnn_perception.frames.frame import Frame

#: Different batches that go round, so that no input is the last one's.
ROTATION = 8
#: Fewest and most measurements, and how long one may go on in between, seconds.
MIN_SAMPLES, MAX_SAMPLES, SECONDS = 5, 400, 0.25
#: Seconds of work before the first sample.
WARM_SECONDS = 0.15
#: Launches of one kernel in a row, where a kernel is timed by itself: at most so many, of about so many microseconds.
KERNEL_REPEATS, KERNEL_US = 32, 2000.0


@dataclass(frozen=True)
class Timing:
    """Microseconds of one batch.

    Attributes:
        median, p99: over the samples.
        samples: how many there are.
    """

    median: float
    p99: float
    samples: int

    @classmethod
    def of(cls, microseconds: Sequence[float]) -> Timing:
        median, p99 = np.percentile(microseconds, (50, 99))
        return cls(float(median), float(p99), len(microseconds))


def sample(measure: Callable[[], float], seconds: float | None = None, warm: float | None = None) -> Timing:
    """Take ``measure()`` (microseconds) as often as time and the limits above allow.

    Args:
        measure: takes one sample.
        seconds: for all of them, :data:`SECONDS` by default.
        warm: seconds for which samples are taken before, and thrown away: an idle GPU takes a while to raise its clock.
            By default :data:`WARM_SECONDS`.
    """
    end = time.perf_counter() + (WARM_SECONDS if warm is None else warm)
    measure()
    while time.perf_counter() < end:
        measure()
    values: list[float] = []
    end = time.perf_counter() + (SECONDS if seconds is None else seconds)
    while len(values) < MIN_SAMPLES or (len(values) < MAX_SAMPLES and time.perf_counter() < end):
        values.append(measure())
    return Timing.of(values)


class Stopwatch:
    """Two events around what is enqueued on a stream."""

    def __init__(self, cuda: Any, stream: Any) -> None:
        self._elapsed, self._stream = cuda.get_elapsed_time, stream
        self._before, self._after = cuda.Event(), cuda.Event()

    def microseconds(self, run: Callable[[], None]) -> float:
        """Time of what ``run`` enqueues, from the first to the last of it on the GPU."""
        self._before.record(self._stream)
        run()
        self._after.record(self._stream)
        self._stream.synchronize()
        return float(self._elapsed(self._before, self._after)) * 1e3


def captured(stream: Any, work: Callable[[], None]) -> Callable[[], None]:
    """What launches ``work`` as one graph."""
    stream.begin_capture()
    try:
        work()
    finally:
        graph = stream.end_capture()
    return lambda: graph.launch(stream)


def time_network(backend: CudaBackend, batches: Sequence[Sequence[Frame]], graph: bool = True) -> Timing:
    """GPU time of a batch from the uploaded frames to the logits; a batch may take several launches of the network.

    One sample evaluates each of ``batches`` once, one after the other, in one graph launch or, without a graph, kernel
    by kernel from Python; the sample is divided by their number.
    """
    chunks = [frames[i : i + MAX_FRAMES] for frames in batches for i in range(0, len(frames), MAX_FRAMES)]
    with backend.current():
        for count in {len(chunk) for chunk in chunks}:
            backend.reserve(count)
            backend.network.compile(count)
        uploads = [_uploaded(backend, chunk) for chunk in chunks]
        sequences = [
            backend.network.launches(upload.device, len(chunk))
            for upload, chunk in zip(uploads, chunks, strict=True)
        ]

        def work() -> None:
            for launches in sequences:
                enqueue(launches)

        work()  # CUDA loads a kernel at its first launch, which a capture may not do
        run = captured(backend.stream, work) if graph else work
        watch = Stopwatch(backend.gpu.cupy.cuda, backend.stream)
        return sample(lambda: watch.microseconds(run) / len(batches))


def _uploaded(backend: CudaBackend, frames: Sequence[Frame]) -> FrameUpload:
    """An upload buffer of its own, filled and on its way to the GPU."""
    upload = FrameUpload(backend.gpu, backend.model.input)
    bytes_, _ = upload.stage(frames)
    upload.copy(backend.stream, bytes_)
    return upload


def time_calls(evaluate: Callable[[Sequence[Frame]], Any], batches: Sequence[Sequence[Frame]]) -> Timing:
    """Wall time of whole calls, frames in the host's memory to logits there, as a node sees it."""
    calls = 0

    def measure() -> float:
        nonlocal calls
        frames = batches[calls % len(batches)]
        calls += 1
        start = time.perf_counter()
        evaluate(frames)
        return (time.perf_counter() - start) * 1e6

    return sample(measure)


def time_kernels(backend: CudaBackend, frames: Sequence[Frame]) -> list[tuple[Launch, Timing]]:
    """GPU time of each kernel by itself, repeated in one graph; its input is what the kernel before it has left, and in
    the caches as far as it fits.

    Args:
        backend: whose kernels.
        frames: of one launch, at most :data:`MAX_FRAMES`.
    """
    with backend.current():
        backend.reserve(len(frames))
        backend.network.compile(len(frames))
        upload = _uploaded(backend, frames)
        launches = backend.network.launches(upload.device, len(frames))
        watch = Stopwatch(backend.gpu.cupy.cuda, backend.stream)
        sample(lambda: watch.microseconds(lambda: enqueue(launches)), seconds=0)
        return [(launch, time_kernel(watch, backend.stream, launch)) for launch in launches]


def time_kernel(watch: Stopwatch, stream: Any, launch: Launch) -> Timing:
    """GPU time of one kernel, repeated in one graph. Its stream must be current."""
    launch.enqueue()  # CUDA loads a kernel at its first launch, which would count
    once = watch.microseconds(launch.enqueue)
    repeats = max(1, min(KERNEL_REPEATS, int(KERNEL_US / once)))
    run = captured(stream, lambda: enqueue([launch] * repeats))
    return sample(lambda: watch.microseconds(run) / repeats, SECONDS / 4, warm=0)
