"""``collect``: images of a recording, a video or a folder under a label, into a folder to train on."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from bnn_perception.cli import add_region_argument, region_argument
from bnn_perception.collection import (
    DIFFERENCE,
    MAX_IMAGES,
    Collection,
    Limits,
    Outcome,
    check_label,
    in_words,
    stamp_name,
)
from bnn_perception.errors import CommandError, printable
from bnn_perception.frames.encoded import MAX_PIXELS
from bnn_perception.frames.frame import WHOLE
from bnn_perception.frames.source import RawImage
from bnn_perception.frames.sources import open_source
from bnn_perception.ros.image_msg import RefusedFrame, view

#: Characters of the name of a source, or of a topic, that stand in the names of files.
MAX_WORD = 64


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "collect",
        description="Images that are nearly those before them are left out. On a robot the node does the same from "
        "its cameras: ros2 run bnn_perception collect_node.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="recording, video, folder of images, or webcam:INDEX"
    )
    parser.add_argument("--label", required=True, help="what the images show: the name of the class")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="gets a folder for each label; train --data takes it",
    )
    parser.add_argument(
        "--every", type=int, default=10, metavar="N", help="take every N-th frame (default: %(default)s)"
    )
    add_region_argument(parser)
    parser.add_argument(
        "--difference",
        type=float,
        default=DIFFERENCE,
        help="leave out what differs by less from a recent image of the label, 0 to 255 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-images",
        type=int,
        default=MAX_IMAGES,
        help="that the folder holds at most (default: %(default)s)",
    )
    parser.add_argument("--topic", help="of a recording with several (default: the one with the most images)")


def run(args: argparse.Namespace) -> int:
    """Collect until the source ends.

    Raises:
        CollectionError, SourceError: for a label, a folder or a source that cannot be used.
        CommandError: for an option that makes no sense, and where the folder is full.
    """
    label = check_label(args.label)
    if args.every < 1:
        raise CommandError(f"--every {args.every}: at least every frame is taken, 1")
    if not 0 <= args.difference <= 255:
        raise CommandError(f"--difference {args.difference}: it lies between 0 and 255")
    region = region_argument(args)
    source = open_source(args.source, topic=args.topic, decode=True, warn=_warn)
    collection = Collection(args.out)
    limits = Limits(args.difference, args.max_images)
    stem = _stem(args.source, args.topic, region)
    became: Counter[Outcome] = Counter()
    frames = refused = 0
    for frame in source:
        frames += 1
        if (frames - 1) % args.every:
            continue
        assert isinstance(frame.image, RawImage), "asked to be decoded"
        try:
            seen = view(frame.image, MAX_PIXELS, region)  # type: ignore[arg-type]  # the fields of a message
        except RefusedFrame as error:
            refused += 1
            _warn(f"{frame.name}: {error}")
            continue
        outcome = collection.add(label, f"{stem}-{stamp_name(frame.stamp)}", seen, limits)
        became[outcome] += 1
        if outcome is Outcome.FULL:
            break
    parts = [f"{became[outcome]} {outcome.value}" for outcome in Outcome if became[outcome]]
    if refused or source.refused:
        parts.append(f"{refused + source.refused} refused")
    print(
        printable(
            f"{label}: {', '.join(parts)}, of {frames} frames; {args.out} holds {in_words(collection.counts)}"
        )
    )
    if became[Outcome.FULL]:
        raise CommandError(
            f"{args.out}: is full, with {len(collection)} images; raise --max-images, or empty it"
        )
    return 0


def _stem(source: str, topic: str | None, region: tuple[float, ...]) -> str:
    """What the names of files begin with: what was collected, so that the same from the same source is known again."""
    words = [Path(source).stem, topic or "", *([] if region == WHOLE else [f"{side:g}" for side in region])]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word).strip("_.")[:MAX_WORD] for word in words if word)


def _warn(line: str) -> None:
    print(printable(f"bnn_perception collect: {line}"), file=sys.stderr)
