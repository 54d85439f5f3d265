"""From a live camera to new labels on the running node: what docs/training.md describes, from its start to its end.

``make teach-demo``, or ``python -m bnn_perception.cli.teach_demo FOLDER``. A camera plays a rendered drive past road
signs. The collect node saves images of a few of them, under labels that are set while it runs. ``train`` makes a net of
them, the classifier that has been running all the time is given it by a parameter, and what it says of another drive is
compared with the truth.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_perception.cli import execute
from bnn_perception.cli.demo import LABEL_PATIENCE, LINGER, READY_PATIENCE, Child, child, wait
from bnn_perception.errors import CommandError
from bnn_perception.ros.process import prepare_process, private_graph

if TYPE_CHECKING:
    from bnn_perception.ros.teacher import Teacher

#: The signs that are taught, and the label of all others.
LABELS = ("stop", "yield", "priority road", "no entry", "keep right")
OTHER = "another sign"

#: Times as many images of others: they are many.
MORE = 3

#: The drives that are collected from, and watched in the end.
SEEN, UNSEEN = "scene:1", "scene:7"

#: Frames a second of the camera while images are collected, and while it is watched.
COLLECTING_RATE, WATCHING_RATE = 60.0, 30.0

#: Seconds until there are enough images.
COLLECTING_PATIENCE = 600.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("teach_demo")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="gets images, run and model; must not be there"
    )
    parser.add_argument(
        "--images", type=int, default=100, help="of each sign that is taught (default: %(default)s)"
    )
    parser.add_argument("--config", default="teach", help="of the training (default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, default=1200, help="that are compared with the truth (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Collect, train, switch, compare.

    Raises:
        CommandError: where one of them cannot be done, with the reason.
    """
    folder: Path = args.folder.absolute()
    if folder.exists():
        raise CommandError(f"{args.folder}: is there already; delete it, or name another folder")
    folder.mkdir(parents=True)
    # Read when rclpy is loaded, here and in the children.
    os.environ.update(private_graph(random.randint(1, 101)))
    prepare_process()
    from bnn_perception.ros.teacher import Teacher
    from bnn_perception.ros.watcher import CLASSIFIER, listening
    from bnn_perception.scenes.drive import Scene

    enough = {**dict.fromkeys(LABELS, args.images), OTHER: MORE * args.images}
    minutes = Minutes()
    region = list(Scene.region)
    with (
        listening(lambda: Teacher(args.frames, enough, OTHER)) as teacher,
        tempfile.TemporaryDirectory(prefix="bnn_perception-teach-") as logs,
        child("classifier_node", {"region": region}, {"image": "image_raw"}, Path(logs)) as classifier,
    ):
        wait(teacher, teacher.is_ready, READY_PATIENCE, [classifier])
        minutes.end("starting")
        collect(teacher, folder / "images", region, classifier, Path(logs))
        minutes.end("collecting")
        train(args.config, folder)
        minutes.end("training")
        teacher.set(CLASSIFIER, "model", str(folder / "model"))
        wait(teacher, lambda: teacher.labels == {*LABELS, OTHER}, READY_PATIENCE, [classifier])
        print(f"{CLASSIFIER} answers with {', '.join(sorted(teacher.labels or ()))}", flush=True)
        watch(teacher, args.frames, classifier, Path(logs))
        minutes.end("watching")
        print(summary(teacher))
    print(minutes)
    return 0


class Minutes:
    """How long each part took."""

    def __init__(self) -> None:
        self._start = self._before = time.monotonic()
        self._parts: list[str] = []

    def end(self, part: str) -> None:
        """A part has come to its end."""
        now = time.monotonic()
        self._parts.append(f"{part} {(now - self._before) / 60:.1f}")
        self._before = now

    def __str__(self) -> str:
        return f"minutes   {(self._before - self._start) / 60:.1f}: {', '.join(self._parts)}"


def collect(teacher: Teacher, images: Path, region: list[float], classifier: Child, logs: Path) -> None:
    """Let the collect node save images of each label from the drive, while the labels are set."""
    print(f"collecting images of {', '.join(LABELS)} and {OTHER} in {images}", flush=True)
    parameters = {"folder": str(images), "region": region, "every": 1, "diagnostics_period": 0.25}
    camera_parameters = {"source": SEEN, "rate": COLLECTING_RATE}
    with (
        child("collect_node", parameters, {"image": "image_raw"}, logs) as collector,
        child("camera_node", camera_parameters, {"__ns": "/bnn"}, logs) as camera,
    ):
        teacher.is_teaching = True
        wait(teacher, teacher.has_enough, COLLECTING_PATIENCE, [classifier, collector, camera])
        teacher.is_teaching = False
    counts = ", ".join(f"{number} {label}" for label, number in sorted(teacher.images.items()))
    print(f"collected {counts}", flush=True)


def train(config: str, folder: Path) -> None:
    """Make a model of the images in a process of its own.

    Raises:
        CommandError: where it fails; it has said why.
    """
    line = [sys.executable, "-m", "bnn_perception", "train", config, "--data", str(folder / "images")]
    code = subprocess.run(
        [*line, "--run", str(folder / "run"), "--out", str(folder / "model")], check=False
    ).returncode
    if code:
        raise CommandError(f"train ended with exit code {code}")


def watch(teacher: Teacher, frames: int, classifier: Child, logs: Path) -> None:
    """Let the classifier answer the frames of another drive."""
    with child("camera_node", {"source": UNSEEN, "rate": WATCHING_RATE}, {"__ns": "/bnn"}, logs) as camera:
        teacher.forget()
        wait(teacher, teacher.stamps, LABEL_PATIENCE, [classifier, camera])
        wait(teacher, teacher.is_done, LABEL_PATIENCE + frames, [classifier, camera])
        teacher.work_until(lambda: False, LINGER)


def summary(teacher: Teacher) -> str:
    """How many of the answers are right, for each label and in all."""
    pairs = [
        (teacher.label_of(teacher.truths[stamp]), teacher.answers[stamp].label)
        for stamp in teacher.stamps()
        if stamp in teacher.answers
    ]
    shares = []
    lines = ["", f"{'label':<16}{'frames':>8}{'right':>9}"]
    for label in (*LABELS, OTHER):
        answers = [answer for truth, answer in pairs if truth == label]
        if answers:
            shares.append(share(answers, label))
            lines.append(f"{label:<16}{len(answers):>8}{shares[-1]:>9.1%}")
    right = sum(truth == answer for truth, answer in pairs)
    lines.append(
        f"accuracy  {right / len(pairs):.1%} ({right} of {len(pairs)} frames of another drive), mean of the labels "
        f"{sum(shares) / len(shares):.1%}"
    )
    return "\n".join(lines)


def share(answers: Sequence[str], label: str) -> float:
    """Share of answers that are a label."""
    return sum(answer == label for answer in answers) / len(answers)


if __name__ == "__main__":
    sys.exit(execute(sys.modules[__name__], "teach_demo", sys.argv[1:]))
