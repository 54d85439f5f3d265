"""Reads models beside the executor: however long a disk or a folder's content takes, no callback waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from bnn_perception.errors import Error

Result = TypeVar("Result")

#: Readings that may be under way at once. One that hangs, on a network that has gone, say, must not keep out the next.
MAX_READINGS = 4


class ReadingError(Error):
    """Nothing more can be read for the time being; the message says why."""


class Reading(Generic[Result]):
    """A call in a thread of its own, which the end of the process does not wait for. It runs from its making on.

    Args:
        call: what to do.
        ended: called in the thread when the call has ended, however.

    Raises:
        ReadingError: where :data:`MAX_READINGS` are under way.
    """

    _lock = threading.Lock()
    _under_way = 0

    def __init__(self, call: Callable[[], Result], ended: Callable[[], None] = lambda: None) -> None:
        with Reading._lock:
            if Reading._under_way >= MAX_READINGS:
                raise ReadingError(f"{MAX_READINGS} models are still being read; is their disk still there?")
            Reading._under_way += 1
        self._call = call
        self._tell = ended
        self._has_ended = threading.Event()
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error
        finally:
            with Reading._lock:
                Reading._under_way -= 1
            self._has_ended.set()
            self._tell()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, so long at most; whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def has_ended(self) -> bool:
        """Whether the call has ended."""
        return self._has_ended.is_set()

    def result(self) -> Result:
        """What the call returned; to be asked for when it has ended.

        Raises:
            BaseException: what the call raised.
        """
        if self._error is not None:
            raise self._error
        return self._result[0]
