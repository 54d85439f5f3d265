"""The command line: one module a command, listed in :mod:`bnn_perception.__main__` and imported when it is called.

A command's module has ``add_parser(subparsers)`` and ``run(args) -> exit code``; its summary stands in the list of
commands alone. Errors that a user can mend are raised as :class:`~bnn_perception.errors.Error` and printed as one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from bnn_perception.errors import CommandError, Error, printable


def execute(module: ModuleType, name: str, argv: Sequence[str], summary: str = "") -> int:
    """Run the command ``name`` of a module.

    Args:
        module: has ``add_parser`` and ``run``.
        name: as the user typed it.
        argv: arguments after the name.
        summary: what the command does, from the list of commands; stands first in its help.

    Returns:
        The exit code: 0 for success, 1 where the command failed with a message, 2 for wrong usage, 130 for Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="bnn_perception")
    subparsers = parser.add_subparsers(required=True)
    module.add_parser(subparsers)
    command = subparsers.choices.get(name)
    if command is not None and summary:
        sentence = f"{summary[0].upper()}{summary[1:]}."
        command.description = f"{sentence} {command.description or ''}".strip()
    try:
        try:
            args = parser.parse_args([name, *argv])
            return int(module.run(args))
        finally:  # also behind the help, which ends in an exit
            if sys.stdout is not None:  # as it is where the shell has closed it
                sys.stdout.flush()
    except Error as error:
        print(f"bnn_perception {name}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more when it flushes at exit.
        sys.stdout = None
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(printable(f"bnn_perception {name}: {where}{error.strerror or error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose a model and what evaluates it, the same for every command."""
    from bnn_perception.backends import BACKENDS, DEVICES

    parser.add_argument(
        "--model",
        default="road_signs",
        help="model folder, or the name of one that ships (default: %(default)s)",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="binary", help="what evaluates it (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where (default: auto, the GPU if there is one)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of the CPU backends (default: as many as pay off)"
    )


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which part of an image is classified, and how many classes are told."""
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="how many classes an image (default: %(default)s)"
    )
    add_region_argument(parser)


def add_region_argument(parser: argparse.ArgumentParser) -> None:
    """The option that says which part of an image counts."""
    from bnn_perception.frames.frame import WHOLE

    parser.add_argument(
        "--region",
        type=float,
        nargs=4,
        default=WHOLE,
        metavar=("X", "Y", "W", "H"),
        help="part of the image, as fractions",
    )


def region_argument(args: argparse.Namespace) -> tuple[float, float, float, float]:
    """The region, checked.

    Raises:
        CommandError: naming the option.
    """
    from bnn_perception.frames.frame import check_region

    try:
        return check_region(args.region)
    except ValueError as error:
        raise CommandError(f"--region: {error}") from None


def image_arguments(args: argparse.Namespace) -> tuple[int, tuple[float, float, float, float]]:
    """Number of classes and region, checked.

    Raises:
        CommandError: naming the option.
    """
    if args.top < 1:
        raise CommandError(f"--top {args.top}: at least one class is shown")
    return args.top, region_argument(args)
