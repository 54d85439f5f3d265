"""What /diagnostics says of the collect node: a status of the collection, and one of each camera."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from bnn_perception.collection import Outcome
from bnn_perception.ros import diagnostics
from bnn_perception.ros.collect_parameters import CollectSettings
from bnn_perception.ros.diagnostics import ERROR, OK, WARN, Report
from bnn_perception.ros.health import HARDWARE, SILENCE, CameraHealth, find_silence, find_without_boxes
from bnn_perception.ros.process import transport_remedy
from bnn_perception.ros.saving import Saver
from bnn_perception.ros.worker import Unforeseen

#: What follows the node's name and a colon in the name of the status of the collection.
COLLECTION = "collection"

#: What stands before a label in the key of its count.
IMAGES_OF = "images of "

#: Labels whose counts are told, those with the most images.
MAX_LABELS = 100


class CollectReport:
    """Reports of the collect node, made in the executor's thread.

    Args:
        name: of the node.
        saver: the saving thread.
        cameras: what is noticed of each.
        unforeseen: exceptions that nobody foresaw.
        why_silent: given a camera's number, what keeps its frames away as far as the graph tells, and how many
            publishers it has.
        why_no_boxes: the same of its boxes.

    Attributes:
        seen: frames of each camera, written by the node.
        last_failure: what was said of the newest image that could not be written, written by the node.
        refused: messages of each camera that could not be used, written by the node.
    """

    def __init__(
        self,
        name: str,
        saver: Saver,
        cameras: Sequence[CameraHealth],
        unforeseen: Unforeseen,
        why_silent: Callable[[int], tuple[str, int]],
        why_no_boxes: Callable[[int], tuple[str, int]],
    ) -> None:
        self.seen = [0] * len(cameras)
        self.refused = [0] * len(cameras)
        self.last_failure = ""
        self._name = name
        self._saver = saver
        self._cameras = cameras
        self._unforeseen = unforeseen
        self._why_silent = why_silent
        self._why_no_boxes = why_no_boxes
        self._before: Counter[str] = Counter()
        self._reported_at = time.monotonic()

    def make(self, settings: CollectSettings, is_subscribed: bool) -> list[Report]:
        """The reports since the last ones: of the collection, then of each camera.

        Args:
            settings: of the moment.
            is_subscribed: whether images are taken.
        """
        now = time.monotonic()
        seconds, self._reported_at = now - self._reported_at, now
        reports = [self._of_collection(settings)]
        for number in range(len(self._cameras)):
            reports.append(self._of_camera(number, is_subscribed, seconds))
        return reports

    def _new(self, key: str, total: int) -> int:
        """How much a number has grown since the last report."""
        new = total - self._before[key]
        self._before[key] = total
        return new

    def _of_collection(self, settings: CollectSettings) -> Report:
        report = Report(f"{self._name}: {COLLECTION}", HARDWARE)
        saver, collection = self._saver, self._saver.collection
        if not settings.label:
            report.find(OK, "paused: label is empty")
        if new := self._new("failed", saver.failed):
            report.find(ERROR, f"{new} images could not be saved, the last: {self.last_failure}")
        if self._new("full", saver.became[Outcome.FULL]):
            report.find(
                ERROR,
                f"{collection.folder} is full, with {len(collection)} images of {collection.bytes >> 20} MB; train on "
                "them, start with another folder, or with larger max_images and max_bytes",
            )
        if new := self._new("dropped", saver.dropped):
            report.find(
                WARN,
                f"{new} images came faster than they can be saved; raise every, or save on a faster disk",
            )
        if death := saver.worker.revive():
            self._unforeseen.add(death)
        elif saver.worker.is_stuck:
            report.find(ERROR, f"the {saver.worker.name} thread hangs: {saver.worker.state}")
        count, newest = self._unforeseen.read()
        if new := self._new("unforeseen", count):
            report.find(ERROR, f"{new} unexpected errors, the last: {newest}")
        counts = Counter(dict(collection.counts))
        report.add(
            {
                "label": settings.label,
                "folder": collection.folder,
                "images": len(collection),
                "MB": collection.bytes / 1e6,
                **{IMAGES_OF + label: number for label, number in counts.most_common(MAX_LABELS)},
                **{outcome.value: saver.became[outcome] for outcome in Outcome},
                "not written": saver.failed,
                "dropped": saver.dropped,
                **{f"frames refused: {reason}": n for reason, n in sorted(dict(saver.refused).items())},
                "boxes unusable": saver.unusable,
                "unexpected errors": count,
                f"{saver.worker.name} thread": saver.worker.state,
            }
        )
        return report

    def _of_camera(self, number: int, is_subscribed: bool, seconds: float) -> Report:
        camera = self._cameras[number]
        report = Report(f"{self._name}: {diagnostics.CAMERA}{camera.topic}", HARDWARE)
        silent_for = time.monotonic() - camera.last_frame
        if new := self._new(f"refused {number}", self.refused[number]):
            report.find(WARN, f"{new} frames refused, the last on {camera.topic}: {camera.last_refusal}")
        if new := self._new(f"lost {number}", camera.lost):
            report.find(WARN, f"{new} frames lost in transport: {transport_remedy()}")
        if is_subscribed and silent_for >= SILENCE:
            find_silence(report, camera, silent_for, self._why_silent(number))
        lonely = self._new(f"lonely {number}", camera.unpaired.detections)
        if is_subscribed and camera.boxes_topic:
            find_without_boxes(report, camera, lonely, lambda: self._why_no_boxes(number))
        received = self._new(f"seen {number}", self.seen[number])
        report.add(
            {
                "rate in (Hz)": received / seconds,
                "frames received": self.seen[number],
                "frames lost in transport": camera.lost,
                "since the last frame (s)": silent_for,
            }
        )
        return report
