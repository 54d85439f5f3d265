"""Both precisions on the same frames: the float twin answers, in threads of its own, what the binary net has answered.

It is the node's own machinery once more: a pipeline that takes the newest answered frame of each camera, and a loader
that makes its engine. The binary net hands over a reference and never waits.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.node import Node
from vision_msgs.msg import Classification

from bnn_perception.backends import BackendError, check_choice
from bnn_perception.errors import one_line
from bnn_perception.files import replacing
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import as_png
from bnn_perception.net.model import Model
from bnn_perception.ros.engine import Engine, EngineLoader, EngineSpec
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.parameters import EngineSettings
from bnn_perception.ros.pipeline import Answer, Arrival, Pipeline
from bnn_perception.ros.publishing import as_classification, publish
from bnn_perception.ros.worker import Worker

#: Newest labels that agreement is told of: twenty seconds of a 30 Hz camera.
WINDOW = 600


class Unsaved(Exception):  # noqa: N818 - an answer to a request
    """There is nothing to save, or nowhere; the message is one line with the remedy."""


@dataclass(frozen=True)
class _Compared(Arrival):
    """A frame that the binary net has answered.

    Attributes:
        binary: its answer.
    """

    binary: Answer | None = None


@dataclass(frozen=True)
class Difference:
    """A frame on which the two do not agree. It holds no engine, whose memory it would keep.

    Attributes:
        frame: its pixels.
        header: of its message.
        binary, twin: the best labels.
    """

    frame: Frame
    header: Any
    binary: str
    twin: str


class Comparison:
    """The float twin beside the binary net. It holds an engine from :meth:`start` to :meth:`stop` only.

    Args:
        node: publishes ``labels_float``.
        topics: of the cameras, in full. Where there are several, each has a topic of its own too.
        report: called with a line about faults and recovery of its engine, in any thread.
        unexpected: called with a line about an exception that nobody foresaw.

    Attributes:
        pipeline: with its thread, counts and times.
        workers: its threads.
        failure: why there is no float twin, empty where there is one or none is wanted.
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[str],
        report: Callable[[str], None],
        unexpected: Callable[[str], None],
    ) -> None:
        self._node = node
        self._topics = topics
        self._unexpected = unexpected
        self._loader = EngineLoader(
            deliver=self._deliver,
            reject=self._reject,
            report=report,
            unexpected=unexpected,
            name="comparison's loading",
        )
        self.pipeline = Pipeline(self, self._loader.retire, len(topics), name="comparison")
        self.workers: tuple[Worker, ...] = (self.pipeline.worker, self._loader.worker)
        self.failure = ""
        self._is_on = False
        self._publishers: list[list[Any]] = []
        self._lock = threading.Lock()
        # Not the lock of what is compared: the inference thread follows its engine and must not wait for a publisher.
        self._following = threading.Lock()
        self._wanted: EngineSpec | None = None
        self._agreed: deque[bool] = deque(maxlen=WINDOW)
        self._total = self._differing = 0
        self._last: Difference | None = None
        self._compared: Model | None = None

    # Executor's thread.

    @property
    def is_on(self) -> bool:
        """Whether frames are compared."""
        return self._is_on

    def has_audience(self) -> bool:
        """Whether anybody subscribes an answer of the twin."""
        return any(each.get_subscription_count() for publishers in self._publishers for each in publishers)

    def start(self) -> None:
        """Compare from now on; :meth:`follow` says what."""
        if self._is_on:
            return
        common = self._node.create_publisher(Classification, "labels_float", 10)
        own = [f"{topic}/labels_float" for topic in self._topics] if len(self._topics) > 1 else []
        publishers = [
            [common, *(self._node.create_publisher(Classification, name, 10) for name in own[i : i + 1])]
            for i in range(len(self._topics))
        ]
        with self._lock:
            self._publishers = publishers
            self._begin(None)
        if not self.pipeline.worker.has_started:
            self.pipeline.start()
            self._loader.start()
        self.pipeline.resume()
        self._is_on = True

    def stop(self, patience: float) -> None:
        """Compare no more and give back the engine, after the batch in hand.

        Args:
            patience: seconds to wait for that.
        """
        if not self._is_on:
            return
        with self._following:  # no engine is asked for after this
            self._is_on = False
            self._wanted = None
            self._loader.forget()
        self.pipeline.release(patience)
        with self._lock:  # a batch that takes longer is not to find them destroyed
            publishers, self._publishers = self._publishers, []
        for publisher in {each for own in publishers for each in own}:
            self._node.destroy_publisher(publisher)
        self.failure = ""

    def close(self, patience: float) -> None:
        """End the threads and give back the engine; they are waited for so many seconds at most."""
        deadline = time.monotonic() + patience
        if self.pipeline.stop(patience):
            self.pipeline.close_engines()
        self._loader.close(max(0.0, deadline - time.monotonic()))

    def save(self, folder: str) -> Path:
        """Write the picture of the last difference, and return its file.

        Raises:
            Unsaved: where there is none, no folder, or the file cannot be written.
        """
        with self._lock:
            last = self._last
        if not folder:
            raise Unsaved("compare_folder is empty; start with one to save pictures")
        if last is None:
            raise Unsaved("the two have not differed since compare was set or the model changed")
        stamp = last.header.stamp
        file = Path(folder).expanduser() / file_name(stamp.sec, stamp.nanosec, last.binary, last.twin)
        _write(last.frame.pixels, last.frame.encoding, file)
        return file

    # Any thread.

    def follow(self, spec: EngineSpec) -> None:
        """Let the twin of what answers now be made."""
        asked = EngineSettings(**{**spec.asked.engine_values(), "backend": "float"})
        with self._following:
            if not self._is_on:
                return
            self._wanted = EngineSpec(asked, spec.model)
            try:
                check_choice(spec.model, asked.backend, asked.device)
            except BackendError as error:
                self._loader.forget()
                self._give_up(str(error))
                return
            self.failure = ""
            self.pipeline.resume()
            self._loader.request(self._wanted)

    def put(self, answer: Answer) -> None:
        """The binary net has answered a frame."""
        if self._is_on:
            arrival = answer.arrival
            values = {entry.name: getattr(arrival, entry.name) for entry in fields(Arrival)}
            self.pipeline.put(_Compared(**values, binary=answer))

    def agreement(self) -> tuple[float, int, int, str]:
        """How the two agree.

        Returns:
            the share of the newest labels that are equal; since :meth:`start`, or since the model changed, the labels
            compared, and those that differ; the last difference in words, empty where there was none.
        """
        with self._lock:
            share = sum(self._agreed) / len(self._agreed) if self._agreed else 1.0
            last = f"{self._last.binary} (binary), {self._last.twin} (float)" if self._last else ""
            return share, self._total, self._differing, last

    # Its own threads; see pipeline.Sink.

    def answered(self, answer: Answer) -> None:
        arrival = answer.arrival
        if not isinstance(arrival, _Compared) or arrival.binary is None:
            return
        # Not the labels: a net that was trained further has the same ones.
        if answer.engine.spec.model is not arrival.binary.engine.spec.model:
            return
        with self._lock:
            self._compare(answer, arrival.binary)
            if arrival.detections is None and self._publishers:
                for publisher in self._publishers[arrival.camera]:
                    publish(self._node, publisher, as_classification(answer))

    def _compare(self, answer: Answer, binary: Answer) -> None:
        model = answer.engine.spec.model
        if model is not self._compared:
            self._begin(model)
        for ours, twins in zip(binary.scores, answer.scores):
            best, twin_best = int(np.argmax(ours)), int(np.argmax(twins))
            self._agreed.append(best == twin_best)
            self._total += 1
            if best != twin_best:
                self._differing += 1
                header = answer.arrival.message.header
                self._last = Difference(answer.frame, header, model.labels[best], model.labels[twin_best])

    def _begin(self, model: Model | None) -> None:
        """Nothing of this model has been compared yet."""
        self._compared = model
        self._agreed.clear()
        self._total = self._differing = 0
        self._last = None

    def _give_up(self, reason: str) -> None:
        """There is no twin of what answers now; that of what answered before is of no use."""
        self.failure = reason
        self.pipeline.release(0.0)

    def refused(self, arrival: Arrival, error: RefusedFrame) -> None:
        """It was taken once, so that this cannot be."""

    def engine_started(self, engine: Engine) -> None:
        self.failure = ""

    def engine_failed(self, engine: Engine, reason: str) -> None:
        self.failure = f"{engine.backend.name} failed and is being made anew: {reason}"
        self._loader.fault(engine, reason)

    def unexpected(self, line: str) -> None:
        self._unexpected(line)

    def _deliver(self, engine: Engine) -> None:
        self.pipeline.swap(engine)

    def _reject(self, spec: EngineSpec, reason: str) -> None:
        with self._following:
            if spec is self._wanted:  # otherwise another has been asked for meanwhile
                self._give_up(reason)


def file_name(seconds: int, nanoseconds: int, binary: str, twin: str) -> str:
    """The name of a picture: its stamp and both labels, cut and rid of all that could lead out of the folder."""
    labels = "_".join(re.sub(r"[^\w-]+", "-", label)[:20] for label in (binary, twin))
    return f"{seconds}.{nanoseconds:09d}_{labels}.png"


def _write(pixels: Any, encoding: str, file: Path) -> None:
    """Write the pixels of a frame as a PNG file, whole or not at all.

    Raises:
        Unsaved: where they cannot be written.
    """
    try:
        content = as_png(pixels, encoding)
    except Exception as error:  # one built for another NumPy raises whatever it likes
        raise Unsaved(f"a picture is written by OpenCV, which cannot be used: {one_line(error)}") from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise Unsaved(f"{file}: {error.strerror or error}") from None
