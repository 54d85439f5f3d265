"""The node's own threads: one repeats a step, outlives what the step raises, and says what it is busy with.

What was foreseen is handled where it happens. What was not (a bug, a library that raises what it never did before)
costs the message or the request that it came with, is said with its type and place, and the thread goes on.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bnn_perception.errors import one_line

#: Seconds between two steps where the first raised: what fails at once and always must not take the whole processor.
PAUSE = 0.05


class Worker:
    """A thread that repeats a step. It runs from :meth:`start` until a step says that it was the last.

    Args:
        name: of the thread, for logs and diagnostics.
        step: does one turn, waiting for something to do included; returns whether there is another.
        report: called in the thread with a line about an exception that nobody foresaw.
        patience: seconds that it may be busy with one thing before it counts as stuck.
    """

    def __init__(
        self, name: str, step: Callable[[], bool], report: Callable[[str], None], patience: float
    ) -> None:
        self.name = name
        self._step = step
        self._report = report
        self._patience = patience
        self._busy: tuple[str, float] | None = None
        self._thread: threading.Thread | None = None
        self._asked_to_end = False
        self._last_words = ""

    # Any thread.

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def join(self, patience: float | None = None) -> bool:
        """Wait for the end, which the step has been told of.

        Args:
            patience: seconds; None waits as long as it takes.

        Returns:
            Whether the thread has ended, or was never started.
        """
        self._asked_to_end = True
        if self._thread is None:
            return True
        self._thread.join(patience)
        return not self._thread.is_alive()

    def revive(self) -> str:
        """Start the thread again where it has ended unasked; returns what ended it, empty where it lives."""
        if self._thread is None or self._asked_to_end or self._thread.is_alive():
            return ""
        reason = f"the {self.name} thread ended ({self._last_words}) and was started again"
        self._busy = None
        # Where the system has no thread left, the next call tries again.
        with suppress(RuntimeError):
            self.start()
        return reason

    @property
    def has_started(self) -> bool:
        """Whether :meth:`start` has been called."""
        return self._thread is not None

    @property
    def state(self) -> str:
        """What it does: ``waiting``, or ``evaluating frames for 0.1 s``."""
        busy = self._busy
        return "waiting" if busy is None else f"{busy[0]} for {time.monotonic() - busy[1]:.1f} s"

    @property
    def is_stuck(self) -> bool:
        """Whether it has been busy with one thing for longer than its patience."""
        busy = self._busy
        return busy is not None and time.monotonic() - busy[1] > self._patience

    # The thread itself.

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Say what the thread is busy with inside."""
        before, self._busy = self._busy, (what, time.monotonic())
        try:
            yield
        finally:
            self._busy = before

    def attempt(self, what: str, function: Callable[..., object], *arguments: object) -> bool:
        """Call a function; what it raises is said, and costs no more than the call.

        Returns:
            Whether it raised nothing.
        """
        try:
            with self.busy(what):
                function(*arguments)
        except Exception as error:
            self.note(what, error)
            return False
        return True

    def note(self, what: str, error: BaseException) -> None:
        """Say that nobody foresaw an exception, which came while the thread was doing something."""
        # A log that fails cannot say so.
        with suppress(Exception):
            self._report(f"{what}: {with_place(error)}")

    def _run(self) -> None:
        try:
            while True:
                try:
                    if not self._step():
                        return
                except Exception as error:
                    self.note(f"the {self.name} thread", error)
                    if self._asked_to_end:
                        return
                    time.sleep(PAUSE)
        # An exit that a library calls for, say. The thread ends, and revive() says why.
        except BaseException as error:
            self._last_words = with_place(error)


class Unforeseen:
    """How many exceptions nobody foresaw, and what was said of the newest. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._newest = ""

    def add(self, line: str) -> None:
        """Count one."""
        with self._lock:
            self._count += 1
            self._newest = line

    def read(self) -> tuple[int, str]:
        """The number, and the line of the newest."""
        with self._lock:
            return self._count, self._newest


def with_place(error: BaseException) -> str:
    """An exception on one line, with its type and the place in the sources where it was raised."""
    line = one_line(error, with_type=True)
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return line
    place = "/".join(Path(frames[-1].filename).parts[-2:])
    return f"{line} (at {place}:{frames[-1].lineno})"
