"""The state of the classifier node: what the node notices, and what /diagnostics says of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bnn_perception.frames.quality import Quality, measure
from bnn_perception.ros import diagnostics
from bnn_perception.ros.compare import Comparison
from bnn_perception.ros.diagnostics import ERROR, OK, WARN, CameraState, Report, State
from bnn_perception.ros.engine import Engine, EngineSpec
from bnn_perception.ros.latency import Percentiles
from bnn_perception.ros.managed import ACTIVE
from bnn_perception.ros.pairing import Unpaired
from bnn_perception.ros.parameters import Settings
from bnn_perception.ros.pipeline import Counts, Pipeline
from bnn_perception.ros.process import transport_remedy
from bnn_perception.ros.refusals import Refusals
from bnn_perception.ros.worker import Unforeseen, Worker

#: Seconds without a frame, while a camera publishes, after which diagnostics ask where they are.
SILENCE = 2.0

#: Seconds without a frame after which the log says so too.
LOG_SILENCE = 5.0

#: What the status is about, for monitors that group by it: this computer, whatever device answers.
HARDWARE = platform.node()


@dataclass
class CameraHealth:
    """What the node notices of one camera.

    Attributes:
        topic: of its images, in full.
        last_frame: time.monotonic() of the newest message, or of the subscription.
        lost: messages that were lost in transport.
        foreign_stamps: messages since the last report whose stamps have nothing to do with the clock.
        last_refusal: reason of the message that was refused last.
        boxes_topic: of a detector's boxes, in full; empty where the whole image is labelled.
        last_boxes, last_pair: time.monotonic() of the newest boxes, and of the newest that found their image; or of
            their subscription.
        unpaired: images and boxes since the start that did not find each other.
        quality: what the picture that was looked at last is like.
        digest, changed_at: of its pixels, and time.monotonic() of the first report on them.
    """

    topic: str
    last_frame: float = field(default_factory=time.monotonic)
    lost: int = 0
    foreign_stamps: int = 0
    last_refusal: str = ""
    boxes_topic: str = ""
    last_boxes: float = field(default_factory=time.monotonic)
    last_pair: float = field(default_factory=time.monotonic)
    unpaired: Unpaired = field(default_factory=Unpaired)
    quality: Quality | None = None
    digest: int = -1
    changed_at: float = 0.0


@dataclass(frozen=True)
class Situation:
    """What the node is doing when a report is made.

    Attributes:
        lifecycle: state of the managed node, :data:`~bnn_perception.ros.managed.ACTIVE` and so on.
        failure: why its last transition failed, empty where it did not.
        idle: why no image topic is subscribed though the node is active; empty where they are.
        settings: of the moment.
        spec: of the engine that answers, or of the one that is being made; None before a model has been read.
    """

    lifecycle: str
    failure: str
    idle: str
    settings: Settings
    spec: EngineSpec | None

    @property
    def model(self) -> str:
        """Name of the model that answers, or will."""
        return self.spec.model.name if self.spec is not None else self.settings.model


class Health:
    """What the node has noticed, and the report of it. The node writes the attributes; reports are made in one thread.

    Args:
        pipeline: with the inference thread.
        others: the node's threads besides.
        refusals: requests that could not be met.
        cameras: what is noticed of each.
        why_silent: given a camera's number, what keeps its frames away as far as the graph tells, and how many
            publishers it has.
        why_no_boxes: the same of its boxes.
        comparison: the float twin beside the binary net.

    Attributes:
        cameras: what is noticed of each.
        loading_since: time.monotonic() of the moment from which on the first engine is awaited.
        why_not_gpu: why ``auto`` took the CPU, empty where it did not.
        unforeseen: exceptions that nobody foresaw.
        news: what the log should say too, since the last report: a camera that is silent, many frames lost or stale.
        newest: level and text of all that the last report says.
        last_error: time.monotonic() and text of the last report with an error; None where there was none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        others: Sequence[Worker],
        refusals: Refusals,
        cameras: Sequence[CameraHealth],
        why_silent: Callable[[int], tuple[str, int]],
        why_no_boxes: Callable[[int], tuple[str, int]],
        comparison: Comparison,
    ) -> None:
        now = time.monotonic()
        self.cameras = cameras
        self.loading_since = now
        self.why_not_gpu = ""
        self.unforeseen = Unforeseen()
        self.news: list[str] = []
        self.newest = (OK, "nothing has been reported yet")
        self.last_error: tuple[float, str] | None = None
        self._pipeline = pipeline
        self._workers = (pipeline.worker, *others)
        self._refusals = refusals
        self._why_silent = why_silent
        self._why_no_boxes = why_no_boxes
        self._comparison = comparison
        self._unforeseen_before = 0
        self._before = [_numbers(Counts(), 0) for _ in cameras]
        self._lonely_before = [0] * len(cameras)
        self._reported_at = now

    def report(self, name: str, situation: Situation) -> list[Report]:
        """The reports since the last ones: of the engine, then of each camera.

        Args:
            name: of the node.
            situation: of the moment.
        """
        now = time.monotonic()
        seconds, self._reported_at = now - self._reported_at, now
        self.news = []
        totals = [
            _numbers(counts, camera.lost) for counts, camera in zip(self._pipeline.cameras, self.cameras)
        ]
        new = [
            {key: total[key] - before[key] for key in total} for total, before in zip(totals, self._before)
        ]
        self._before = totals
        latency = self._pipeline.latency.summary()
        reports = [self._of_engine(name, situation, _sum(totals), _sum(new), seconds, latency)]
        if self._comparison.is_on:
            reports.append(self._of_comparison(name, latency.get("inference")))
        for number in range(len(self.cameras)):
            reports.append(self._of_camera(name, number, situation, totals[number], new[number], seconds))
        self._summarize(reports)
        return reports

    def _summarize(self, reports: Sequence[Report]) -> None:
        level = max(report.level for report in reports)
        self.newest = (
            level,
            "; ".join(report.text for report in reports if report.level == level and report.text) or "OK",
        )
        if level == ERROR:
            self.last_error = (time.monotonic(), self.newest[1])

    def _of_engine(
        self,
        name: str,
        situation: Situation,
        totals: dict[str, int],
        new: dict[str, int],
        seconds: float,
        latency: Mapping[str, Percentiles],
    ) -> Report:
        """What the user should know of the node and its engine.

        Args:
            name: of the node.
            situation: of the moment.
            totals: what became of frames since the start.
            new: the same since the last report.
            seconds: since the last report.
            latency: percentiles by stage.
        """
        report = Report(f"{name}: {diagnostics.ENGINE}", HARDWARE)
        engine = self._pipeline.engine
        self._find_state(report, situation, engine)
        if refusal := self._refusals.newest:
            report.find(WARN, refusal)
        self._find_unforeseen(report)
        if new[diagnostics.FAILED]:
            report.find(ERROR, f"{new[diagnostics.FAILED]} frames got no answer")
        limit = situation.settings.max_p99 * 1e3
        if limit and "node" in latency and latency["node"].p99 > limit:
            report.find(
                WARN,
                f"p99 from the entry of a frame to its labels is {latency['node'].p99:.1f} ms, more than max_p99 = "
                f"{limit:g} ms; a smaller model, device cuda, fewer cameras or max_rate helps",
            )
        report.add(
            State(
                lifecycle=situation.lifecycle,
                model=situation.model,
                backend=engine.backend.name if engine else diagnostics.NOTHING,
                device=engine.backend.device_name if engine else diagnostics.NOTHING,
                device_wanted=situation.settings.device,
                why_not_gpu=self.why_not_gpu,
                rate_in=new[diagnostics.RECEIVED] / seconds,
                rate_out=new[diagnostics.CLASSIFIED] / seconds,
                frames=totals,
                refused=dict(self._pipeline.counts.refused),
                latency=latency,
                unexpected=self._unforeseen_before,
                threads={worker.name: worker.state for worker in self._all_workers()},
            ).values()
        )
        return report

    def _find_state(self, report: Report, situation: Situation, engine: Engine | None) -> None:
        if situation.failure:
            report.find(ERROR, situation.failure)
        if situation.lifecycle != ACTIVE:
            report.find(OK, situation.lifecycle)
        elif self._pipeline.is_loading:
            waited = time.monotonic() - self.loading_since
            report.find(WARN, f"loading {_asked(situation)} for {waited:.0f} s")
        elif engine is None:
            report.find(ERROR, f"no answers: {_asked(situation)} failed and is being made anew")
        elif engine.degraded:
            report.find(WARN, engine.degraded)
        elif engine.why_not_gpu:
            report.find(WARN, f"auto took the CPU though there is a GPU: {engine.why_not_gpu}")
        if situation.idle:
            report.find(OK, situation.idle)

    def _find_unforeseen(self, report: Report) -> None:
        """Bring back a thread that has ended, and tell of it and of all else that nobody foresaw."""
        for worker in self._all_workers():
            if death := worker.revive():
                self.unforeseen.add(death)
            elif worker.is_stuck:
                report.find(ERROR, f"the {worker.name} thread hangs: {worker.state}")
        count, newest = self.unforeseen.read()
        if count > self._unforeseen_before:
            report.find(ERROR, f"{count - self._unforeseen_before} unexpected errors, the last: {newest}")
        self._unforeseen_before = count

    def _all_workers(self) -> tuple[Worker, ...]:
        """The threads that should live."""
        return (*self._workers, *(self._comparison.workers if self._comparison.is_on else ()))

    def _of_comparison(self, name: str, binary: Percentiles | None) -> Report:
        """What the two precisions make of the same frames; ``binary``: times of inference of the binary net."""
        report = Report(f"{name}: {diagnostics.COMPARE}", HARDWARE)
        twins = self._comparison.pipeline
        if self._comparison.failure:
            report.find(WARN, f"nothing is compared: {self._comparison.failure}")
        elif twins.engine is None:
            report.find(OK, "the float twin is being made")
        elif twins.engine.degraded:
            report.find(WARN, twins.engine.degraded)
        share, total, differing, last = self._comparison.agreement()
        report.add(
            {
                "backend": twins.engine.backend.name if twins.engine else diagnostics.NOTHING,
                "device": twins.engine.backend.device_name if twins.engine else diagnostics.NOTHING,
                "agreement of the newest labels (%)": 100 * share,
                "labels compared": total,
                "labels that differ": differing,
                "frames passed over for a newer one": twins.counts.stale,
                "last difference": last or "none",
            }
        )
        twin = twins.latency.summary().get("inference")
        for which, percentiles in (("binary", binary), ("float", twin)):
            if percentiles is not None:
                report.add(
                    {
                        f"latency {which} inference {key} (ms)": value
                        for key, value in percentiles._asdict().items()
                    }
                )
        if binary and twin and binary.p50:
            report.add({"binary is so many times faster (p50)": twin.p50 / binary.p50})
        return report

    def _of_camera(
        self,
        name: str,
        number: int,
        situation: Situation,
        totals: dict[str, int],
        new: dict[str, int],
        seconds: float,
    ) -> Report:
        """What the user should know of one camera; the arguments are those of :meth:`_of_engine`."""
        camera = self.cameras[number]
        report = Report(f"{name}: {diagnostics.CAMERA}{camera.topic}", HARDWARE)
        silent_for = time.monotonic() - camera.last_frame
        is_heard = situation.lifecycle == ACTIVE and not situation.idle
        if new[diagnostics.REFUSED]:
            report.find(
                WARN,
                f"{new[diagnostics.REFUSED]} frames refused, the last on {camera.topic}: {camera.last_refusal}",
            )
        if new[diagnostics.LOST]:
            report.find(WARN, f"{new[diagnostics.LOST]} frames lost in transport: {transport_remedy()}")
        missed = new[diagnostics.LOST] + new[diagnostics.STALE]
        if missed * 10 > new[diagnostics.RECEIVED] + new[diagnostics.LOST]:
            self.news.append(
                f"{camera.topic}: {new[diagnostics.LOST]} frames lost in transport and {new[diagnostics.STALE]} "
                f"dropped as stale, {new[diagnostics.RECEIVED]} received"
            )
        if is_heard and silent_for >= SILENCE:
            self._find_silence(report, number, silent_for)
        if camera.boxes_topic and is_heard:
            self._find_without_boxes(report, number)
        if is_heard:
            self._find_picture(report, number, situation.settings)
        if camera.foreign_stamps:
            camera.foreign_stamps = 0
            report.find(
                WARN, "stamps of frames and the clock are over a minute apart; is use_sim_time right?"
            )
        latency = self._pipeline.latencies[number].summary()
        state = CameraState(
            rate_in=new[diagnostics.RECEIVED] / seconds,
            rate_out=new[diagnostics.CLASSIFIED] / seconds,
            frames=totals,
            since_last=silent_for,
            latency=next(iter(latency.values()), None),
            boxes=self._boxes(number),
            brightness=camera.quality.brightness if camera.quality else None,
            sharpness=camera.quality.sharpness if camera.quality else None,
        )
        if is_heard and not self._pipeline.is_loading:
            _find_slow(report, state, situation.settings, camera.topic)
        report.add(state.values())
        return report

    def _boxes(self, number: int) -> dict[str, int]:
        """What became of a camera's boxes; empty where its whole image is labelled."""
        camera, counts = self.cameras[number], self._pipeline.cameras[number]
        if not camera.boxes_topic:
            return {}
        return {
            diagnostics.ANSWERED: counts.boxes,
            diagnostics.UNUSABLE: counts.unusable,
            diagnostics.WITHOUT_IMAGE: camera.unpaired.detections,
            diagnostics.WITHOUT_BOXES: camera.unpaired.images,
        }

    def _find_silence(self, report: Report, number: int, seconds: float) -> None:
        why = find_silence(report, self.cameras[number], seconds, self._why_silent(number))
        if seconds > LOG_SILENCE:
            self.news.append(why)

    def _find_picture(self, report: Report, number: int, settings: Settings) -> None:
        """Note a picture that can show nothing: one a report."""
        camera, pictures = self.cameras[number], self._pipeline.pictures
        picture, pictures[number] = pictures[number], None
        self._pipeline.wants_picture[number] = True
        if picture is not None:
            camera.quality = measure(picture)
            self._judge(report, camera, camera.quality, settings)

    @staticmethod
    def _judge(report: Report, camera: CameraHealth, quality: Quality, settings: Settings) -> None:
        if quality.brightness < settings.min_brightness:
            report.find(
                WARN,
                f"the picture of {camera.topic} is too dark, {quality.brightness:.0f} of 255; is its lens covered, its "
                "exposure too short, or region beside the light? (min_brightness)",
            )
        elif quality.brightness > settings.max_brightness:
            report.find(
                WARN,
                f"the picture of {camera.topic} is too bright, {quality.brightness:.0f} of 255; shorten its exposure "
                "(max_brightness)",
            )
        elif quality.sharpness < settings.min_sharpness:
            report.find(
                WARN,
                f"the picture of {camera.topic} is blurred or empty, sharpness {quality.sharpness:.3f}; clean and "
                "focus its lens (min_sharpness)",
            )
        now = time.monotonic()
        if quality.digest != camera.digest:
            camera.digest, camera.changed_at = quality.digest, now
        elif settings.frozen_after and now - camera.changed_at > settings.frozen_after:
            report.find(
                WARN,
                f"the picture of {camera.topic} has not changed for {now - camera.changed_at:.0f} s though frames "
                "come; is the camera frozen? (frozen_after)",
            )

    def _find_without_boxes(self, report: Report, number: int) -> None:
        camera = self.cameras[number]
        lonely = camera.unpaired.detections - self._lonely_before[number]
        self._lonely_before[number] = camera.unpaired.detections
        find_without_boxes(report, camera, lonely, lambda: self._why_no_boxes(number))


def find_silence(report: Report, camera: CameraHealth, seconds: float, known: tuple[str, int]) -> str:
    """Note that a camera has sent nothing for so long; returns what is noted.

    Args:
        report: of the camera.
        camera: that is silent.
        seconds: since its newest frame.
        known: what keeps its frames away as far as the graph tells, and how many publishers it has.
    """
    why, publishers = known
    if not why:
        why = (
            f"no frame on {camera.topic} for {seconds:.0f} s, though it has {publishers} "
            f"publisher(s); if it should have sent some, {transport_remedy()}"
        )
    report.find(WARN, why)
    return why


def find_without_boxes(
    report: Report, camera: CameraHealth, lonely: int, why_no_boxes: Callable[[], tuple[str, int]]
) -> None:
    """Note boxes that do not come, or come without their image.

    Args:
        report: of the camera.
        camera: that has boxes.
        lonely: messages of boxes that found no image, since the last report.
        why_no_boxes: what keeps the boxes away as far as the graph tells, and how many publishers they have.
    """
    now = time.monotonic()
    distance = camera.unpaired.distance
    nearest = "none waited" if distance is None else f"the nearest was {distance * 1e-6:.1f} ms away"
    remedy = f"({nearest}); let the detector copy the header of the image, or raise sync_tolerance"
    if now - camera.last_boxes >= SILENCE:
        why, publishers = why_no_boxes()
        seconds = now - camera.last_boxes
        report.find(
            WARN,
            why
            or f"no boxes on {camera.boxes_topic} for {seconds:.0f} s, though it has {publishers} publisher(s)",
        )
    elif now - camera.last_pair >= SILENCE:
        report.find(
            WARN,
            f"no boxes on {camera.boxes_topic} have found their image on {camera.topic} for "
            f"{now - camera.last_pair:.0f} s {remedy}",
        )
    elif lonely:
        report.find(
            WARN,
            f"{lonely} messages on {camera.boxes_topic} found no image of {camera.topic} with their stamp {remedy}",
        )


def _find_slow(report: Report, state: CameraState, settings: Settings, topic: str) -> None:
    """Note where a camera falls below what the user has set."""
    if settings.min_rate and state.rate_out < settings.min_rate:
        report.find(
            WARN,
            f"{state.rate_out:.1f} labels a second of {topic}, fewer than min_rate = {settings.min_rate:g}; "
            f"{state.rate_in:.1f} frames a second came",
        )
    limit = settings.max_age * 1e3
    if limit and state.latency is not None and state.latency.p99 > limit:
        report.find(
            WARN,
            f"frames of {topic} are up to {state.latency.p99:.0f} ms old when their labels go out (p99), more than "
            f"max_age = {limit:g} ms; the stages of {diagnostics.ENGINE} say where the time goes",
        )


def _asked(situation: Situation) -> str:
    return str(situation.spec.asked if situation.spec is not None else situation.settings)


def _numbers(counts: Counts, lost: int) -> dict[str, int]:
    """What became of frames, by the names of diagnostics."""
    return {
        diagnostics.RECEIVED: counts.received,
        diagnostics.CLASSIFIED: counts.classified,
        diagnostics.SKIPPED: counts.skipped,
        diagnostics.STALE: counts.stale,
        diagnostics.LOADING: counts.loading,
        diagnostics.LOST: lost,
        diagnostics.FAILED: counts.failed,
        diagnostics.REFUSED: sum(counts.refused.values()),
    }


def _sum(numbers: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(each[key] for each in numbers) for key in numbers[0]}
