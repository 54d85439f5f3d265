"""``train``: from a folder of images, or a configuration file, to a model folder."""

from __future__ import annotations

import argparse
import os
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnn_perception.backends import make_backend
from bnn_perception.errors import CommandError
from bnn_perception.evaluation.evaluate import evaluate
from bnn_perception.frames.images import read_dataset
from bnn_perception.net.folder import update_info
from bnn_perception.net.model import DESCRIPTION, Model
from bnn_perception.resources import resource_folder
from bnn_perception.training.config import Config, ConfigError, portable
from bnn_perception.training.progress import Reporter, short_warnings

if TYPE_CHECKING:
    from bnn_perception.training.distributed import World
    from bnn_perception.training.train import TrainingData


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a binary net and its float twin",
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
    """Errors of training in one line.

    Args:
        kept: what is not lost at an error of the operating system: the last whole epoch, or epochs.

    Raises:
        CommandError: for the errors of a configuration, of data and of the operating system.
    """
    from bnn_perception.training.data import DataError

    try:
        yield
    except (ConfigError, DataError) as error:
        raise CommandError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(
            f"{error.filename or 'a file'}: {error.strerror or error}; the same command goes on after the last "
            f"whole {kept}"
        ) from None


def _train(args: argparse.Namespace, reporter: Reporter, world: World) -> int:
    from bnn_perception.training import config as configs

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


def train_float_twin(config: Config, root: str | None, run_folder: Path, reporter: Reporter) -> None:
    """Train the float twin alone: what :func:`train` begins with."""
    from bnn_perception.training.distributed import join
    from bnn_perception.training.train import run_stage

    with join() as world, _open(config, root, run_folder, reporter, world) as data:
        run_stage("float_twin", config, data, run_folder, reporter, world)


def train(
    config: Config,
    root: str | None,
    run_folder: Path,
    out: Path,
    reporter: Reporter,
    command: str,
    world: World | None = None,
) -> dict[str, Any]:
    """Train what the run folder does not hold yet, write the model folder and measure it.

    Args:
        root: where the configuration's data paths start.
        command: of the user, for the model's description.
        world: the processes that train together; None for this one alone, on the GPU if there is one.

    Returns:
        The accuracy of both precisions, from 0 to 1, as the model's description states it; empty in all processes
        but the first, which alone writes.
    """
    from bnn_perception.training.config import resolve_data
    from bnn_perception.training.distributed import join
    from bnn_perception.training.publish import publish
    from bnn_perception.training.train import run_stages

    if world is None:
        with join() as alone:
            return train(config, root, run_folder, out, reporter, command, alone)
    test = resolve_data(config.data.test, root) if config.data.test else run_folder / "validation.npz"
    with _open(config, root, run_folder, reporter, world) as data:
        if config.data.test:  # an error there must not wait for hours of training
            _check_test_set(test, data.train.names, config, reporter)
        nets = run_stages(config, data, run_folder, reporter, world)
        if not world.is_main:
            return {}
        net = next(reversed(nets.values()))
        model = publish(config, net, nets["float_twin"], data, run_folder, out, {"command": command})
        named = Path("DATA") / portable(config.data.test) if config.data.test else portable(test)
        evaluation = (
            f"python -m bnn_perception evaluate {named} --model {portable(out)} "
            "--backend binary|float --device cpu"
        )
        accuracy = {
            **measure(model, test, config, reporter),
            "part": "test" if config.data.test else "validation",
            "command": evaluation,
        }
        update_info(out, accuracy=accuracy)
        return accuracy


def _check_test_set(test: Path, labels: Sequence[str], config: Config, reporter: Reporter) -> None:
    dataset = read_dataset(test, labels, config.data.ignore)
    absent = [label for index, label in enumerate(labels) if index not in dataset.labels]
    if absent:
        reporter.line(
            f"{test}: holds no image of {', '.join(absent)}; the accuracy will say nothing about that"
        )


@contextmanager
def _open(
    config: Config, root: str | None, run_folder: Path, reporter: Reporter, world: World
) -> Iterator[TrainingData]:
    """What a run trains on; its folder belongs to this process, or these, until the end of the block."""
    import torch

    from bnn_perception.training.run import locked, open_run
    from bnn_perception.training.train import load_data

    if config.threads:
        torch.set_num_threads(config.threads)
    with ExitStack() as stack:
        with world.main_first():
            if world.is_main:
                stack.enter_context(locked(run_folder))
            open_run(run_folder, config)
        reporter.line(f"trains on: {world.describe(config.precision)}")
        yield load_data(config, root, run_folder, reporter, world)


def measure(model: Model, test: Path, config: Config, reporter: Reporter) -> dict[str, float]:
    """Accuracy of both precisions on a labelled set, by the CPU backends that users run."""
    result: dict[str, float] = {}
    for name in ("binary", "float"):
        backend = make_backend(model, name, "cpu", config.threads)
        evaluation = evaluate(model, backend, read_dataset(test, model.labels, config.data.ignore))
        backend.close()
        result[name] = round(evaluation.accuracy, 6)
        result["images"] = len(evaluation.truth)
        reporter.line(
            f"{backend.name}: accuracy {evaluation.accuracy:.4%} ({evaluation.correct} of {len(evaluation.truth)}) "
            f"on {test.name}"
        )
    return result


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
