"""``train``: from a folder of images, or a configuration file, to a model folder."""

from __future__ import annotations

import argparse
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_perception.errors import CommandError
from bnn_perception.net.model import DESCRIPTION
from bnn_perception.resources import resource_folder
from bnn_perception.training import config as configs
from bnn_perception.training.config import portable
from bnn_perception.training.progress import Reporter, short_warnings

if TYPE_CHECKING:
    from bnn_perception.training.distributed import World


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "train",
        description="Trains the float twin, then the binary net, and writes a model folder. A run that was "
        "interrupted goes on where it was when the same command is given again. On N GPUs: "
        "torchrun --nproc-per-node N -m -- bnn_perception train ...",
    )
    parser.add_argument(
        "config",
        nargs="?",
        help="configuration file, or the name of one that ships (default: sensible settings for --data FOLDER)",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="where the configuration's data paths start (default: $BNN_DATA); without a configuration, the "
        "folder with a folder of images for each class",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="model folder to write (default: models/NAME)"
    )
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="checkpoints and records (default: runs/NAME)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs of the binary stage, and at most so many of the stages activations and head around it",
    )
    parser.add_argument("--float-epochs", type=int, metavar="N", help="epochs of the float twin")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("--threads", type=int, help="of the CPU (default: one a core)")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="where to train (default: auto, the GPU if PyTorch sees one)",
    )


def run(args: argparse.Namespace) -> int:
    from bnn_perception.training.distributed import join

    try:
        with resumable("epoch"), short_warnings("train"), join(args.device) as world:
            if not world.is_main:
                warnings.simplefilter("ignore")  # the first process gives the same ones
            return _train(args, Reporter(quiet=not world.is_main), world)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped; the same command goes on after the last whole epoch")
        return 130


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Say at an error of the operating system, a full disk say, that the same command goes on.

    Args:
        kept: what is not lost then: the last whole epoch, or epochs.

    Raises:
        CommandError: for an error of the operating system.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(
            f"{error.filename or 'a file'}: {error.strerror or error}; the same command goes on after the last "
            f"whole {kept}"
        ) from None


def _train(args: argparse.Namespace, reporter: Reporter, world: World) -> int:
    from bnn_perception.training.pipeline import train

    if args.config is not None:
        config, root = configs.load_config(find_config(args.config)), args.data
    elif args.data is not None:
        folder = Path(args.data).resolve()
        config, root = configs.default_config(folder.name, str(folder)), None
    else:
        raise CommandError("name a configuration file, or a folder of images with --data")
    config = configs.override(config, args.epochs, args.float_epochs, args.seed, args.threads)
    out, run_folder = args.out or Path("models") / config.name, args.run or Path("runs") / config.name
    _check_folder("--out", out)
    _check_folder("--run", run_folder)
    if (out / DESCRIPTION).exists():
        reporter.line(f"{out}: the model that is there will be replaced")
    train(config, root, run_folder, out, reporter, command=_command(args, out), world=world)
    reporter.line(f"model folder: {out}")
    return 0


def _check_folder(option: str, path: Path) -> None:
    """Refuse a folder that could not be written after hours of training."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not place.is_dir():
        raise CommandError(f"{option} {path}: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise CommandError(f"{option} {path}: {place} cannot be written to")


def find_config(name: str) -> Path:
    """A path as it is, otherwise the configuration of that name that comes with the package."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    shipped = resource_folder("config") / "train" / f"{name}.yaml"
    return shipped if shipped.exists() else path


def _command(args: argparse.Namespace, out: Path) -> str:
    """The command as another machine would give it: without this one's folders."""
    words = ["python", "-m", "bnn_perception", "train"]
    if args.config is not None:
        words.append(str(portable(args.config)))
    words += ["--data", "DATA", "--out", str(portable(out))]
    for option in ("epochs", "float_epochs", "seed"):
        if getattr(args, option) is not None:
            words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    return shlex.join(words)
