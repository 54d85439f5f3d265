"""``replay``: label the images of a recording as fast as the machine can, without ROS."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnn_perception.backends import make_backend
from bnn_perception.classifier import Classifier, Prediction
from bnn_perception.cli import add_backend_arguments, add_image_arguments, image_arguments
from bnn_perception.cli.json_text import to_json
from bnn_perception.cli.label_files import LabelFile, camera, check_label_path, open_labels
from bnn_perception.cli.recorded_boxes import RecordedBoxes, boxes_topic
from bnn_perception.cli.unpacking import Refused, Unpacked, Unpacker, in_other_threads
from bnn_perception.errors import CommandError, printable
from bnn_perception.frames.bags import Bag, Message, Topic
from bnn_perception.frames.frame import WHOLE
from bnn_perception.frames.messages import DETECTIONS, RAW
from bnn_perception.frames.recordings import image_topics, is_measured
from bnn_perception.net.folder import load_model
from bnn_perception.resources import find_model
from bnn_perception.ros.boxes_msg import UNKNOWN

#: Frames that are classified at a time.
BATCH = 16

#: Parts of frames, their boxes, that the model gets at a time at most.
MOST_PARTS = 64

#: Frames of a topic that are named for one reason; more are counted.
NAMED = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("replay")
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder, .mcap or .db3 file")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=".mcap for Foxglove and 'ros2 bag play', or .csv (default: CSV to standard output)",
    )
    parser.add_argument(
        "--topic",
        action="append",
        default=[],
        help="of images, again for each of several (default: all with pictures)",
    )
    parser.add_argument(
        "--boxes",
        action="append",
        default=[],
        metavar="TOPIC",
        help="of a detector's boxes, vision_msgs/Detection2DArray, which are labelled instead of whole images; one for "
        "each --topic, in the same order",
    )
    parser.add_argument(
        "--box-margin",
        type=float,
        default=0.0,
        metavar="M",
        help="enlarges boxes on each side, as a fraction of theirs (default: %(default)s)",
    )
    parser.add_argument(
        "--sync-tolerance",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds by which the stamps of an image and of its boxes may differ (default: %(default)s)",
    )
    add_backend_arguments(parser)
    add_image_arguments(parser)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    top_k, region = image_arguments(args)
    if args.json and args.out is None:
        raise CommandError("--json takes standard output; name a file for the labels: --out labels.csv")
    tally = Tally()
    bag = Bag(args.bag, warn=tally.add_damage)
    topics = choose(bag, args.topic)
    tally.topics = {topic.name: TopicTally() for topic in topics}
    boxes = open_boxes(bag, topics, args, tally.add_damage)
    if args.out is not None:
        check_label_path(args.out, args.bag)
    model = load_model(find_model(args.model))
    backend = make_backend(model, args.backend, args.device, args.threads)
    print(printable(f"{model.name}, {backend.name} on {backend.device_name}"), file=sys.stderr)
    begin = time.perf_counter()
    with (
        contextlib.closing(bag),
        Classifier(model, backend) as classifier,
        open_labels(args.out, model.labels, top_k, bool(boxes)) as labels,
        progress(sum(topic.size for topic in topics), args.out is None) as advance,
        first_interrupt() as interrupted,
    ):
        unpacker = Unpacker(model.input, region, boxes, args.box_margin)
        with contextlib.closing(unpacked(bag.messages(topics, tally.add_damage), unpacker, tally)) as frames:
            while not interrupted() and (batch := list(itertools.islice(frames, BATCH))):
                answer(batch, classifier, top_k, labels, tally)
                advance(tally.frames)
        stopped = interrupted()
    seconds = time.perf_counter() - begin
    tally.lost = bag.lost
    report(tally, seconds, stopped, args.out)
    if args.json:
        described = {"model": model.name, "backend": backend.name, "device": backend.device_name}
        where = {"recording": str(args.bag), "out": str(args.out)}
        print(to_json({**described, **where, **as_json(tally, seconds, stopped)}))
    if stopped:
        return 130
    return 1 if tally.refused or tally.damage else 0


def say(line: str) -> None:
    print(f"bnn_perception replay: {printable(line)}", file=sys.stderr)


def choose(bag: Bag, names: Sequence[str]) -> list[Topic]:
    """The topics to classify, one a camera.

    Args:
        names: those that the user asks for; none takes all that hold pictures.

    Raises:
        SourceError, CommandError: where there is none.
    """
    topics = image_topics(bag, names)
    if not names:
        pictures = [topic for topic in topics if not is_measured(bag, topic)]
        if not pictures:
            raise CommandError(
                f"{bag.path}: its images hold no colours (depth images?): {', '.join(t.name for t in topics)}"
            )
        for name in sorted({topic.name for topic in topics} - {topic.name for topic in pictures}):
            say(f"{name} is left out: its images hold no colours (depth images?)")
        topics = pictures
    chosen: dict[str, Topic] = {}
    # Of a camera's topics the one with the most images is taken, raw before compressed.
    for topic in sorted(topics, key=lambda topic: (-topic.size, topic.type != RAW)):
        if chosen.setdefault(camera(topic.name), topic) != topic:
            taken = chosen[camera(topic.name)]
            say(
                f"{topic.name} is left out: it is of the same camera as {taken.name}; --topic takes it instead"
            )
    return list(chosen.values())


def open_boxes(
    bag: Bag, topics: Sequence[Topic], args: argparse.Namespace, refuse: Callable[[str], None]
) -> dict[str, RecordedBoxes]:
    """The boxes of each topic of images; none where whole images are classified.

    Args:
        refuse: called with one line where messages cannot be read.

    Raises:
        SourceError, CommandError: where there are none of the name, or it is not clear whose they are.
    """
    if not args.boxes:
        for topic in bag.topics:
            if topic.type == DETECTIONS and topic.size:
                say(f"whole images are labelled; {topic.name} has boxes: --boxes {topic.name} labels those")
        return {}
    if len(args.boxes) != len(topics) or len(topics) != (len(args.topic) or 1):
        raise CommandError(
            f"--boxes {' '.join(args.boxes)}: it takes one for each --topic, in the same order; the topics are "
            + ", ".join(topic.name for topic in topics)
        )
    if tuple(args.region) != WHOLE:
        raise CommandError("--boxes and --region both say which part of an image is classified; give one")
    for option, value in (("--box-margin", args.box_margin), ("--sync-tolerance", args.sync_tolerance)):
        if not 0 <= value <= 10:
            raise CommandError(f"{option} {value:g}: it takes 0 to 10")
    names = args.topic or [topics[0].name]
    return {
        name: RecordedBoxes(bag, boxes_topic(bag, boxes), args.sync_tolerance, refuse)
        for name, boxes in zip(names, args.boxes)
    }


@dataclass
class TopicTally:
    """What has become of the frames of a topic.

    Attributes:
        frames: that were recorded, as far as has been read.
        labels: frames or boxes that were answered.
        unknown: boxes that have no part of the image.
        refused: how many frames were not answered, for each reason.
    """

    frames: int = 0
    labels: int = 0
    unknown: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass
class Tally:
    """What has become of all frames.

    Attributes:
        topics: by their names.
        damage: what is said of parts of the recording that cannot be read.
        lost: messages that lie in them, where the recording says how many.
    """

    topics: dict[str, TopicTally] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    lost: int = 0

    def add_damage(self, line: str) -> None:
        """Say of a part of the recording that it cannot be read."""
        self.damage.append(line)
        say(line)

    @property
    def frames(self) -> int:
        return sum(topic.frames for topic in self.topics.values())

    @property
    def labels(self) -> int:
        return sum(topic.labels for topic in self.topics.values())

    @property
    def unknown(self) -> int:
        return sum(topic.unknown for topic in self.topics.values())

    @property
    def refused(self) -> Counter[str]:
        return sum((topic.refused for topic in self.topics.values()), Counter())


def unpacked(
    messages: Iterable[Message], unpacker: Unpacker, tally: Tally
) -> Generator[Unpacked, None, None]:
    """The frames that can be read, in order, made ready in other threads; the others are counted and named."""
    for name, future in in_other_threads(unpacker, messages):
        topic = tally.topics[name]
        topic.frames += 1
        try:
            yield future.result()
        except Refused as refusal:
            topic.refused[refusal.reason] += 1
            if topic.refused[refusal.reason] <= NAMED:
                last = topic.refused[refusal.reason] == NAMED
                more = "; further ones are counted, not named" if last else ""
                say(f"{name}#{topic.frames - 1}: {refusal}{more}")


def answer(
    batch: Sequence[Unpacked], classifier: Classifier, top_k: int, labels: LabelFile, tally: Tally
) -> None:
    """Classify frames and write their labels."""
    unknown = Prediction(-1, UNKNOWN, 0.0)
    parts = [part for each in batch for part in each.parts if part is not None]
    answers = iter(
        predictions
        for first in range(0, len(parts), MOST_PARTS)
        for predictions in classifier.classify(parts[first : first + MOST_PARTS], top_k)
    )
    for origin, parts_of, detections in batch:
        predictions = [[unknown] if part is None else next(answers) for part in parts_of]
        if detections is None:
            labels.write(origin, predictions[0])
        else:
            labels.write_boxes(origin, detections, predictions)
        tally.topics[origin.topic].labels += len(parts_of)
        tally.topics[origin.topic].unknown += parts_of.count(None)


@contextlib.contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, which ends the work after a batch, so that what was written is whole.

    A second one ends at once. In the background, where it is ignored, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return
    pressed = False

    def on_interrupt(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def progress(total: int, labels_on_stdout: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, where there is one and labels do not fill it.

    Yields:
        What is called with the number of frames so far.
    """
    if not sys.stderr.isatty() or (labels_on_stdout and sys.stdout.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def report(tally: Tally, seconds: float, stopped: bool, out: Path | None) -> None:
    """The summary, for people."""
    for name, topic in tally.topics.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in topic.refused.most_common())
        refused = f", {topic.refused.total()} refused ({reasons})" if reasons else ""
        unknown = (
            f" ({topic.unknown} of them unknown: boxes without a part of the image)" if topic.unknown else ""
        )
        say(f"{name}: {topic.frames} frames, {topic.labels} labels{unknown}{refused}")
    if tally.lost:
        say(f"{tally.lost} messages in damaged chunks are lost")
    written = f" in {out}" if out else ""
    say(f"{tally.labels} labels{written}, {seconds:.2f} s, {tally.frames / seconds:.0f} frames/s")
    if stopped:
        say("interrupted; the labels so far are whole")


def as_json(tally: Tally, seconds: float, stopped: bool) -> dict[str, Any]:
    """The summary, for programs."""

    def counts(part: Tally | TopicTally) -> dict[str, Any]:
        return {
            "frames": part.frames,
            "labels": part.labels,
            "unknown": part.unknown,
            "refused": dict(part.refused),
        }

    return {
        **counts(tally),
        "lost": tally.lost,
        "damage": tally.damage,
        "seconds": round(seconds, 3),
        "frames_per_second": round(tally.frames / seconds, 1),
        "interrupted": stopped,
        "topics": {name: counts(topic) for name, topic in tally.topics.items()},
    }
