"""The errors of this package: what its user can mend, each with one line that names the thing and the remedy.

Messages quote files, messages and parameters of others, so every one is made fit for a terminal here.

Modules derive their own from :class:`Error` (``ModelError``, ``BackendError``, ``ImageError`` ...). Whoever talks to a
person (the command line, the nodes) prints the message of an :class:`Error` and no traceback.
"""

from __future__ import annotations

#: Characters of a foreign message at most: parsers quote whole files in theirs.
MAX_LENGTH = 300
#: Characters of a text in messages, logs and diagnostics at most: what others hold can be megabytes long.
MAX_TEXT = 2000


def printable(text: str) -> str:
    """A text as logs, terminals and ROS strings take it, its middle left out beyond :data:`MAX_TEXT` characters.

    What is long in a message is what it quotes; the reason and the remedy stand at its end. Half of a character (a lone
    surrogate) and NUL become "?", control characters are escaped: a terminal obeys them.
    """
    if len(text) > MAX_TEXT:
        text = f"{text[: 3 * MAX_TEXT // 4]}... ({len(text)} characters) ...{text[-MAX_TEXT // 4 :]}"
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown(text: str, limit: int = 80) -> str:
    """A foreign text within a sentence: :func:`printable`, and short."""
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


class Error(Exception):
    """The base of all errors that a user can mend; the message is one line, and :func:`printable`."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class CommandError(Error):
    """A command that cannot go on."""


def one_line(error: BaseException, with_type: bool = False) -> str:
    """What a foreign exception says, on one line of at most :data:`MAX_LENGTH` characters.

    Args:
        error: of a library or the system.
        with_type: begin with the name of its type, for errors whose messages say little without it.

    Returns:
        The message; the name of the type where there is none.
    """
    message = printable(" ".join(str(error).split())[:MAX_LENGTH])
    if with_type or not message:
        name = type(error).__name__
        return f"{name}: {message}" if message else name
    return message
