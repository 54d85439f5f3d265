"""``import``: a net of another tool becomes a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnn_perception.cli.inspect_ import layer_rows, print_table, totals
from bnn_perception.errors import CommandError
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError, find_images, read_image
from bnn_perception.importers import import_model
from bnn_perception.net.model import Model

#: Most images that the parity report evaluates: the source graph is evaluated slowly, in NumPy.
COMPARED = 32


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "import",
        description="Takes a QONNX graph (.onnx) or a BNN-PYNQ parameter folder; tells them apart by itself.",
    )
    parser.add_argument("source", type=Path, help=".onnx file, or folder of *-weights.bin")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder to write")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="text file with a label a line, in order")
    parser.add_argument("--name", default="", help="name of the model (default: that of the source)")
    parser.add_argument(
        "--pixel-maximum",
        type=float,
        metavar="NUMBER",
        help="what the .onnx net takes for a pixel of 255, as a rule 1 or 255 (default: told from the graph)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="images to compare the model with its QONNX source on"
    )


def run(args: argparse.Namespace) -> int:
    labels = read_labels(args.labels) if args.labels else ()
    model = import_model(args.source, args.out, labels, args.name, args.pixel_maximum)
    rows = layer_rows(model)
    print_table(rows, totals(rows))
    source = model.info.get("source", {})
    if "pixel_maximum" in source:
        how = "" if args.pixel_maximum is not None else " (--pixel-maximum says it otherwise)"
        print(f"the source takes a pixel of 255 as {source['pixel_maximum']:g}{how}")
    if "fraction_bits" in source:
        print(f"its residuals are in fixed point, with at least {source['fraction_bits']} fractional bits")
    if args.images is not None:
        print_parity(args.source, model, args.images)
    print(f"model folder: {args.out}")
    return 0


def read_labels(path: Path) -> list[str]:
    """The lines of a text file, without the empty ones at its end."""
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from None


def print_parity(source: Path, model: Model, images: Path) -> None:
    """Print how the model compares with the graph it came from."""
    if source.is_dir():
        raise CommandError(
            "--images compares with a QONNX graph; a BNN-PYNQ folder holds none (try evaluate)"
        )
    from bnn_perception.cli.parity import compare

    frames, left_out = [], 0
    for path in find_images(images)[:COMPARED]:
        try:
            frames.append(Frame(read_image(path)))
        except ImageError:
            left_out += 1
    if not frames:
        raise CommandError(f"{images}: none of its images can be read")
    parity = compare(source, model, frames)
    print(
        f"parity on {parity.images} images ({left_out} left out): same class on {parity.same_class}, largest "
        f"difference of a logit {parity.difference:.2g} (largest logit {parity.magnitude:.3g})"
    )
