"""The node's state as diagnostic_msgs/DiagnosticArray, after REP-107, and the way back from the message.

There is a status of the engine and one of each camera, named ``<node>: engine`` and ``<node>: camera <topic>``.
:class:`State` and :class:`CameraState` write their values and read them; nobody else needs to know their keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnn_perception.errors import printable
from bnn_perception.ros.latency import Percentiles

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

#: Order of the levels of diagnostic_msgs/DiagnosticStatus.
OK, WARN, ERROR = 0, 1, 2

#: What stands for the backend and its device while no engine answers.
NOTHING = "none"

#: What becomes of frames, as :attr:`State.frames` counts them.
RECEIVED, CLASSIFIED, STALE, LOADING = "received", "classified", "dropped as stale", "dropped while loading"
SKIPPED, LOST, FAILED, REFUSED = "skipped by max_rate", "lost in transport", "failed", "refused"

#: What becomes of a detector's boxes, and of images and messages of boxes that do not find each other.
ANSWERED, UNUSABLE = "boxes answered", "boxes that hold no pixel of the image"
WITHOUT_IMAGE, WITHOUT_BOXES = "messages of boxes without an image", "images without boxes"

#: What follows the node's name and a colon in the name of a status; the camera's topic follows the latter.
ENGINE, COMPARE, CAMERA = "engine", "compare", "camera "


@dataclass(frozen=True)
class State:
    """The state of the classifier node, as its diagnostics tell it.

    Attributes:
        lifecycle: unconfigured, inactive, active or finalized.
        model: name of the model that answers, or is being loaded.
        backend, device: what answers; :data:`NOTHING` while no engine does.
        device_wanted: value of the parameter ``device``.
        why_not_gpu: why ``auto`` took the CPU, empty where it did not.
        rate_in, rate_out: frames received and classified a second, since the last message.
        frames: since the start; :data:`RECEIVED` and so on.
        refused: frames refused since the start by reason.
        unexpected: exceptions since the start that nobody foresaw.
        threads: what each of the node's threads is busy with.
        latency: percentiles by stage, see :data:`~bnn_perception.ros.latency.STAGES`.
    """

    lifecycle: str
    model: str
    backend: str
    device: str
    device_wanted: str
    why_not_gpu: str
    rate_in: float
    rate_out: float
    frames: Mapping[str, int]
    refused: Mapping[str, int]
    latency: Mapping[str, Percentiles]
    unexpected: int = 0
    threads: Mapping[str, str] = field(default_factory=dict)

    @property
    def answers(self) -> bool:
        """Whether an engine is there that answers frames."""
        return self.backend != NOTHING

    def values(self) -> dict[str, object]:
        """Keys and values of the message."""
        why = {_WHY: self.why_not_gpu} if self.why_not_gpu else {}
        return {
            _LIFECYCLE: self.lifecycle,
            _MODEL: self.model,
            _BACKEND: self.backend,
            _DEVICE: self.device,
            _WANTED: self.device_wanted,
            **why,
            _RATE_IN: self.rate_in,
            _RATE_OUT: self.rate_out,
            **{_FRAMES + name: count for name, count in self.frames.items()},
            **{_REFUSED + reason: count for reason, count in sorted(self.refused.items())},
            _UNEXPECTED: self.unexpected,
            **{name + _THREAD: state for name, state in self.threads.items()},
            **_latency_values(self.latency),
        }

    @classmethod
    def from_values(cls, values: Mapping[str, str]) -> State:
        """The state that a message tells; numbers with a fraction are known to three digits after the point.

        Raises:
            KeyError, ValueError: where the values are not those of :meth:`values`.
        """
        refused = {key[len(_REFUSED) :]: int(n) for key, n in values.items() if key.startswith(_REFUSED)}
        return cls(
            lifecycle=values[_LIFECYCLE],
            model=values[_MODEL],
            backend=values[_BACKEND],
            device=values[_DEVICE],
            device_wanted=values[_WANTED],
            why_not_gpu=values.get(_WHY, ""),
            rate_in=float(values[_RATE_IN]),
            rate_out=float(values[_RATE_OUT]),
            frames=_frames(values),
            refused=refused,
            unexpected=int(values.get(_UNEXPECTED, 0)),
            threads={key[: -len(_THREAD)]: state for key, state in values.items() if key.endswith(_THREAD)},
            latency=_latencies(values),
        )


@dataclass(frozen=True)
class CameraState:
    """The state of one camera, as diagnostics tell it.

    Attributes:
        rate_in, rate_out: frames received and classified a second, since the last message.
        frames: since the start; :data:`RECEIVED` and so on.
        since_last: seconds since the newest frame.
        latency: from the stamp of a frame to its labels, or from its coming where stamp and clock have nothing in
            common; None before there are labels.
        boxes: since the start; :data:`ANSWERED` and so on. Empty where the whole image is labelled.
        brightness, sharpness: see :class:`~bnn_perception.frames.quality.Quality`; None before a picture was measured.
    """

    rate_in: float
    rate_out: float
    frames: Mapping[str, int]
    since_last: float
    latency: Percentiles | None
    boxes: Mapping[str, int] = field(default_factory=dict)
    brightness: float | None = None
    sharpness: float | None = None

    def values(self) -> dict[str, object]:
        """Keys and values of the message."""
        return {
            _RATE_IN: self.rate_in,
            _RATE_OUT: self.rate_out,
            _SINCE: self.since_last,
            **{_FRAMES + name: count for name, count in self.frames.items()},
            **self.boxes,
            **_latency_values({_LABELS: self.latency} if self.latency else {}),
            **{
                name: value
                for name, value in ((_BRIGHTNESS, self.brightness), (_SHARPNESS, self.sharpness))
                if value is not None
            },
        }

    @classmethod
    def from_values(cls, values: Mapping[str, str]) -> CameraState:
        """The state that a message tells; numbers with a fraction are known to three digits after the point.

        Raises:
            KeyError, ValueError: where the values are not those of :meth:`values`.
        """
        return cls(
            rate_in=float(values[_RATE_IN]),
            rate_out=float(values[_RATE_OUT]),
            frames=_frames(values),
            since_last=float(values[_SINCE]),
            latency=_latencies(values).get(_LABELS),
            boxes={name: int(values[name]) for name in _BOXES if name in values},
            brightness=float(values[_BRIGHTNESS]) if _BRIGHTNESS in values else None,
            sharpness=float(values[_SHARPNESS]) if _SHARPNESS in values else None,
        )


def _frames(values: Mapping[str, str]) -> dict[str, int]:
    return {
        key[len(_FRAMES) :]: int(count)
        for key, count in values.items()
        if key.startswith(_FRAMES) and not key.startswith(_REFUSED)
    }


def _latency_values(latency: Mapping[str, Percentiles]) -> dict[str, float]:
    return {
        f"{_LATENCY}{stage} {name}{_UNIT}": value
        for stage, percentiles in latency.items()
        for name, value in percentiles._asdict().items()
    }


def _latencies(values: Mapping[str, str]) -> dict[str, Percentiles]:
    times: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        if key.startswith(_LATENCY):
            stage, name = key[len(_LATENCY) : -len(_UNIT)].rsplit(" ", 1)
            times.setdefault(stage, {})[name] = float(value)
    return {stage: Percentiles(**percentiles) for stage, percentiles in times.items()}


_LIFECYCLE = "state"
_MODEL, _BACKEND, _DEVICE, _WANTED, _WHY = "model", "backend", "device", "device wanted", "why not the GPU"
_RATE_IN, _RATE_OUT = "rate in (Hz)", "rate out (Hz)"
_BOXES = (ANSWERED, UNUSABLE, WITHOUT_IMAGE, WITHOUT_BOXES)
_BRIGHTNESS, _SHARPNESS = "brightness", "sharpness"
_SINCE, _LABELS = "since the last frame (s)", "to labels"
_UNEXPECTED, _THREAD = "unexpected errors", " thread"
_FRAMES, _REFUSED, _LATENCY, _UNIT = "frames ", "frames refused: ", "latency ", " (ms)"


@dataclass
class Report:
    """What one status says: findings decide its level, values stand below them."""

    name: str
    hardware_id: str
    findings: list[tuple[int, str]] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def find(self, level: int, text: str) -> None:
        """Note something that the user should know."""
        self.findings.append((level, text))

    def add(self, values: Mapping[str, object]) -> None:
        """Add values; numbers with a fraction are shown to three digits after the point."""
        for key, value in values.items():
            self.values[key] = f"{value:.3f}" if isinstance(value, float) else str(value)

    @property
    def level(self) -> int:
        """Of the worst finding."""
        return max((level for level, _ in self.findings), default=OK)

    @property
    def text(self) -> str:
        """All findings, the worst first; empty where there are none."""
        return "; ".join(text for _, text in sorted(self.findings, key=lambda finding: -finding[0]))

    def status(self) -> DiagnosticStatus:
        """As a message."""
        from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

        # The constants of `level` are bytes, as the field is.
        levels = {OK: DiagnosticStatus.OK, WARN: DiagnosticStatus.WARN, ERROR: DiagnosticStatus.ERROR}
        return DiagnosticStatus(
            level=levels[self.level],
            name=self.name,
            message=printable(self.text) or "OK",
            hardware_id=printable(self.hardware_id),
            values=[
                KeyValue(key=printable(key), value=printable(value)) for key, value in self.values.items()
            ],
        )


def as_message(reports: Iterable[Report], stamp: Any) -> DiagnosticArray:
    """The reports as one message; ``stamp`` is a builtin_interfaces Time."""
    from diagnostic_msgs.msg import DiagnosticArray

    array = DiagnosticArray(status=[report.status() for report in reports])
    array.header.stamp = stamp
    return array


def as_mapping(key_values: Iterable[Any]) -> dict[str, str]:
    """The values of a DiagnosticStatus by key."""
    return {item.key: item.value for item in key_values}
