"""Times of the stages that a frame passes, over a window of the newest frames."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Where the time of each stage begins and ends. A GPU backend adds stages of its own.
STAGES = {
    "receive": "stamp of the camera to entry of the callback",
    "wait": "for the inference thread",
    "decode": "message to pixels",
    "preprocess": "crop, resize, colour",
    "inference": "the network",
    "publish": "the labels",
    "node": "entry of the callback to labels published",
    "overhead": "node without what the backend took",
    "total": "stamp of the camera to labels published",
}

#: Frames in the window: twenty seconds of a 30 Hz camera.
WINDOW = 600


class Percentiles(NamedTuple):
    """What :class:`LatencyWindow` tells of one stage, in milliseconds."""

    p50: float
    p95: float
    p99: float
    maximum: float


class LatencyWindow:
    """A ring buffer for each stage. One thread adds while another reads."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._rings: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, milliseconds: Mapping[str, float]) -> None:
        """Add one frame's time in each stage that it passed."""
        with self._lock:
            for stage, value in milliseconds.items():
                ring = self._rings.setdefault(stage, np.zeros(self._window))
                count = self._counts.get(stage, 0)
                ring[count % self._window] = value
                self._counts[stage] = count + 1

    def summary(self) -> dict[str, Percentiles]:
        """Percentiles by stage, in the order in which the stages first came."""
        with self._lock:
            samples = {stage: ring[: self._counts[stage]].copy() for stage, ring in self._rings.items()}
        result = {}
        for stage, values in samples.items():
            p50, p95, p99 = np.percentile(values, (50, 95, 99))
            result[stage] = Percentiles(float(p50), float(p95), float(p99), float(values.max()))
        return result
