"""``import``: a net of another tool becomes a model folder."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bnn_perception.cli.inspect_ import layer_rows, print_table, stated_range, totals
from bnn_perception.errors import CommandError
from bnn_perception.files import read_regular
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError, find_images, read_image
from bnn_perception.importers import import_model
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.net.model import Model

#: Most images that the parity report evaluates: the source graph is evaluated slowly, in NumPy.
COMPARED = 32

#: As many as ``model.yaml`` can hold.
MAX_LABELS_BYTES = 1 << 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "import",
        description="Takes a QONNX graph (.onnx), a file of Larq Compute Engine (.tflite) or a BNN-PYNQ parameter "
        "folder; tells them apart by itself.",
    )
    parser.add_argument("source", type=Path, help=".onnx or .tflite file, or folder of *-weights.bin")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder to write")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="text file with a label a line, in order")
    parser.add_argument("--name", default="", help="name of the model (default: that of the source)")
    parser.add_argument(
        "--pixel-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what the net takes for pixels of 0 and 255, such as 0 1, -1 1 or 0 255 (default: told from the graph)",
    )
    parser.add_argument(
        "--mean",
        type=float,
        nargs="+",
        metavar="M",
        help="with --std: the net takes (p / 255 - mean) / std; one number, or one a channel, as torchvision has them",
    )
    parser.add_argument("--std", type=float, nargs="+", metavar="S", help="see --mean")
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="images to compare the model with its source on, a graph"
    )


def run(args: argparse.Namespace) -> int:
    labels = read_labels(args.labels) if args.labels else ()
    model = import_model(args.source, args.out, labels, args.name, pixel_range(args))
    rows = layer_rows(model)
    print_table(rows, totals(rows))
    for line in stated_range(model):
        print(line)
    if args.images is not None:
        print_parity(args.source, model, args.images)
    print(f"model folder: {args.out}")
    return 0


def pixel_range(args: argparse.Namespace) -> PixelRange | None:
    """What the arguments say of pixels, None where they say nothing.

    Raises:
        CommandError: where they contradict one another.
    """
    if (args.mean is None) != (args.std is None):
        raise CommandError("--mean and --std go together")
    if args.mean is not None and args.pixel_range is not None:
        raise CommandError("--pixel-range and --mean with --std say the same in two ways; give one")
    if args.pixel_range is not None:
        low, high = args.pixel_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise CommandError(f"--pixel-range {low:g} {high:g}: two numbers, the lower one first")
        return PixelRange.of(low, high)
    if args.mean is None:
        return None
    if not all(math.isfinite(value) for value in args.mean + args.std) or min(args.std) <= 0:
        raise CommandError("--mean and --std take numbers, and those of --std are above 0")
    return PixelRange(tuple(args.mean), tuple(args.std))


def read_labels(path: Path) -> list[str]:
    """The lines of a text file, without the empty ones at its end."""
    try:
        return read_regular(path, MAX_LABELS_BYTES).decode("utf-8").rstrip().splitlines()
    # ValueError: no regular file, too large, or no UTF-8.
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from None


def print_parity(source: Path, model: Model, images: Path) -> None:
    """Print how the model compares with the graph it came from."""
    if source.is_dir():
        raise CommandError("--images compares with a graph; a BNN-PYNQ folder holds none (try evaluate)")
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
