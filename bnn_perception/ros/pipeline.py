"""The inference thread: takes the newest frame of every waiting camera as one batch and answers it.

Frames come from the executor's thread, engines from the loading thread; both are taken here, between two batches,
so that no frame is lost over a new engine and none is answered by half of one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import BackendError
from bnn_perception.classifier import Prediction
from bnn_perception.errors import one_line
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.quality import seen
from bnn_perception.ros.boxes_msg import regions
from bnn_perception.ros.engine import Engine
from bnn_perception.ros.image_msg import UNPACK, RefusedFrame, Region
from bnn_perception.ros.latency import LatencyWindow
from bnn_perception.ros.parameters import InputSettings, Settings
from bnn_perception.ros.worker import Worker

#: Seconds that the inference thread may be busy with one thing. An engine was warmed up, so that no batch takes long.
PATIENCE = 10.0


@dataclass(frozen=True)
class Arrival:
    """A message as it came, and the settings of that moment.

    Attributes:
        camera: its place in ``image_topics``.
        message: sensor_msgs Image or CompressedImage.
        settings: how the frame is to be read and answered, whatever is set while it waits.
        received: time.perf_counter() at the entry of the callback.
        age: milliseconds from the header's stamp to ``received``; None where stamp and clock have nothing in common.
        detections: vision_msgs Detection2DArray of the image, whose boxes are answered; None where all of it is.
    """

    camera: int
    message: Any
    settings: Settings
    received: float
    age: float | None
    detections: Any = None

    def age_at(self, moment: float) -> float:
        """Milliseconds from the header's stamp to a moment, from its coming where the stamp says nothing of its age.

        Args:
            moment: as ``received``.
        """
        return (self.age or 0.0) + (moment - self.received) * 1e3


@dataclass(frozen=True)
class Answer:
    """A frame that was answered.

    Attributes:
        arrival: the message.
        frame: its pixels, in the message's memory unless they had to be decoded.
        engine: what answered.
        regions: of the frame that were answered: of each box, or the one that is looked at; None for a box that holds
            no pixel.
        predictions: labels of the image, or of each of its boxes, as the settings let them through, best first; none
            where all scores are below the threshold, or a box holds no pixel.
        scores: of all classes, (classes,) float32, of the image or of each box that holds a pixel.
    """

    arrival: Arrival
    frame: Frame
    engine: Engine
    regions: Sequence[Region | None]
    predictions: Sequence[Sequence[Prediction]]
    scores: Sequence[NDArray[np.float32]]


class Sink(Protocol):
    """What the inference thread tells the node, all of it in the inference thread."""

    def answered(self, answer: Answer) -> None:
        """These are the labels of a frame."""

    def refused(self, arrival: Arrival, error: RefusedFrame) -> None:
        """A frame cannot be used."""

    def engine_started(self, engine: Engine) -> None:
        """From now on this engine answers."""

    def engine_failed(self, engine: Engine, reason: str) -> None:
        """This engine is not used any longer; its frames got no answer."""

    def unexpected(self, line: str) -> None:
        """An exception that nobody foresaw has cost what the line says."""


@dataclass
class Counts:
    """Frames of a camera since the start. Each number is written by one thread.

    ``received`` = ``classified`` + ``skipped`` + ``stale`` + ``loading`` + ``failed`` + all of ``refused`` + those on
    their way.

    Attributes:
        skipped: not looked at because they came sooner than ``max_rate`` lets them.
        stale: dropped because a newer frame of the same camera came.
        loading: dropped unread because the engine was still being loaded.
        failed: without an answer because the engine failed and no other was there yet, or because of an exception that
            nobody foresaw.
        refused: by reason.
        boxes: answered, those that hold no pixel among them.
        unusable: boxes that hold no pixel of their image.
    """

    received: int = 0
    classified: int = 0
    skipped: int = 0
    stale: int = 0
    loading: int = 0
    failed: int = 0
    boxes: int = 0
    unusable: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def settled(self) -> int:
        """Frames of batches that have come to an end."""
        return self.classified + self.failed + sum(self.refused.values())

    @classmethod
    def total(cls, parts: Sequence[Counts]) -> Counts:
        """The sums of the counts of several cameras."""
        numbers = {name: sum(getattr(part, name) for part in parts) for name in _NUMBERS}
        return cls(**numbers, refused=sum((part.refused for part in parts), Counter()))


_NUMBERS = [entry.name for entry in fields(Counts) if entry.name != "refused"]


class Pipeline:
    """The inference thread and what it shares with the others. It runs from :meth:`start` to :meth:`stop`.

    Args:
        sink: the node.
        retire: called with each engine that was replaced.
        cameras: how many there are.
        name: of the thread.

    Attributes:
        cameras: what became of the frames of each.
        latency: of all stages, over the frames of all cameras.
        latencies: of each camera: the last of the stages that is known, ``total`` or ``node``.
        pictures: what the net saw of a frame of each camera, (height, width, channels) uint8: the first that was
            answered after ``wants_picture`` was set. The frame itself is not kept, for its memory is the next one's.
        wants_picture: of which cameras a picture is to be taken.
        engine: what answers now; None until the first comes, and after a fault until a new one comes.
        is_loading: whether no engine has come yet since the start, or the last :meth:`release`.
    """

    def __init__(
        self, sink: Sink, retire: Callable[[Engine], None], cameras: int, name: str = "inference"
    ) -> None:
        self.cameras = [Counts() for _ in range(cameras)]
        self.latency = LatencyWindow()
        self.latencies = [LatencyWindow() for _ in range(cameras)]
        self.pictures: list[NDArray[np.uint8] | None] = [None] * cameras
        self.wants_picture = [False] * cameras
        self.engine: Engine | None = None
        self.is_loading = True
        self._sink = sink
        self._retire = retire
        self._condition = threading.Condition()
        self._waiting: dict[int, Arrival] = {}
        self._next_engine: Engine | None = None
        self._takes_engines = True
        self._has_released = threading.Event()
        self._closed = False
        self.worker = Worker(name, self._step, sink.unexpected, PATIENCE)

    def start(self) -> None:
        """Start the thread. To be called once."""
        self.worker.start()

    def put(self, arrival: Arrival) -> None:
        """Hand over a message. One of the same camera that still waits is stale and is dropped."""
        counts = self.cameras[arrival.camera]
        with self._condition:
            counts.received += 1
            counts.stale += arrival.camera in self._waiting
            self._waiting[arrival.camera] = arrival
            self._condition.notify()

    def skip(self, camera: int) -> None:
        """Count a message that is not looked at."""
        with self._condition:
            self.cameras[camera].received += 1
            self.cameras[camera].skipped += 1

    @property
    def counts(self) -> Counts:
        """What became of the frames of all cameras."""
        return Counts.total(self.cameras)

    def resume(self) -> None:
        """Take engines again after :meth:`release`."""
        with self._condition:
            self._takes_engines = True

    def swap(self, engine: Engine) -> None:
        """Let ``engine`` answer from the next batch on; one that comes after :meth:`release` is retired at once."""
        with self._condition:
            passed_over: Engine | None = engine
            if self._takes_engines:
                passed_over, self._next_engine = self._next_engine, engine
            self._condition.notify()
        if passed_over is not None:
            self.worker.attempt("retiring an engine", self._retire, passed_over)

    def release(self, patience: float) -> None:
        """Retire the engine that answers, after the batch in hand, and take none until :meth:`resume`.

        Args:
            patience: seconds to wait for the batch.
        """
        with self._condition:
            self._takes_engines = False
            self._has_released.clear()
            self._condition.notify()
        if self.worker.has_started:  # otherwise it holds none
            self._has_released.wait(patience)

    def stop(self, patience: float | None = None) -> bool:
        """End the thread after the batch that it works on.

        Args:
            patience: seconds to wait for the end; None waits as long as it takes.

        Returns:
            Whether the thread has ended, or was never started.
        """
        with self._condition:
            self._closed = True
            self._condition.notify()
        return self.worker.join(patience)

    def close_engines(self) -> None:
        """Close what :meth:`stop` left and what came after it."""
        for engine in (self.engine, self._next_engine):
            if engine is not None:
                self.worker.attempt("closing an engine", engine.close)
        self.engine = self._next_engine = None

    def _step(self) -> bool:
        with self._condition:
            while not (self._closed or self._waiting or self._next_engine or self._is_to_release()):
                self._condition.wait()
            if self._closed:
                return False
            releases = self._is_to_release()
            batch, self._waiting = list(self._waiting.values()), {}
            engine, self._next_engine = self._next_engine, None
        if engine is not None:
            self._change(engine)
        if releases:
            self._put_down()
        if self.is_loading:
            for arrival in batch:
                self.cameras[arrival.camera].loading += 1
            return True
        before = [self.cameras[arrival.camera].settled for arrival in batch]
        try:
            self.worker.attempt("answering frames", self._answer, batch)
        finally:
            for arrival, settled in zip(batch, before):
                # A batch holds one frame of a camera.
                counts = self.cameras[arrival.camera]
                counts.failed += counts.settled == settled
        return True

    def _is_to_release(self) -> bool:
        return not self._takes_engines and not self._has_released.is_set()

    def _put_down(self) -> None:
        released, self.engine = self.engine, None
        self.is_loading = True
        if released is not None:
            self.worker.attempt("retiring an engine", self._retire, released)
        self._has_released.set()

    def _change(self, engine: Engine) -> None:
        replaced, self.engine = self.engine, engine
        self.is_loading = False
        self.worker.attempt("announcing an engine", self._sink.engine_started, engine)
        if replaced is not None:
            self.worker.attempt("retiring an engine", self._retire, replaced)

    def _answer(self, batch: Sequence[Arrival]) -> None:
        taken = time.perf_counter()
        jobs = self._read(batch)
        engine = self.engine
        if not jobs or engine is None:
            return
        frames = [frame for job in jobs for frame in job.frames]
        try:
            with self.worker.busy("evaluating frames"):
                top_k = max(job.arrival.settings.top_k for job in jobs)
                classified = iter(engine.classifier.classify_with_scores(frames, top_k) if frames else ())
                backend_times = engine.backend.times if frames else {}
        except Exception as error:  # whatever a device or its runtime raises, the node lives on and says so
            self.engine = None
            reason = str(error) if isinstance(error, BackendError) else one_line(error, with_type=True)
            if not self.worker.attempt("reporting a fault", self._sink.engine_failed, engine, reason):
                # Nobody knows of it yet: the next batch will find it again.
                self.engine = engine
            return
        for job in jobs:
            settings = job.arrival.settings
            answers = [next(classified) if region is not None else None for region in job.regions]
            answer = Answer(
                job.arrival,
                job.frame,
                engine,
                job.regions,
                [_published(each[0], settings) if each is not None else [] for each in answers],
                [each[1] for each in answers if each is not None],
            )
            self.worker.attempt("publishing labels", self._publish, answer, taken, job, backend_times)

    def _publish(self, answer: Answer, taken: float, job: _Job, backend_times: Mapping[str, float]) -> None:
        start = time.perf_counter()
        self._sink.answered(answer)
        end = time.perf_counter()
        counts = self.cameras[job.arrival.camera]
        counts.classified += 1
        if self.wants_picture[job.arrival.camera]:
            self.wants_picture[job.arrival.camera] = False
            self.pictures[job.arrival.camera] = seen(answer.frame, answer.engine.spec.model.input)
        if job.arrival.detections is not None:
            counts.boxes += len(job.regions)
            counts.unusable += job.regions.count(None)
        stages = _stages(job.arrival, taken, job.decode_time, backend_times, start, end)
        self.latency.add(stages)
        last = "total" if "total" in stages else "node"
        self.latencies[job.arrival.camera].add({last: stages[last]})

    def _read(self, batch: Sequence[Arrival]) -> list[_Job]:
        """What is to be done for the arrivals that can be used."""
        jobs = []
        for arrival in batch:
            start = time.perf_counter()
            try:
                frame, regions = unpack(arrival.message, arrival.detections, arrival.settings)
            except RefusedFrame as error:
                self.cameras[arrival.camera].refused[error.reason] += 1
                self.worker.attempt("reporting a refused frame", self._sink.refused, arrival, error)
                continue
            except Exception as error:
                self.worker.note(f"reading a frame of camera {arrival.camera}", error)
                continue
            jobs.append(_Job(arrival, frame, regions, (time.perf_counter() - start) * 1e3))
        return jobs


@dataclass(frozen=True)
class _Job:
    """A frame that is to be answered.

    Attributes:
        frame: the image, with the region that is looked at where there are no boxes.
        regions: of the image that are answered; None for a box that holds no pixel.
        decode_time: milliseconds that it took to unpack the message.
    """

    arrival: Arrival
    frame: Frame
    regions: Sequence[Region | None]
    decode_time: float

    @property
    def frames(self) -> list[Frame]:
        """One for each region, all over the same pixels."""
        return [replace(self.frame, region=region) for region in self.regions if region is not None]


def unpack(message: Any, detections: Any, settings: InputSettings) -> tuple[Frame, Sequence[Region | None]]:
    """The image of a message, and the regions of it that are looked at.

    Args:
        message: sensor_msgs Image or CompressedImage.
        detections: vision_msgs Detection2DArray, whose boxes are the regions; None where settings name it.
        settings: how the image is to be read.

    Raises:
        RefusedFrame: where it cannot be used.
    """
    frame = UNPACK[settings.image_transport](message, settings.max_pixels, settings.region)
    if detections is None:
        return frame, [frame.region]
    height, width, _ = frame.pixels.shape
    return frame, regions(detections, width, height, settings.box_margin)


def _published(predictions: Sequence[Prediction], settings: Settings) -> list[Prediction]:
    """The predictions that the settings let through: a batch is ranked for the most that one of its frames wants."""
    ranked = predictions[: settings.top_k]
    return [prediction for prediction in ranked if prediction.score >= settings.score_threshold]


def _stages(
    arrival: Arrival,
    taken: float,
    decode_time: float,
    backend_times: Mapping[str, float],
    start: float,
    end: float,
) -> dict[str, float]:
    """Milliseconds of each stage of :data:`~bnn_perception.ros.latency.STAGES` that an answered frame passed.

    Args:
        arrival: of the frame.
        taken: when its batch was taken, as ``received`` in seconds.
        decode_time, backend_times: milliseconds.
        start, end: when publishing began and ended, in seconds.
    """
    node = (end - arrival.received) * 1e3
    times = {
        "wait": (taken - arrival.received) * 1e3,
        "decode": decode_time,
        **backend_times,
        "publish": (end - start) * 1e3,
        "node": node,
        "overhead": node - sum(backend_times.values()),
    }
    if arrival.age is None:
        return times
    return {"receive": arrival.age, **times, "total": arrival.age + node}
