"""``classify``: label image files, one line an image."""

from __future__ import annotations

import argparse
import sys

from bnn_perception.backends import make_backend
from bnn_perception.classifier import Classifier
from bnn_perception.cli import add_backend_arguments, add_image_arguments, image_arguments
from bnn_perception.cli.json_text import to_json
from bnn_perception.errors import CommandError, printable
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError, find_images, read_image
from bnn_perception.frames.sources import holds_video
from bnn_perception.net.folder import load_model
from bnn_perception.resources import find_model


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("classify")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file or folder")
    add_backend_arguments(parser)
    add_image_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    top_k, region = image_arguments(args)
    model = load_model(find_model(args.model))
    for path in args.paths:
        if holds_video(path):
            raise CommandError(
                f"{path}: is a video or a recording; 'ros2 run bnn_perception camera_node --ros-args "
                f"-p source:={path}' plays it to a classifier node"
            )
    paths = [file for path in args.paths for file in find_images(path)]
    backend = make_backend(model, args.backend, args.device, args.threads)
    print(printable(f"{model.name}, {backend.name} on {backend.device_name}"), file=sys.stderr)
    classifier = Classifier(model, backend)
    failures = 0
    for path in paths:
        try:
            frame = Frame(read_image(path), region=region)
        except ImageError as error:
            failures += 1
            print(f"bnn_perception classify: {error}", file=sys.stderr)
            continue
        (predictions,) = classifier.classify([frame], top_k)
        if args.json:
            results = [
                {"label": p.label, "index": p.class_id, "score": round(p.score, 6)} for p in predictions
            ]
            milliseconds = {stage: round(time, 3) for stage, time in classifier.backend.times.items()}
            print(to_json({"image": str(path), "results": results, "ms": milliseconds}))
        else:
            print(printable(f"{path}: " + ", ".join(f"{p.label} {p.score:.3f}" for p in predictions)))
    classifier.backend.close()
    if failures:
        print(
            f"bnn_perception classify: {failures} of {len(paths)} images could not be read", file=sys.stderr
        )
    return 1 if failures else 0
