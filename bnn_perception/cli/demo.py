"""``demo``: a camera and the classifier node as two processes on a ROS graph of their own, watched from a third."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnn_perception.cli import add_backend_arguments
from bnn_perception.errors import CommandError
from bnn_perception.ros.diagnostics import FAILED, LOST, REFUSED, STALE, State
from bnn_perception.ros.latency import STAGES
from bnn_perception.ros.process import claim_domain, prepare_process, private_graph

if TYPE_CHECKING:
    from bnn_perception.ros.watcher import Watcher

#: Seconds for the classifier to be ready. Where nothing was compiled ahead, its start compiles the CPU backend.
READY_PATIENCE = 300.0
#: Seconds for the first label once the camera runs.
LABEL_PATIENCE = 30.0
#: Seconds for what is still on its way after the last frame.
LINGER = 1.0
#: By which the boxes of the scene, which end with the sign, are enlarged: the pictures of the training do not.
BOX_MARGIN = 0.1
#: Rows of the live table.
ROWS = 12


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo")
    parser.add_argument("--frames", type=int, default=150, help="end after so many (default: %(default)s)")
    parser.add_argument(
        "--source",
        default="scene",
        help="scene (rendered road signs), webcam:0, or a folder of images, a video or a recording (default: scene)",
    )
    parser.add_argument(
        "--boxes",
        action="store_true",
        help="label the sign's box in the whole picture, as a detector would find it, and not a fixed part of it",
    )
    add_backend_arguments(parser)


def is_scene(source: str) -> bool:
    """Whether frames are rendered, so that the truth and the place of the sign are known."""
    return source.partition(":")[0] == "scene"


def region_for(source: str) -> tuple[float, float, float, float] | None:
    """The part of the picture to classify, where the source knows it."""
    if not is_scene(source):
        return None
    from bnn_perception.scenes.drive import Scene

    return Scene.region


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its summary.

    Raises:
        CommandError: where no labels came, with the reason.
    """
    if args.frames < 1:
        raise CommandError(f"--frames {args.frames}: at least one frame is shown")
    # Read when rclpy is loaded, here and in the children.
    os.environ.update(private_graph(claim_domain()))
    prepare_process()
    from bnn_perception.ros.watcher import Watcher, listening

    knows_truth = is_scene(args.source)
    if args.boxes and not knows_truth:
        raise CommandError(f"--boxes: the source {args.source} does not know where things are; scene does")
    with (
        listening(lambda: Watcher(args.frames, knows_truth, args.boxes)) as watcher,
        tempfile.TemporaryDirectory(prefix="bnn_perception-demo-") as folder,
    ):
        state = play(args, watcher, Path(folder))
        print(summary(watcher, state, knows_truth))
    return 0


def play(args: argparse.Namespace, watcher: Watcher, folder: Path) -> State:
    """Start both nodes, watch them for as many frames as are wanted, and end them; returns the last state."""
    parameters = {
        "model": args.model,
        "backend": args.backend,
        "device": args.device,
        "threads": args.threads,
        "diagnostics_period": 0.25,
    }
    region = region_for(args.source)
    if args.boxes:
        parameters.update(detection_topics=["detections"], box_margin=BOX_MARGIN)
    elif region is not None:
        parameters["region"] = list(region)
    print(
        "starting the classifier node; where nothing is compiled yet, it compiles the CPU backend", flush=True
    )
    with child("classifier_node", parameters, {"image": "image_raw"}, folder) as classifier:
        wait(watcher, watcher.is_ready, READY_PATIENCE, [classifier])
        state = state_of(watcher)
        print(
            f"camera_node ({args.source}) -> classifier_node ({state.model} on {state.backend}, {state.device}) "
            f"over DDS, ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}",
            flush=True,
        )
        camera_parameters = {"source": args.source, "loop": True, "decode": True}
        with child("camera_node", camera_parameters, {"__ns": "/bnn"}, folder) as camera:
            wait(watcher, watcher.stamps, LABEL_PATIENCE, [classifier, camera])
            with live_table(watcher) if sys.stdout.isatty() else plain_lines(watcher):
                wait(watcher, watcher.is_done, LABEL_PATIENCE + args.frames, [classifier, camera])
                watcher.work_until(lambda: False, LINGER)
    return state_of(watcher)


def wait(watcher: Watcher, condition: Callable[[], Any], patience: float, children: Sequence[Child]) -> None:
    """Watch until the condition holds.

    Raises:
        CommandError: where a child ends first, or patience does.
    """

    def holds() -> Any:
        for process in children:
            process.check()
        return condition()

    if not watcher.work_until(holds, patience):
        state = watcher.message or "the classifier node says nothing"
        raise CommandError(f"waited {patience:.0f} s in vain, {len(watcher.answers)} labels came: {state}")


def state_of(watcher: Watcher) -> State:
    """The newest state of a node that was ready."""
    if watcher.state is None:
        raise CommandError("the classifier node has published no diagnostics")
    return watcher.state


@dataclass
class Child:
    """One of the processes, and the file that holds what it writes."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    def check(self) -> None:
        """Raise CommandError where it has ended by itself."""
        if self.process.poll() is not None:
            said = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise CommandError(
                f"{self.name} ended with code {self.process.returncode}: {said[-1] if said else 'it said nothing'}"
            )


@contextlib.contextmanager
def child(name: str, parameters: dict[str, Any], remappings: dict[str, str], folder: Path) -> Iterator[Child]:
    """A node of the package as a process that ends with the block."""
    line = [sys.executable, "-m", "bnn_perception", name, "--ros-args"]
    for key, value in parameters.items():
        line += ["-p", f"{key}:={str(value).lower() if isinstance(value, bool) else value}"]
    for before, after in remappings.items():
        line += ["-r", f"{before}:={after}"]
    with running(name, line, folder) as process:
        yield process


@contextlib.contextmanager
def running(name: str, line: Sequence[str], folder: Path) -> Iterator[Child]:
    """A command line as a process that ends with the block, by Ctrl-C; the folder takes what it writes."""
    output = folder / f"{name}.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Child(name, process, output)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def summary(watcher: Watcher, state: State, knows_truth: bool) -> str:
    """The result of the demo as a text of several lines."""
    stamps = watcher.stamps()
    answered = [stamp for stamp in stamps if stamp in watcher.answers]
    counts = {name: state.frames[name] for name in (LOST, REFUSED, FAILED)}
    dropped = max(0, len(stamps) - len(answered) - sum(counts.values()))
    if not knows_truth:  # the node knows less than the camera, which does not tell
        dropped = state.frames[STALE]
    lines = [
        "",
        f"accuracy  {accuracy(watcher, answered) if knows_truth else 'unknown: the source does not tell the truth'}",
        f"frames    {len(stamps)} {'sent' if knows_truth else 'seen'}, {len(answered)} classified, "
        f"{dropped} dropped for a newer one, "
        + ", ".join(f"{count} {name}" for name, count in counts.items()),
        f"latency   {'':<12}{'p50':>8}{'p95':>8}  ms",
    ]
    for stage, percentiles in state.latency.items():
        lines.append(
            f"          {stage:<12}{percentiles.p50:8.2f}{percentiles.p95:8.2f}  {STAGES.get(stage, '')}"
        )
    return "\n".join(lines)


def accuracy(watcher: Watcher, answered: Sequence[int]) -> str:
    """How many of the answered frames got the label that they show."""
    judged = [stamp for stamp in answered if watcher.truths[stamp] in (watcher.labels or ())]
    if not judged:
        return "unknown: the labels of the model are not those of the scene"
    correct = sum(watcher.answers[stamp].label == watcher.truths[stamp] for stamp in judged)
    return f"{100 * correct / len(judged):.1f} % ({correct} of {len(judged)} frames)"


def cells(watcher: Watcher, number: int, stamp: int) -> tuple[str, str, str, str, str]:
    """What the table shows of a frame: number, truth, label, score, latency."""
    truth = watcher.truths.get(stamp, "")
    answer = watcher.answers.get(stamp)
    if answer is None:
        return f"{number}", truth, "", "", ""
    return f"{number}", truth, answer.label, f"{answer.score:.3f}", f"{answer.latency:.1f} ms"


@contextlib.contextmanager
def plain_lines(watcher: Watcher) -> Iterator[None]:
    """A line for each answer, for pipes and logs."""
    widths = (5, 28, 28, 6, 10)

    def show(*texts: str) -> None:
        print("  ".join(f"{text:{width}}" for text, width in zip(texts, widths)).rstrip(), flush=True)

    show("frame", "true label", "label", "score", "latency")
    shown = 0

    def show_new(newest: int) -> None:
        nonlocal shown
        stamps = [stamp for stamp in watcher.stamps() if stamp <= newest]
        for number, stamp in enumerate(stamps[shown:], start=shown + 1):
            show(*cells(watcher, number, stamp))
        shown = max(shown, len(stamps))

    watcher.on_answer = show_new
    yield


@contextlib.contextmanager
def live_table(watcher: Watcher) -> Iterator[None]:
    """The newest frames as a table that is drawn over and over."""
    from rich.live import Live
    from rich.table import Table

    def table() -> Table:
        result = Table("frame", "true label", "label", "score", "latency", min_width=80)
        stamps = watcher.stamps()
        for number, stamp in list(enumerate(stamps, start=1))[-ROWS:]:
            row = cells(watcher, number, stamp)
            known = stamp in watcher.answers and stamp in watcher.truths
            style = ("green" if row[1] == row[2] else "red") if known else None
            result.add_row(*row, style=style)
        return result

    with Live(get_renderable=table, refresh_per_second=10):
        yield
