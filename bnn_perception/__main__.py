"""The command line: ``python -m bnn_perception COMMAND``, also installed as the script ``bnn_perception``.

Each command is a module, imported when it is asked for, so that a command needs only the dependencies of its own.
Those under ``cli`` are run by :func:`bnn_perception.cli.execute`, the others have ``main(argv) -> exit code``.

A few programs for the work on this repository are no commands. They are run as modules from a checkout:
``benchmark.accuracy.page`` and ``benchmark.gpu.performance`` write pages of ``docs/``, ``benchmark.gpu.benchmark`` and
``benchmark.gpu.parts`` measure a GPU, ``bnn_perception.training.digits`` makes the images of ``make train-demo``, and
``bnn_perception.cli.teach_demo`` is ``make teach-demo``.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is, what it does, and the extra that holds what it needs.

    A tool's module has ``add_parser`` and ``run``; a node's has ``main(argv)``, for its arguments belong to ROS.
    """

    module: str
    summary: str
    extra: str
    is_node: bool = False


COMMANDS = {
    "classify": Command("cli.classify", "label images, videos and recordings", "standalone"),
    "replay": Command(
        "cli.replay", "label the images of a recording at full speed, into MCAP or CSV", "standalone"
    ),
    "evaluate": Command(
        "cli.evaluate",
        "accuracy and confusion matrix on labelled images or videos; float against binary",
        "standalone",
    ),
    "calibrate": Command(
        "cli.calibrate", "fit a model's temperatures, so that scores mean something", "standalone"
    ),
    "inspect": Command(
        "cli.inspect_", "the layers of a model: shapes, precision, bytes, operations", "standalone"
    ),
    "compile": Command("cli.compile_", "compile ahead what the first start would wait for", "standalone"),
    "benchmark": Command("cli.benchmark", "time the backends, layer by layer and whole", "standalone"),
    "collect": Command(
        "cli.collect", "images of a recording under a label, as a folder to train on", "standalone"
    ),
    "train": Command("cli.train", "train a binary net and its float twin", "train"),
    "study": Command("cli.study", "train the variants of a configuration and compare them", "train"),
    "import": Command("cli.import_", "make a model folder from a binary net of another tool", "train"),
    "demo": Command("cli.demo", "the node and a camera on this machine, with a live table", "ros"),
    "watch": Command("cli.watch", "the classifier nodes of a robot, live in a terminal", "ros"),
    "classifier_node": Command("ros.classifier_node", "the ROS 2 node: images in, labels out", "ros", True),
    "collect_node": Command(
        "ros.collect_node",
        "a ROS 2 node: images of cameras under a label, as a folder to train on",
        "ros",
        True,
    ),
    "camera_node": Command(
        "ros.camera_node", "a ROS 2 camera: files, webcam, recording or scene", "ros", True
    ),
}

#: What commands on a robot need besides ROS, and apt has under its own name.
FROM_APT = {"rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # labels and file names hold what the terminal may not know
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        try:
            print(usage(), flush=True)
        except OSError as error:  # a full disk, a reader that has gone
            print(f"bnn_perception: {error.strerror or error}", file=sys.stderr)
            sys.stdout = None
            return 1
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        print(f"bnn_perception: there is no command '{name}'\n{usage()}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f"bnn_perception.{command.module}")
        if command.is_node:
            return module.main(arguments[1:])
        return importlib.import_module("bnn_perception.cli").execute(
            module, name, arguments[1:], command.summary
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "bnn_perception":
            raise
        remedy = f"pip install '.[{command.extra}]' in the package's folder"
        if command.extra == "ros" and (package := error.name.split(".")[0]) in FROM_APT:
            remedy = f"sudo apt install python3-{package}, or pip install '.[tools]' in the package's folder"
        elif command.extra == "ros":
            remedy = "source a ROS 2 installation, or run `make demo` once and use .venv/bin/python"
        print(f"bnn_perception {name}: the module {error.name} is not installed: {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "usage: python -m bnn_perception COMMAND [--help] ...\n\ncommands:\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
