"""Loads engines in a thread of its own, so that neither a callback nor a frame ever waits for one.

An engine is a model on a backend, warmed up. One is requested at the start, when a parameter asks for another, and
after a fault of the running one. It is delivered whole; where it cannot be made, the reason is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from bnn_perception.backends import Backend, BackendError, make_backend
from bnn_perception.classifier import Classifier
from bnn_perception.errors import one_line
from bnn_perception.frames.frame import Frame
from bnn_perception.net.model import Model
from bnn_perception.ros.parameters import EngineSettings
from bnn_perception.ros.process import return_freed_memory
from bnn_perception.ros.worker import Worker, with_place

#: Seconds that the loading thread may be busy with one thing: more than compiling takes on a slow computer.
PATIENCE = 600.0

#: Why what is being made is given up.
UNWANTED = "it is wanted no longer"

#: Seconds from a fault to the first new try; doubled at each failure up to the last.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0


@dataclass(frozen=True, eq=False)
class EngineSpec:
    """What the user asked for.

    Attributes:
        asked: the parameters that need an engine.
        model: the model that ``asked`` names, as it was read then.
    """

    asked: EngineSettings
    model: Model


@dataclass(frozen=True, eq=False)
class Engine:
    """A classifier that is ready to answer.

    Attributes:
        degraded: why this is not what ``spec`` asks for, empty where it is.
        why_not_gpu: why ``auto`` took the CPU though there is a GPU, empty where it did not.
    """

    spec: EngineSpec
    classifier: Classifier
    degraded: str = ""
    why_not_gpu: str = ""

    @property
    def backend(self) -> Backend:
        return self.classifier.backend

    @property
    def name(self) -> str:
        """For logs: ``road_signs on cpu_binary (AMD Ryzen 7)``."""
        return f"{self.spec.model.name} on {self.backend.name} ({self.backend.device_name})"

    def close(self) -> None:
        """Give back what the backend holds."""
        self.backend.close()


def build_engine(
    spec: EngineSpec,
    device: str | None = None,
    degraded: str = "",
    is_wanted: Callable[[], bool] = lambda: True,
) -> Engine:
    """Make and warm up an engine: compilation and allocation happen here and not in the first frame.

    Args:
        spec: what is wanted.
        device: instead of the one in ``spec``.
        degraded: see :class:`Engine`.
        is_wanted: asked between two steps whether to go on.

    Raises:
        BackendError: where it cannot be made, with the reason.
    """
    why_not_gpu: list[str] = []
    backend = _warm_backend(spec, device or spec.asked.device, why_not_gpu.append, is_wanted)
    return Engine(spec, Classifier(spec.model, backend), degraded, "; ".join(why_not_gpu))


def _warm_backend(
    spec: EngineSpec, device: str, report: Callable[[str], None], is_wanted: Callable[[], bool]
) -> Backend:
    """A backend that has evaluated a frame. With device auto a GPU that cannot do so is reported, and the CPU taken."""
    backend = None
    try:
        backend = make_backend(spec.model, spec.asked.backend, device, spec.asked.threads, report)
        if not is_wanted():
            raise BackendError(UNWANTED)
        backend.logits([Frame(np.zeros((480, 640, 3), np.uint8))])
    except Exception as error:
        reason = _reason(spec, error)
        if backend is not None:
            # What a broken backend says at its end is not the reason.
            with suppress(Exception):
                backend.close()
            if device == "auto" and backend.device == "cuda" and is_wanted():
                report(reason)
                return _warm_backend(spec, "cpu", report, is_wanted)
        raise BackendError(reason) from error
    return backend


def _reason(spec: EngineSpec, error: Exception) -> str:
    if isinstance(error, BackendError):
        return str(error)
    # The runtimes below raise types of their own. What they say is all that can be said.
    return f"backend {spec.asked.backend}: {one_line(error, with_type=True)}"


@dataclass(frozen=True)
class _Retry:
    """A new try after a fault.

    Attributes:
        failed: name of the backend that failed.
        substitute: name of the backend that answers meanwhile, empty where none does.
        at: time.monotonic() of the try.
        delay: seconds that it was put off.
    """

    spec: EngineSpec
    failed: str
    substitute: str
    at: float
    delay: float


class EngineLoader:
    """The loading thread. Nothing runs and nothing is loaded until :meth:`start` and the first :meth:`request`.

    Args:
        deliver: called in this thread with each engine that is ready.
        reject: called in this thread with a request that could not be met, and the reason.
        report: called in this thread with a line about faults and recovery.
        first_retry: seconds from a fault to the first new try.
        unexpected: called in this thread with a line about an exception that nobody foresaw; None takes ``report``.
        name: of the thread.
    """

    def __init__(
        self,
        deliver: Callable[[Engine], None],
        reject: Callable[[EngineSpec, str], None],
        report: Callable[[str], None],
        first_retry: float = FIRST_RETRY,
        unexpected: Callable[[str], None] | None = None,
        name: str = "loading",
    ) -> None:
        #: The last request that was met; None until the first is.
        self.current: EngineSpec | None = None
        self._deliver = deliver
        self._reject = reject
        self.worker = Worker(name, self._step, unexpected or report, PATIENCE)
        self._tell = report
        self._first_retry = first_retry
        self._condition = threading.Condition()
        self._request: EngineSpec | None = None
        self._fault: tuple[Engine, str] | None = None
        self._retired: list[Engine] = []
        self._retry: _Retry | None = None
        self._next_delay = first_retry
        self._last_fault = 0.0
        # Whether an engine is wanted at all.
        self._is_idle = False
        self._closed = False

    def start(self) -> None:
        """Start the thread. To be called once."""
        self.worker.start()

    def request(self, spec: EngineSpec) -> None:
        """Ask for an engine; an older request is forgotten over it, and given up if it is being met."""
        with self._condition:
            self._request = spec
            self._is_idle = False
            self._condition.notify()

    def forget(self) -> None:
        """Make and deliver nothing more until the next :meth:`request`; what is being made is given up."""
        with self._condition:
            self._request = None
            self._is_idle = True
            self.current = None
            self._condition.notify()

    def fault(self, engine: Engine, reason: str) -> None:
        """An engine failed while it ran: close it and make it anew, with growing pauses.

        With device auto the CPU answers meanwhile.
        """
        with self._condition:
            self._fault = (engine, reason)
            self._condition.notify()

    def retire(self, engine: Engine) -> None:
        """Close an engine that is used no longer."""
        with self._condition:
            self._retired.append(engine)
            self._condition.notify()

    def close(self, patience: float | None = None) -> bool:
        """End the thread after what it is doing now.

        Args:
            patience: seconds to wait for the end; None waits as long as it takes. Nothing can interrupt a compiler.

        Returns:
            Whether the thread has ended, or was never started.
        """
        with self._condition:
            self._closed = True
            self._condition.notify()
        return self.worker.join(patience)

    def _step(self) -> bool:
        with self._condition:
            while not self._is_due():
                pause = None if self._retry is None else max(0.0, self._retry.at - time.monotonic())
                self._condition.wait(pause)
            retired, self._retired = self._retired, []
            fault, self._fault = self._fault, None
            request, self._request = self._request, None
            closed = self._closed
            if self._is_idle:
                self._retry = None
        if retired:
            while retired:  # nothing may hold a closed engine when its memory goes back
                self._close(retired.pop(0))
            return_freed_memory()
        if closed:
            return False
        if fault is not None:
            self.worker.attempt("answering a fault", self._recover, *fault)
        if request is not None:
            self.worker.attempt(f"making {request.asked}", self._fulfil, request)
        elif self._retry is not None and time.monotonic() >= self._retry.at:
            self.worker.attempt(f"making {self._retry.spec.asked} anew", self._try_again, self._retry)
        return True

    def _is_open(self) -> bool:
        return not (self._closed or self._is_idle)

    def _is_newest(self) -> bool:
        return self._request is None and self._is_open()

    def _close(self, engine: Engine) -> None:
        self.worker.attempt("closing an engine", engine.close)

    def _report(self, line: str) -> None:
        # A log that fails must not keep an engine from being made.
        self.worker.attempt("reporting a fault", self._tell, line)

    def _is_due(self) -> bool:
        waiting = self._closed or self._request is not None or self._fault is not None or bool(self._retired)
        if self._retry is None:
            return waiting
        return waiting or self._is_idle or time.monotonic() >= self._retry.at

    def _fulfil(self, spec: EngineSpec) -> None:
        before = self.current
        engine = None
        try:
            engine = build_engine(spec, is_wanted=self._is_newest)
            with self._condition:
                if self._is_idle:
                    raise BackendError(UNWANTED)
                self.current = spec
            self._deliver(engine)
        # Whatever it is, it costs this request; what is no BackendError goes on to be said as what nobody foresaw.
        except BaseException as error:
            with self._condition:
                self.current = None if self._is_idle else before
            if engine is not None:
                self._close(engine)
            known = isinstance(error, BackendError)
            if known and not self._is_newest():  # a newer request, or who wanted none, says what goes on
                if not self._closed:
                    self._report(f"{spec.asked} was given up: {UNWANTED}")
                return
            reason = str(error) if known else f"unexpected error: {with_place(error)}"
            self.worker.attempt("refusing a request", self._reject, spec, reason)
            if not known:
                raise
            return
        self._retry = None

    def _recover(self, engine: Engine, reason: str) -> None:
        failed, spec = engine.backend.name, engine.spec
        self._close(engine)
        if spec is not self.current:  # its successor has been delivered already
            return
        self._report(f"{failed} failed: {reason}")
        # An engine that ran well for as long as the longest pause starts over.
        well = time.monotonic() - self._last_fault > LAST_RETRY
        delay = self._first_retry if well else self._next_delay
        # Before the CPU is asked, so that nothing that goes wrong there keeps the engine from being made anew.
        self._retry = _Retry(spec, failed, "", time.monotonic() + delay, delay)
        if spec.asked.device == "auto" and engine.backend.device == "cuda":
            try:
                standing_in = build_engine(spec, "cpu", f"the CPU answers because {failed} failed: {reason}")
            except BackendError as error:
                self._report(f"the CPU cannot stand in: {error}")
            else:
                self._report(standing_in.degraded)
                self._deliver(standing_in)
                self._retry = replace(self._retry, substitute=standing_in.backend.name)
        self._last_fault = time.monotonic()
        self._retry = replace(self._retry, at=self._last_fault + delay)
        self._next_delay = min(2 * delay, LAST_RETRY)

    def _try_again(self, retry: _Retry) -> None:
        try:
            engine = build_engine(retry.spec, is_wanted=self._is_open)
            if engine.backend.name == retry.substitute:
                self._close(engine)
                raise BackendError(f"device auto still gives {retry.substitute}")
            self._report(f"{engine.backend.name} works again")
            self._deliver(engine)
        # Not BackendError alone: a try in vain, whatever ends it, puts the next one off.
        except Exception as error:
            delay = min(2 * retry.delay, LAST_RETRY)
            self._retry = replace(retry, at=time.monotonic() + delay, delay=delay)
            self._report(
                f"{retry.failed} cannot be used yet, next try in {delay:g} s: {_reason(retry.spec, error)}"
            )
            return
        self._retry = None
