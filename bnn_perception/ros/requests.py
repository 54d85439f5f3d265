"""Requests for engines: what the parameters ask for is read, handed to the loading thread, and set back if refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.executors import ExternalShutdownException

from bnn_perception.backends import BackendError, check_choice
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import load_model
from bnn_perception.ros.engine import EngineLoader, EngineSpec
from bnn_perception.ros.model_root import model_folder
from bnn_perception.ros.parameters import Settings
from bnn_perception.ros.reading import Reading
from bnn_perception.ros.refusals import Refusals
from bnn_perception.ros.worker import with_place

#: Seconds that a request for a model waits for it to be read, so that what is wrong with it is known at once. No frame
#: is taken meanwhile. A model that takes longer is refused or taken later, as one whose engine must be made is.
READING = 0.5

#: Seconds that the model may take to be read when the node is configured.
FIRST_READING = 60.0


class EngineRequests:
    """The engine that is wanted. All but :meth:`note_rejection` and what is given belongs to the executor's thread.

    Args:
        loader: makes the engines.
        refusals: requests that could not be met.
        restore: sets the node's parameters to these values.
        wake: lets the executor call :meth:`take_news` soon; called in any thread.
        unexpected: called with a line about an exception that nobody foresaw.
        refuse: called with a line about a request that could not be met.

    Attributes:
        spec: what answers or is to answer; None before a model has been read.
        is_running: whether engines are to be made of it.
    """

    def __init__(
        self,
        loader: EngineLoader,
        refusals: Refusals,
        restore: Callable[[dict[str, Any]], None],
        wake: Callable[[], None],
        unexpected: Callable[[str], None],
        refuse: Callable[[str], None],
    ) -> None:
        self.spec: EngineSpec | None = None
        self.is_running = False
        self._loader = loader
        self._refusals = refusals
        self._restore = restore
        self._wake = wake
        self._unexpected = unexpected
        self._refuse = refuse
        # The model of the newest request, while it is being read, and the settings that ask for it.
        self._late: tuple[Reading[EngineSpec], Settings] | None = None

    def read(self, settings: Settings, is_open: Callable[[], bool]) -> None:
        """Read the model that the settings ask for, while signals are heeded.

        Args:
            settings: of the node.
            is_open: whether ROS has not been shut down.

        Raises:
            ModelError, BackendError, ReadingError: where it cannot be used.
            ExternalShutdownException: where ROS is shut down meanwhile.
        """
        reading = Reading(lambda: make_spec(settings))
        until = time.monotonic() + FIRST_READING
        while not reading.wait(0.05):
            if not is_open():
                raise ExternalShutdownException
            if time.monotonic() > until:
                raise ModelError(
                    f"{settings.model}: could not be read in {FIRST_READING:.0f} s; is its disk still there?"
                )
        self.spec = reading.result()

    def start(self) -> None:
        """Let the engine be made."""
        self.is_running = True
        if self.spec is not None:
            self._loader.request(self.spec)

    def stop(self) -> None:
        """Let no engine be made any more."""
        self.is_running = False
        self._late = None
        self._loader.forget()
        self._refusals.take()

    def forget(self) -> None:
        """Give up the model as well."""
        self.spec = None

    def change(self, settings: Settings, reads: bool) -> None:
        """Ask for what the settings say; what is wrong with it and known soon is raised.

        Args:
            settings: that are wanted.
            reads: whether the model is read, as one that is set again is: it may have been trained further.

        Raises:
            ModelError, BackendError, ReadingError: where it cannot be used.
        """
        if self.spec is None:  # read when the node is configured
            return
        # A model that is still being read is that of these settings too.
        if not reads and self._late is None:
            spec = make_spec(settings, self.spec)
        else:
            reading = Reading(lambda: make_spec(settings), self._wake)
            if not reading.wait(READING):
                self._late = reading, settings
                return
            spec = reading.result()
            self._late = None
        self.spec = spec
        if self.is_running:
            self._loader.request(spec)

    def note_rejection(self, spec: EngineSpec, reason: str) -> None:
        """A request could not be met; called in the loading thread."""
        self._refusals.note(spec, reason, self._loader.current)
        self._wake()

    def take_news(self) -> None:
        """Judge what other threads have brought: a model that was read late, a request that was not met.

        Raises:
            BackendError: where an engine cannot be made and none runs.
        """
        self._take_late()
        for spec, reason in self._refusals.take():
            # Another request has come meanwhile.
            newer = spec is not self.spec or self._late is not None
            running = self._loader.current
            if running is None and not newer:
                raise BackendError(reason)
            self._refuse(reason)
            if running is not None and not newer:
                self.spec = running
                self._restore(running.asked.engine_values())

    def _take_late(self) -> None:
        if self._late is None or self.spec is None:
            return
        reading, settings = self._late
        if not reading.has_ended:
            return
        self._late = None
        try:
            self.spec = reading.result()
        except Exception as error:
            known = isinstance(error, (ModelError, BackendError))
            if not known:
                self._unexpected(f"reading a model: {with_place(error)}")
            reason = str(error) if known else f"unexpected error: {with_place(error)}"
            self._refuse(self._refusals.keep(self.spec, settings, reason))
            self._restore(self.spec.asked.engine_values())
            if self._loader.current is not None:
                return
        if self.is_running:
            # Where the first engine has been refused meanwhile, this says so anew.
            self._loader.request(self.spec)


def make_spec(settings: Settings, loaded: EngineSpec | None = None) -> EngineSpec:
    """What the settings ask for, checked as far as it can be without making an engine.

    Args:
        settings: of the node.
        loaded: holds the model already; None reads it.

    Raises:
        ModelError: where the model cannot be used.
        BackendError: where the backend cannot evaluate it.
    """
    model = (
        loaded.model if loaded is not None else load_model(model_folder(settings.model, settings.model_root))
    )
    check_choice(model, settings.backend, settings.device)
    return EngineSpec(settings, model)
