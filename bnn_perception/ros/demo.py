"""The demo: a camera and the classifier node as two processes on a ROS graph of their own, seen from a third."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bnn_perception.cli import add_backend_arguments
from bnn_perception.errors import CommandError
from bnn_perception.ros.diagnostics import as_mapping
from bnn_perception.ros.latency import STAGES
from bnn_perception.ros.process import prepare_process, private_graph

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.node import Node
    from vision_msgs.msg import Classification, LabelInfo

#: Seconds for the classifier to be ready. The first start of all compiles the CPU backend.
READY_PATIENCE = 300.0
#: Seconds for the first label once the camera runs.
LABEL_PATIENCE = 30.0
#: Seconds for what is still on its way after the last frame.
LINGER = 1.0
#: Rows of the live table.
ROWS = 12


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo", help="the node and a camera on this machine, with a live table")
    parser.add_argument("--frames", type=int, default=150, help="end after so many (default: %(default)s)")
    parser.add_argument(
        "--source",
        default="scene",
        help="scene (rendered road signs), webcam:0, or a folder of images, a video or a recording (default: scene)",
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
    os.environ.update(private_graph(random.randint(1, 101)))
    prepare_process()
    import rclpy

    rclpy.init(args=[])
    try:
        with tempfile.TemporaryDirectory(prefix="bnn_perception-demo-") as folder:
            watcher = Watcher(rclpy.create_node("demo"), args.frames, is_scene(args.source))
            play(args, watcher, Path(folder))
        print(watcher.summary())
    except Exception:
        if rclpy.ok():
            raise
        raise KeyboardInterrupt from None  # Ctrl-C or SIGTERM has ended ROS, as a call into it said
    finally:
        rclpy.try_shutdown()
    return 0


def play(args: argparse.Namespace, watcher: Watcher, folder: Path) -> None:
    """Start both nodes, watch them for as many frames as are wanted, and end them."""
    parameters = {
        "model": args.model,
        "backend": args.backend,
        "device": args.device,
        "threads": args.threads,
    }
    parameters["diagnostics_period"] = 0.25
    region = region_for(args.source)
    if region is not None:
        parameters["region"] = list(region)
    print("starting the classifier node; its first start of all compiles the CPU backend", flush=True)
    with child("classifier_node", parameters, {"image": "image_raw"}, folder) as classifier:
        watcher.work_until(
            lambda: watcher.labels is not None and watcher.values, READY_PATIENCE, [classifier]
        )
        print(
            f"camera_node ({args.source}) -> classifier_node ({watcher.values['model']} on "
            f"{watcher.values['backend']}, {watcher.values['device']}) over DDS, "
            f"ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}",
            flush=True,
        )
        camera_parameters = {"source": args.source, "loop": True, "decode": True}
        with child("camera_node", camera_parameters, {"__ns": "/bnn"}, folder) as camera:
            watcher.work_until(watcher.stamps, LABEL_PATIENCE, [classifier, camera])
            with live_table(watcher) if sys.stdout.isatty() else plain_lines(watcher):
                watcher.work_until(watcher.is_done, LABEL_PATIENCE + args.frames, [classifier, camera])
                watcher.work(LINGER)


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
    """A node as a process that ends with the block."""
    line = [sys.executable, "-m", "bnn_perception", name, "--ros-args"]
    for key, value in parameters.items():
        line += ["-p", f"{key}:={str(value).lower() if isinstance(value, bool) else value}"]
    for before, after in remappings.items():
        line += ["-r", f"{before}:={after}"]
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


class Watcher:
    """Listens to the graph. Frames count from the first one whose answer, and truth if there is one, came here.

    Args:
        node: to listen with.
        frames: how many count.
        knows_truth: whether the camera publishes what each frame shows.

    Attributes:
        labels: of the model, None until the node is ready.
        values: the newest of the node's diagnostics.
        answers: label and score of each answered frame, and when the answer came, by the frame's stamp. A frame
            without a label above the threshold has the label "".
        truths: what each frame shows, by its stamp.
        on_answer: called with the stamp after each answer.
    """

    def __init__(self, node: Node, frames: int, knows_truth: bool) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from vision_msgs.msg import Classification, LabelInfo

        self._frames = frames
        self._knows_truth = knows_truth
        self.labels: set[str] | None = None
        self.values: dict[str, str] = {}
        self.answers: dict[int, Answer] = {}
        self.truths: dict[int, str] = {}
        self.on_answer: Callable[[int], None] = lambda stamp: None
        self._message = ""
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(LabelInfo, "/bnn/label_info", self._on_label_info, latched)
        node.create_subscription(Classification, "/bnn/labels", self._on_labels, 100)
        node.create_subscription(Classification, "/bnn/truth", self._on_truth, 100)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def work_until(self, condition: Callable[[], Any], patience: float, children: Sequence[Child]) -> None:
        """Listen until the condition holds.

        Raises:
            CommandError: where a child ends first, or patience does.
        """
        deadline = time.monotonic() + patience
        while not condition():
            for process in children:
                process.check()
            if time.monotonic() > deadline:
                state = self._message or "the classifier node says nothing"
                raise CommandError(
                    f"waited {patience:.0f} s in vain, {len(self.answers)} labels came: {state}"
                )
            self._executor.spin_once(timeout_sec=0.05)

    def work(self, seconds: float) -> None:
        """Listen for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)

    def stamps(self) -> list[int]:
        """Of the frames that count, in order: all that were sent where the truth tells of them, else the answered."""
        known = self.truths if self._knows_truth else self.answers
        first = min(self.answers.keys() & known.keys(), default=None)
        return [] if first is None else sorted(stamp for stamp in known if stamp >= first)[: self._frames]

    def is_done(self) -> bool:
        """Whether as many frames as were wanted have been sent."""
        return len(self.stamps()) == self._frames

    def summary(self) -> str:
        """The result as a text of several lines."""
        stamps = self.stamps()
        answered = [stamp for stamp in stamps if stamp in self.answers]
        counts = {
            name: int(self.values[f"frames {name}"]) for name in ("lost in transport", "refused", "failed")
        }
        dropped = max(0, len(stamps) - len(answered) - sum(counts.values()))
        if not self._knows_truth:  # the node knows less than the camera, which does not tell
            dropped = int(self.values["frames dropped as stale"])
        lines = [
            "",
            f"accuracy  {self._accuracy(answered)}",
            f"frames    {len(stamps)} {'sent' if self._knows_truth else 'seen'}, {len(answered)} classified, "
            f"{dropped} dropped for a newer one, "
            + ", ".join(f"{count} {name}" for name, count in counts.items()),
            f"latency   {'':<12}{'p50':>8}{'p95':>8}  ms",
        ]
        for stage in (key.split()[1] for key in self.values if key.endswith(" p50 (ms)")):
            p50, p95 = (float(self.values[f"latency {stage} {name} (ms)"]) for name in ("p50", "p95"))
            lines.append(f"          {stage:<12}{p50:8.2f}{p95:8.2f}  {STAGES.get(stage, '')}")
        return "\n".join(lines)

    def _accuracy(self, answered: Sequence[int]) -> str:
        if not self._knows_truth:
            return "unknown: the source does not tell the truth"
        judged = [stamp for stamp in answered if self.truths[stamp] in (self.labels or ())]
        if not judged:
            return "unknown: the labels of the model are not those of the scene"
        correct = sum(self.answers[stamp].label == self.truths[stamp] for stamp in judged)
        return f"{100 * correct / len(judged):.1f} % ({correct} of {len(judged)} frames)"

    def _on_label_info(self, message: LabelInfo) -> None:
        self.labels = {entry.class_name for entry in message.class_map}

    def _on_labels(self, message: Classification) -> None:
        now, stamp = time.time_ns(), stamp_of(message)
        best = message.results[0] if message.results else None
        latency = (now - stamp) * 1e-6
        self.answers[stamp] = Answer(best.class_id, best.score, latency) if best else Answer("", 0.0, latency)
        self.on_answer(stamp)

    def _on_truth(self, message: Classification) -> None:
        self.truths[stamp_of(message)] = message.results[0].class_id

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/bnn/classifier":
                self.values = as_mapping(status.values)
                self._message = status.message


class Answer(NamedTuple):
    """A label as it came; ``latency`` in milliseconds from the frame's stamp to here."""

    label: str
    score: float
    latency: float


def stamp_of(message: Classification) -> int:
    """Of the header, in nanoseconds."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


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
