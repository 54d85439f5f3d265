"""Requests for engines that could not be met, between the three threads of the node."""

from __future__ import annotations

import threading

from bnn_perception.ros.engine import EngineSpec
from bnn_perception.ros.parameters import EngineSettings


class Refusals:
    """Noted in the loading thread, judged in the executor's, forgotten in the inference thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unjudged: list[tuple[EngineSpec, str]] = []
        self._standing: tuple[EngineSpec, str] | None = None

    def note(self, spec: EngineSpec, reason: str, running: EngineSpec | None) -> None:
        """A request could not be met.

        Args:
            spec: what was requested.
            reason: in one line.
            running: what goes on instead, None where nothing does.
        """
        if running is not None:
            reason = self.keep(running, spec.asked, reason)
        with self._lock:
            self._unjudged.append((spec, reason))

    def keep(self, running: EngineSpec, asked: EngineSettings, reason: str) -> str:
        """What was asked for is refused, and ``running`` goes on; returns that in one line."""
        line = f"kept {running.asked}, for {asked} was refused: {reason}"
        with self._lock:
            self._standing = running, line
        return line

    def take(self) -> list[tuple[EngineSpec, str]]:
        """What has been noted since the last call, oldest first."""
        with self._lock:
            unjudged, self._unjudged = self._unjudged, []
        return unjudged

    def engine_started(self, spec: EngineSpec) -> None:
        """An engine answers. One of a newer request takes the place of what was refused.

        The engine that went on instead may start only after the refusal, for the other thread had yet to take it.
        """
        with self._lock:
            if self._standing is not None and self._standing[0] is not spec:
                self._standing = None

    @property
    def newest(self) -> str:
        """Why the newest request was refused, empty where it was met."""
        with self._lock:
            return self._standing[1] if self._standing is not None else ""
