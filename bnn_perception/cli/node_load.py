"""``benchmark --node``: the classifier node under the load of cameras, over real DDS.

Three processes beside this one, which listens: the cameras (one process publishes prepared images for all), and what is
measured: the node, or the *floor*, an rclpy node that receives the same images and answers each at once. They are
measured in turn in every round, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnn_perception.cli.demo import Child, child, running
from bnn_perception.errors import CommandError
from bnn_perception.ros.process import claim_domain, prepare_process, private_graph

if TYPE_CHECKING:
    from bnn_perception.ros.load import Answers, Scenario

#: What the node is compared with.
FLOOR = "floor"

#: Seconds until answers come: the first start of all compiles the CPU backend.
PATIENCE = 300.0

#: Seconds from the first answer to the measuring, in which all topics find one another: DDS may need three.
SETTLING = 4.0

#: Seconds after the measuring in which answers on their way arrive.
LINGER = 0.5

#: Stands for whole images where numbers of boxes are asked for.
WHOLE = "whole"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``--node``."""
    group = parser.add_argument_group(
        "--node", "each option takes one or more values; all combinations are measured"
    )
    group.add_argument(
        "--node",
        action="store_true",
        help="measure the node over DDS: labels a second, latency, drops, share of a core, against a node that only "
        "receives",
    )
    group.add_argument("--cameras", type=int, nargs="+", default=[4], help="(default: 4)")
    group.add_argument("--rates", type=float, nargs="+", default=[30.0], help="frames a second (default: 30)")
    group.add_argument(
        "--sizes", nargs="+", default=["640x480"], metavar="WIDTHxHEIGHT", help="(default: 640x480)"
    )
    group.add_argument(
        "--boxes",
        nargs="+",
        default=[WHOLE],
        help="boxes of a detector in each image, or whole (default: whole)",
    )
    group.add_argument(
        "--backends", nargs="+", choices=("binary", "float"), default=["binary"], help="(default: binary)"
    )
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the node (default: auto)"
    )
    group.add_argument(
        "--seconds", type=float, default=5.0, help="of each measurement (default: %(default)g)"
    )
    group.add_argument("--rounds", type=int, default=2, help="of all measurements (default: %(default)s)")


@dataclass
class Measured:
    """What one subject did under one scenario, over all rounds.

    Attributes:
        seconds: that were measured.
        sent, answered: images.
        processor: seconds of a core that its process took.
        busy: part of the machine's processors that was busy with anything, of each round.
        latencies: from stamp to answer at the listener, milliseconds.
    """

    seconds: float = 0.0
    sent: int = 0
    answered: int = 0
    processor: float = 0.0
    busy: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float | int | None]:
        """For tables: milliseconds, answers a second, dropped images, percent of a core and of the machine."""
        p50, p95, p99 = np.percentile(self.latencies, (50, 95, 99)) if self.latencies else (None, None, None)
        return {
            "labels a second": self.answered / self.seconds,
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "sent": self.sent,
            "dropped": self.sent - self.answered,
            "core %": 100 * self.processor / self.seconds,
            "machine busy %": 100 * float(np.mean(self.busy)),
        }


def run(args: argparse.Namespace, model: Path) -> int:
    """Measure all combinations, and print a table of each.

    Args:
        args: of :func:`add_arguments`, and ``json``.
        model: folder.

    Raises:
        CommandError: where an option makes no sense, or no answers come.
    """
    combinations = scenarios(args)
    subjects = [FLOOR, *args.backends]
    os.environ.update(private_graph(claim_domain()))
    prepare_process()
    results: dict[str, Any] = {
        "model": model.name,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "measured": [],
    }
    print(
        f"{model.name}, device {args.device}, {results['cores']} cores, load average {results['load before']:.1f} "
        f"before; {args.rounds} rounds of {args.seconds:g} s, in turn",
        flush=True,
    )
    for scenario in combinations:
        measured = {subject: Measured() for subject in subjects}
        for _ in range(args.rounds):
            for subject in subjects:
                measure(scenario, subject, measured[subject], args, model)
        figures = {subject: each.figures() for subject, each in measured.items()}
        results["measured"].append({"scenario": asdict(scenario), **figures})
        print("\n" + table(scenario, figures), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def scenarios(args: argparse.Namespace) -> list[Scenario]:
    """All combinations of the options.

    Raises:
        CommandError: naming the option that makes no sense.
    """
    from bnn_perception.ros.load import Scenario

    if min(args.cameras) < 1 or min(args.rates) <= 0 or args.seconds <= 0 or args.rounds < 1:
        raise CommandError("--cameras, --rates, --seconds and --rounds are above 0")
    sizes = [_numbers("--sizes", size, "x", 2) for size in args.sizes]
    boxes = [None if count == WHOLE else _numbers("--boxes", count, " ", 1)[0] for count in args.boxes]
    if any(min(size) < 1 for size in sizes):
        raise CommandError("--sizes: images have one pixel or more")
    if any(count is not None and min(size) < 64 for size in sizes for count in boxes):
        raise CommandError("--sizes: images with boxes have 64 pixels or more a side")
    return [
        Scenario(cameras, rate, width, height, count)
        for cameras, rate, (width, height), count in itertools.product(args.cameras, args.rates, sizes, boxes)
    ]


def _numbers(option: str, text: str, separator: str, count: int) -> list[int]:
    parts = text.split(separator)
    if len(parts) != count or not all(part.isdecimal() for part in parts):
        raise CommandError(f"{option} {text}: {'640x480, say' if count == 2 else 'a number, or whole'}")
    return [int(part) for part in parts]


def measure(
    scenario: Scenario, subject: str, measured: Measured, args: argparse.Namespace, model: Path
) -> None:
    """Measure one subject once, and add the figures.

    Raises:
        CommandError: where no answers come, or a process ends.
    """
    from bnn_perception.ros.load import Answers
    from bnn_perception.ros.watcher import listening

    with (
        tempfile.TemporaryDirectory(prefix="bnn_perception-load-") as name,
        listening(lambda: Answers(scenario)) as answers,
    ):
        folder = Path(name)
        stamps = folder / "stamps.json"
        with (
            _subject(scenario, subject, args, model, folder) as process,
            running("cameras", [*_LOAD, "cameras", scenario.as_json(), str(stamps)], folder) as cameras,
        ):
            _wait(answers, lambda: answers.taken, PATIENCE, (process, cameras))
            _wait(answers, lambda: False, SETTLING, (process, cameras))
            before, begin = _spent(process), time.time_ns()
            _wait(answers, lambda: False, args.seconds, (process, cameras))
            after, end = _spent(process), time.time_ns()
            answers.work_until(lambda: False, LINGER)
        sent = sum(begin <= stamp < end for stamp in json.loads(stamps.read_text(encoding="ascii")))
    taken = [(stamp, came) for stamp, came in answers.taken if begin <= stamp < end]
    measured.seconds += (end - begin) * 1e-9
    measured.sent += sent
    measured.answered += len(taken)
    measured.latencies += [(came - stamp) * 1e-6 for stamp, came in taken]
    measured.processor += (after.process - before.process) / os.sysconf("SC_CLK_TCK")
    measured.busy.append((after.busy - before.busy) / (after.all - before.all))


_LOAD = [sys.executable, "-m", "bnn_perception.ros.load"]


@contextmanager
def _subject(
    scenario: Scenario, subject: str, args: argparse.Namespace, model: Path, folder: Path
) -> Iterator[Child]:
    """The process that is measured."""
    if subject == FLOOR:
        with running(FLOOR, [*_LOAD, FLOOR, scenario.as_json()], folder) as process:
            yield process
        return
    parameters: dict[str, Any] = {
        "model": str(model.resolve()),
        "backend": subject,
        "device": args.device,
        "image_topics": scenario.image_topics,
    }
    if scenario.box_topics:
        parameters["detection_topics"] = scenario.box_topics
    with child("classifier_node", parameters, {}, folder) as process:
        yield process


def _wait(answers: Answers, condition: Any, seconds: float, processes: Sequence[Child]) -> None:
    """Listen until the condition holds or the time is over; one that never held is an error where it could."""

    def holds() -> Any:
        for process in processes:
            process.check()
        return condition()

    if not answers.work_until(holds, seconds) and not answers.taken:
        raise CommandError(f"no answers came for {seconds:.0f} s from {processes[0].name}")


@dataclass(frozen=True)
class _Spent:
    """Ticks of the system's clock that processors spent: on a process, on anything, and all of them."""

    process: int
    busy: int
    all: int


def _spent(child: Child) -> _Spent:
    fields = Path(f"/proc/{child.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    machine = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    times = [int(number) for number in machine[1:9]]
    idle = times[3] + times[4]  # idle, and waiting for a disk
    return _Spent(int(fields[11]) + int(fields[12]), sum(times) - idle, sum(times))


def table(scenario: Scenario, figures: dict[str, dict[str, Any]]) -> str:
    """What was measured under one scenario, as lines."""
    boxes = "whole images" if scenario.boxes is None else f"{scenario.boxes} boxes an image"
    title = f"{scenario.cameras} x {scenario.width}x{scenario.height} at {scenario.rate:g} Hz, {boxes}"
    lines = [
        title,
        f"{'':<10}{'labels/s':>10}{'p50':>8}{'p95':>8}{'p99':>8}  ms"
        f"{'sent':>8}{'dropped':>9}{'core':>8}{'machine busy':>14}",
    ]
    for subject, each in figures.items():
        times = "".join(
            f"{'-' if each[name] is None else format(each[name], '.2f'):>8}" for name in ("p50", "p95", "p99")
        )
        lines.append(
            f"{subject:<10}{each['labels a second']:>10.1f}{times}    {each['sent']:>8}{each['dropped']:>9}"
            f"{each['core %']:>6.0f} %{each['machine busy %']:>12.0f} %"
        )
    return "\n".join(lines)
