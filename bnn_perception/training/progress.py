"""What the user sees while training runs: lines, a progress bar, warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

#: The folder of this package, whose warnings are lines for the user.
PACKAGE = Path(__file__).parents[1]


def duration(seconds: float) -> str:
    """A time to wait in the unit that one would say it in: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Prints lines, and below them a progress bar where the output is a terminal.

    Args:
        quiet: print neither, as in all processes of a training but the first.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console: Any = None
        if sys.stdout is not None and sys.stdout.isatty() and not quiet:
            from rich.console import Console

            self._console = Console(highlight=False)

    def line(self, text: str) -> None:
        """Print one line."""
        if self._console is not None:
            self._console.print(text, markup=False)
        elif not self._quiet:
            print(text, flush=True)

    @contextmanager
    def bar(self, title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
        """A bar of ``total`` steps, ``done`` of them done; yields a function that counts one more."""
        if self._console is None:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda: progress.advance(task)


@contextmanager
def short_warnings(command: str) -> Iterator[None]:
    """Print a warning of this package in one line, for it is about the user's files and not about a line of code.

    Args:
        command: the command that the line names.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if Path(filename).is_relative_to(PACKAGE):
            text = f"bnn_perception {command}: {message}\n"
        else:
            text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
