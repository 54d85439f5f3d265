"""The errors of this package: what its user can mend, each with one line that names the thing and the remedy.

Modules derive their own from :class:`Error` (``ModelError``, ``BackendError``, ``ImageError`` ...). Whoever talks to a
person (the command line, the nodes) prints the message of an :class:`Error` and no traceback.
"""

from __future__ import annotations

#: Characters of a foreign message at most: parsers quote whole files in theirs.
MAX_LENGTH = 300


class Error(Exception):
    """The base of all errors that a user can mend; the message is one line."""


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
    message = " ".join(str(error).split())[:MAX_LENGTH]
    if with_type or not message:
        name = type(error).__name__
        return f"{name}: {message}" if message else name
    return message
