"""``replay``: label the images of a recording as fast as the machine can, without ROS."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bnn_perception.backends import make_backend
from bnn_perception.classifier import Classifier
from bnn_perception.cli import add_backend_arguments, add_image_arguments, image_arguments
from bnn_perception.cli.json_text import to_json
from bnn_perception.cli.label_files import LabelFile, Origin, camera, check_label_path, open_labels
from bnn_perception.errors import CommandError, one_line, printable
from bnn_perception.frames.bags import Bag, Message, Topic
from bnn_perception.frames.encoded import MAX_PIXELS
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.messages import RAW
from bnn_perception.frames.preprocess import prepare
from bnn_perception.frames.recordings import image_topics, is_measured, read_message
from bnn_perception.net.folder import load_model
from bnn_perception.net.model import InputSpec
from bnn_perception.resources import find_model
from bnn_perception.ros.image_msg import RefusedFrame, Region, decode, view

#: Frames that the model gets at a time, and that are made ready ahead of it.
BATCH = 16

#: Threads that decode at most; each holds an image or two.
MOST_DECODERS = 8

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
    add_backend_arguments(parser)
    add_image_arguments(parser)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    top_k, region = image_arguments(args)
    if args.json and args.out is None:
        raise CommandError("--json takes standard output; name a file for the labels: --out labels.csv")
    bag = Bag(args.bag, warn=say)
    topics = choose(bag, args.topic)
    if args.out is not None:
        check_label_path(args.out, args.bag)
    model = load_model(find_model(args.model))
    backend = make_backend(model, args.backend, args.device, args.threads)
    print(printable(f"{model.name}, {backend.name} on {backend.device_name}"), file=sys.stderr)
    tally = Tally({topic.name: TopicTally() for topic in topics})
    begin = time.perf_counter()
    with (
        contextlib.closing(bag),
        Classifier(model, backend) as classifier,
        open_labels(args.out, model.labels, top_k) as labels,
        progress(sum(topic.size for topic in topics), args.out is None) as advance,
        first_interrupt() as interrupted,
    ):
        with contextlib.closing(unpacked(bag.messages(topics, say), region, model.input, tally)) as frames:
            while not interrupted() and (batch := list(itertools.islice(frames, BATCH))):
                answer(batch, classifier, top_k, labels, tally)
                advance(tally.frames)
        stopped = interrupted()
    seconds = time.perf_counter() - begin
    report(tally, seconds, stopped, args.out, bag.lost)
    if args.json:
        described = {"model": model.name, "backend": backend.name, "device": backend.device_name}
        where = {"recording": str(args.bag), "out": str(args.out)}
        print(to_json({**described, **where, **as_json(tally, seconds, stopped, bag.lost)}))
    if stopped:
        return 130
    return 1 if tally.refused or bag.lost else 0


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


@dataclass
class TopicTally:
    """What has become of the frames of a topic.

    Attributes:
        frames: that were recorded, as far as has been read.
        labels: frames that were answered.
        refused: how many were not, for each reason.
    """

    frames: int = 0
    labels: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass
class Tally:
    """What has become of all frames, by topic."""

    topics: dict[str, TopicTally]

    @property
    def frames(self) -> int:
        return sum(topic.frames for topic in self.topics.values())

    @property
    def labels(self) -> int:
        return sum(topic.labels for topic in self.topics.values())

    @property
    def refused(self) -> Counter[str]:
        return sum((topic.refused for topic in self.topics.values()), Counter())


class Unpacked(NamedTuple):
    """A frame, brought to the model's input, and where it comes from."""

    origin: Origin
    frame: Frame


def unpacked(
    messages: Iterable[Message], region: Region, spec: InputSpec, tally: Tally
) -> Generator[Unpacked, None, None]:
    """The frames that can be read, in order, made ready in other threads; the others are counted and named."""
    for name, future in in_other_threads(lambda message: unpack(message, region, spec), messages):
        topic = tally.topics[name]
        topic.frames += 1
        try:
            yield future.result()
        except RefusedFrame as refusal:
            topic.refused[refusal.reason] += 1
            count = topic.refused[refusal.reason]
            if count <= NAMED:
                more = "; further ones are counted, not named" if count == NAMED else ""
                say(f"{name}#{topic.frames - 1}: {refusal}{more}")


def in_other_threads(
    function: Callable[[Message], Unpacked], messages: Iterable[Message]
) -> Iterator[tuple[str, Future[Unpacked]]]:
    """What a function makes of each message, in order, and its topic; :data:`BATCH` of them are under way at a time."""
    pool = ThreadPoolExecutor(min(MOST_DECODERS, len(os.sched_getaffinity(0))), "decode")
    try:
        waiting: deque[tuple[str, Future[Unpacked]]] = deque()
        for message in messages:
            waiting.append((message.topic.name, pool.submit(function, message)))
            if len(waiting) > BATCH:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


def unpack(message: Message, region: Region, spec: InputSpec) -> Unpacked:
    """The frame in an image message, brought to the model's input; an image may be large, and many wait.

    Raises:
        RefusedFrame: with the reason.
    """
    try:
        recorded = read_message(message.topic.type, message.data)
    except Exception as error:  # of arbitrary bytes: whatever they provoke
        raise RefusedFrame("undecodable", f"a message that cannot be read: {one_line(error)}") from None
    image: Any = recorded.image  # its fields are those of the message
    read = view if message.topic.type == RAW else decode
    pixels = prepare(read(image, MAX_PIXELS, region), spec)
    origin = Origin(message.topic.name, message.stamp, recorded.stamp, recorded.frame_id)
    return Unpacked(origin, Frame(pixels, "rgb8" if spec.channels == 3 else "mono8"))


def answer(
    batch: Sequence[Unpacked], classifier: Classifier, top_k: int, labels: LabelFile, tally: Tally
) -> None:
    """Classify frames and write their labels."""
    for (origin, _), predictions in zip(batch, classifier.classify([each.frame for each in batch], top_k)):
        labels.write(origin, predictions)
        tally.topics[origin.topic].labels += 1


@contextlib.contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, which ends the work after a batch, so that what was written is whole.

    A second one ends at once.
    """
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


def report(tally: Tally, seconds: float, stopped: bool, out: Path | None, lost: int) -> None:
    """The summary, for people."""
    for name, topic in tally.topics.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in topic.refused.most_common())
        refused = f", {topic.refused.total()} refused ({reasons})" if reasons else ""
        say(f"{name}: {topic.frames} frames, {topic.labels} labels{refused}")
    if lost:
        say(f"{lost} messages in damaged chunks are lost")
    written = f" in {out}" if out else ""
    say(f"{tally.labels} labels{written}, {seconds:.2f} s, {tally.frames / seconds:.0f} frames/s")
    if stopped:
        say("interrupted; the labels so far are whole")


def as_json(tally: Tally, seconds: float, stopped: bool, lost: int) -> dict[str, Any]:
    """The summary, for programs."""

    def counts(part: Tally | TopicTally) -> dict[str, Any]:
        return {"frames": part.frames, "labels": part.labels, "refused": dict(part.refused)}

    return {
        **counts(tally),
        "lost": lost,
        "seconds": round(seconds, 3),
        "frames_per_second": round(tally.frames / seconds, 1),
        "interrupted": stopped,
        "topics": {name: counts(topic) for name, topic in tally.topics.items()},
    }
