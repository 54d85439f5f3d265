"""``watch``: the classifier nodes of a graph in a terminal, for a robot that is reached by ssh."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bnn_perception.cli.watch_view import view
from bnn_perception.errors import CommandError

if TYPE_CHECKING:
    from rich.console import Console

    from bnn_perception.ros.overview import Overview
    from bnn_perception.ros.watched import Watched

#: Seconds between two views: in a terminal, and line by line where there is none that could be drawn over.
DRAWING, PRINTING = 0.25, 2.0

#: Seconds that ``--once`` waits for a label of each camera once the node has been heard. Where DDS loses what announces
#: a subscriber, it says so again three seconds later.
LABELS = 6.0

#: Seconds without a frame after which it does not wait for a label.
SILENT = 1.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("watch")
    parser.add_argument(
        "--node",
        default="",
        metavar="NAME",
        help="full name of a node (/bnn/classifier) or a namespace (/bnn); all classifiers otherwise",
    )
    parser.add_argument("--once", action="store_true", help="print one view and end")
    parser.add_argument(
        "--wait",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long to look for a classifier (default: %(default)g)",
    )
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII alone, as with LANG=C")


def run(args: argparse.Namespace) -> int:
    """Show what the classifiers do until Ctrl-C.

    Raises:
        CommandError: where no classifier is found, with the reason.
    """
    from rich.console import Console

    from bnn_perception.ros.overview import Overview
    from bnn_perception.ros.watcher import listening

    # A pipe has no width of its own; rich would take 80 columns, and does where COLUMNS says nothing else.
    console = Console(highlight=False)
    plain = args.ascii or is_plain(os.environ, console.encoding)
    try:
        with listening(lambda: Overview(args.node)) as overview:
            watched = overview.watched
            if not overview.work_until(lambda: watched.nodes, args.wait):
                raise CommandError(missing(args, overview))
            if args.once:
                overview.work_until(lambda: is_complete(watched), LABELS)
                console.print(view(watched, time.monotonic(), plain))
            else:
                _show(console, overview, lambda: view(watched, time.monotonic(), plain))
    except KeyboardInterrupt:
        pass  # how it ends
    return 0


def is_complete(watched: Watched) -> bool:
    """Whether there is an answer of each camera that sends frames."""
    cameras = watched.cameras
    return bool(cameras) and all(camera.answered_at or camera.state.since_last > SILENT for camera in cameras)


def is_plain(environment: Mapping[str, str], encoding: str) -> bool:
    """Whether a terminal may know ASCII alone: its locale is C, or its encoding none of Unicode's.

    Python itself takes UTF-8 under the locale C, and says so in LC_CTYPE; what the user has set are the other two.
    """
    chosen = environment.get("LC_ALL") or environment.get("LANG", "")
    return chosen in ("C", "POSIX") or not encoding.lower().startswith("utf")


def missing(args: argparse.Namespace, overview: Overview) -> str:
    """Why there is nothing to watch, on one line with what to do."""
    sought = f"classifier node {args.node}" if args.node else "classifier node"
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    return (
        f"no {sought} was heard for {args.wait:g} s (ROS_DOMAIN_ID={domain}): {overview.why_nothing()}; start one "
        "with ros2 launch bnn_perception classify.launch.py, or set ROS_DOMAIN_ID and the namespace to the robot's"
    )


def _show(console: Console, overview: Overview, make_view: Callable[[], Any]) -> None:
    """Draw the view over and over, or print it now and then where nothing can be drawn over."""
    if not console.is_terminal or console.is_dumb_terminal:
        while True:
            console.print(make_view())
            console.print()
            sys.stdout.flush()
            overview.work_until(lambda: False, PRINTING)
    from rich.live import Live

    last: Any = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                last = make_view()
                live.update(last, refresh=True)
                overview.work_until(lambda: False, DRAWING)
    finally:
        # The screen is that from before again.
        if last is not None:
            console.print(last)
