"""The state of the classifier node: what the node notices, and what /diagnostics says of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

from bnn_perception.ros import diagnostics
from bnn_perception.ros.diagnostics import ERROR, WARN, Report, State
from bnn_perception.ros.engine import Engine, EngineSpec
from bnn_perception.ros.pipeline import Pipeline
from bnn_perception.ros.process import transport_remedy
from bnn_perception.ros.refusals import Refusals
from bnn_perception.ros.worker import Unforeseen, Worker

#: Seconds without a frame, while a camera publishes, after which diagnostics ask where they are.
SILENCE = 2.0

#: Seconds without a frame after which the log says so too.
LOG_SILENCE = 5.0

#: What the status is about, for monitors that group by it: this computer, whatever device answers.
HARDWARE = platform.node()


class Health:
    """What the node has noticed, and the report of it. The node writes the attributes; reports are made in one thread.

    Args:
        pipeline: with the inference thread.
        loading: the loading thread.
        refusals: requests that could not be met.
        cameras: how many there are.
        why_silent: given a topic of a camera, what keeps its frames away as far as the graph tells, and how many
            publishers it has.

    Attributes:
        topics: of the cameras, in full.
        started_at: time.monotonic() of the node's start.
        received: frames of each camera.
        last_frame: time.monotonic() of the newest frame of each camera.
        lost: frames of each camera that were lost in transport.
        foreign_stamps: frames since the last report whose stamps have nothing to do with the clock.
        last_refusal: topic and reason of the frame that was refused last.
        why_not_gpu: why ``auto`` took the CPU, empty where it did not.
        unforeseen: exceptions that nobody foresaw.
        news: what the log should say too, since the last report: a camera that is silent, many frames lost or stale.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        loading: Worker,
        refusals: Refusals,
        cameras: int,
        why_silent: Callable[[str], tuple[str, int]],
    ) -> None:
        now = time.monotonic()
        self.topics: list[str] = []
        self.started_at = now
        self.received = [0] * cameras
        self.last_frame = [now] * cameras
        self.lost = [0] * cameras
        self.foreign_stamps = 0
        self.last_refusal = ""
        self.why_not_gpu = ""
        self.unforeseen = Unforeseen()
        self.news: list[str] = []
        self._pipeline = pipeline
        self._workers = (pipeline.worker, loading)
        self._refusals = refusals
        self._why_silent = why_silent
        self._unforeseen_before = 0
        self._totals: dict[str, int] = {}
        self._received_before = [0] * cameras
        self._totals_at = now

    def report(self, name: str, spec: EngineSpec) -> Report:
        """The report since the last one.

        Args:
            name: of the node.
            spec: of the engine that answers, or of the one that is being made.
        """
        counts = self._pipeline.counts
        totals = {
            diagnostics.RECEIVED: counts.received,
            diagnostics.CLASSIFIED: counts.classified,
            diagnostics.STALE: counts.stale,
            diagnostics.LOADING: counts.loading,
            diagnostics.LOST: sum(self.lost),
            diagnostics.FAILED: counts.failed,
            diagnostics.REFUSED: sum(counts.refused.values()),
        }
        now = time.monotonic()
        seconds, self._totals_at = now - self._totals_at, now
        new = {key: total - self._totals.get(key, 0) for key, total in totals.items()}
        self._totals = totals

        engine = self._pipeline.engine
        report = Report(name, HARDWARE)
        self._find(report, engine, spec, new)
        state = State(
            model=spec.model.name,
            backend=engine.backend.name if engine else diagnostics.NOTHING,
            device=engine.backend.device_name if engine else diagnostics.NOTHING,
            device_wanted=spec.asked.device,
            why_not_gpu=self.why_not_gpu,
            rate_in=new[diagnostics.RECEIVED] / seconds,
            rate_out=new[diagnostics.CLASSIFIED] / seconds,
            frames=totals,
            refused=dict(counts.refused),
            latency=self._pipeline.latency.summary(),
            unexpected=self._unforeseen_before,
            threads={worker.name: worker.state for worker in self._workers},
        )
        report.add(state.values())
        self._add_cameras(report, seconds)
        return report

    def _add_cameras(self, report: Report, seconds: float) -> None:
        """Add what each camera has sent; a program finds by it which of several is out of order."""
        now = time.monotonic()
        received, self._received_before = self._received_before, list(self.received)
        for camera, topic in enumerate(self.topics):
            report.add(
                {
                    f"camera {topic}: frames received": self.received[camera],
                    f"camera {topic}: frames lost in transport": self.lost[camera],
                    f"camera {topic}: rate (Hz)": (self._received_before[camera] - received[camera])
                    / seconds,
                    f"camera {topic}: since the last frame (s)": now - self.last_frame[camera],
                }
            )

    def _find(self, report: Report, engine: Engine | None, spec: EngineSpec, new: dict[str, int]) -> None:
        """Note what the user should know.

        Args:
            report: to note it in.
            engine: that answers, if one does.
            spec: of the engine, or of the one that is being made.
            new: what became of frames since the last report.
        """
        now = time.monotonic()
        self.news = []
        if self._pipeline.is_loading:
            report.find(WARN, f"loading {spec.asked} for {now - self.started_at:.0f} s")
        elif engine is None:
            report.find(ERROR, f"no answers: {spec.asked} failed and is being made anew")
        elif engine.degraded:
            report.find(WARN, engine.degraded)
        elif engine.why_not_gpu:
            report.find(WARN, f"auto took the CPU though there is a GPU: {engine.why_not_gpu}")
        if refusal := self._refusals.newest:
            report.find(WARN, refusal)
        self._find_unforeseen(report)
        if new[diagnostics.FAILED]:
            report.find(ERROR, f"{new[diagnostics.FAILED]} frames got no answer")
        if new[diagnostics.REFUSED]:
            report.find(WARN, f"{new[diagnostics.REFUSED]} frames refused, the last on {self.last_refusal}")
        if new[diagnostics.LOST]:
            report.find(WARN, f"{new[diagnostics.LOST]} frames lost in transport: {transport_remedy()}")
        missed = new[diagnostics.LOST] + new[diagnostics.STALE]
        if missed * 10 > new[diagnostics.RECEIVED] + new[diagnostics.LOST]:
            self.news.append(
                f"{new[diagnostics.LOST]} frames lost in transport and {new[diagnostics.STALE]} dropped as stale, "
                f"{new[diagnostics.RECEIVED]} received"
            )
        for topic, at in zip(self.topics, self.last_frame):
            self._find_silence(report, topic, now - at)
        if self.foreign_stamps:
            self.foreign_stamps = 0
            report.find(
                WARN, "stamps of frames and the clock are over a minute apart; is use_sim_time right?"
            )

    def _find_unforeseen(self, report: Report) -> None:
        """Bring back a thread that has ended, and tell of it and of all else that nobody foresaw."""
        for worker in self._workers:
            if death := worker.revive():
                self.unforeseen.add(death)
            elif worker.is_stuck:
                report.find(ERROR, f"the {worker.name} thread hangs: {worker.state}")
        count, newest = self.unforeseen.read()
        if count > self._unforeseen_before:
            report.find(ERROR, f"{count - self._unforeseen_before} unexpected errors, the last: {newest}")
        self._unforeseen_before = count

    def _find_silence(self, report: Report, topic: str, seconds: float) -> None:
        if seconds < SILENCE:
            return
        why, publishers = self._why_silent(topic)
        if not why:
            why = (
                f"no frame on {topic} for {seconds:.0f} s, though it has {publishers} publisher(s); "
                f"if it should have sent some, {transport_remedy()}"
            )
        report.find(WARN, why)
        if seconds > LOG_SILENCE:
            self.news.append(why)
