"""``classify``: label image files, videos and recordings, one line an image."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bnn_perception.backends import make_backend
from bnn_perception.classifier import Classifier
from bnn_perception.cli import add_backend_arguments, add_image_arguments, image_arguments
from bnn_perception.cli.json_text import to_json
from bnn_perception.errors import printable
from bnn_perception.frames.encoded import MAX_PIXELS
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError, find_images, read_image
from bnn_perception.frames.source import Source, SourceError
from bnn_perception.frames.sources import holds_video, open_source
from bnn_perception.net.folder import load_model
from bnn_perception.resources import find_model
from bnn_perception.ros.image_msg import RefusedFrame, Region, view


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("classify")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image file or folder of them, video or recording"
    )
    parser.add_argument("--topic", help="of a recording's images (default: the one with the most)")
    add_backend_arguments(parser)
    add_image_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    top_k, region = image_arguments(args)
    model = load_model(find_model(args.model))
    opened = [
        open_source(path, topic=args.topic, decode=True, warn=say) if holds_video(path) else find_images(path)
        for path in args.paths
    ]
    backend = make_backend(model, args.backend, args.device, args.threads)
    print(printable(f"{model.name}, {backend.name} on {backend.device_name}"), file=sys.stderr)
    answered = failures = 0
    with Classifier(model, backend) as classifier:
        frames = (
            read_source(each, region) if isinstance(each, Source) else read_images(each, region)
            for each in opened
        )
        for name, frame in itertools.chain.from_iterable(frames):
            if frame is None:
                failures += 1
                continue
            (predictions,) = classifier.classify([frame], top_k)
            answered += 1
            if args.json:
                results = [
                    {"label": p.label, "index": p.class_id, "score": round(p.score, 6)} for p in predictions
                ]
                milliseconds = {stage: round(time, 3) for stage, time in backend.times.items()}
                print(to_json({"image": name, "results": results, "ms": milliseconds}))
            else:
                print(printable(f"{name}: " + ", ".join(f"{p.label} {p.score:.3f}" for p in predictions)))
    failures += sum(each.refused for each in opened if isinstance(each, Source))
    if failures:
        say(f"{failures} of {answered + failures} images could not be read")
    return 1 if failures else 0


def say(line: str) -> None:
    print(f"bnn_perception classify: {printable(line)}", file=sys.stderr)


def read_images(files: Sequence[Path], region: Region) -> Iterator[tuple[str, Frame | None]]:
    """Name and frame of each file; None for one that cannot be read, when the reason has been said."""
    for file in files:
        frame = None
        try:
            frame = Frame(read_image(file), region=region)
        except ImageError as error:
            say(str(error))
        yield str(file), frame


def read_source(source: Source, region: Region) -> Iterator[tuple[str, Frame | None]]:
    """Name and frame of each image of a source; None for one that is no picture, when the reason has been said.

    Those that the source cannot read it reports and counts itself.
    """
    try:
        for each in source:
            image: Any = each.image  # its fields are those of the message
            frame = None
            try:
                frame = view(image, MAX_PIXELS, region)
            except RefusedFrame as refusal:
                say(f"{each.name}: {refusal}")
            yield each.name, frame
    except SourceError as error:  # not one frame
        say(str(error))
