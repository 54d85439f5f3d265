"""The whole of a training: data in, every stage, the export, calibration and accuracy, a model folder out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from bnn_perception.backends import make_backend
from bnn_perception.evaluation.calibration import CalibrationError, calibrate
from bnn_perception.evaluation.evaluate import evaluate_all
from bnn_perception.frames.dataset import read_dataset
from bnn_perception.net.model import Model
from bnn_perception.training.config import Config, portable, resolve_data
from bnn_perception.training.distributed import World, join
from bnn_perception.training.progress import Reporter
from bnn_perception.training.publish import to_model, write_folder
from bnn_perception.training.run import VALIDATION, locked, open_run
from bnn_perception.training.train import TrainingData, load_data, run_stage, run_stages


def train_float_twin(config: Config, root: str | None, run: Path, reporter: Reporter) -> None:
    """Train the float twin alone: what :func:`train` begins with."""
    with join() as world, _open(config, root, run, reporter, world) as data:
        run_stage("float_twin", config, data, run, reporter, world)


def train(
    config: Config,
    root: str | None,
    run: Path,
    out: Path,
    reporter: Reporter,
    command: str,
    world: World | None = None,
) -> Model | None:
    """Train what the run folder does not hold yet, calibrate and measure the model, and write its folder.

    The model folder is written once, at the end: until then it is the one that was there.

    Args:
        root: where the configuration's data paths start.
        run: the folder of the run.
        out: the model folder.
        command: of the user, for the model's description.
        world: the processes that train together; None for this one alone, on the GPU if there is one.

    Returns:
        The model as it was written; None in all processes but the first, which alone writes.
    """
    if world is None:
        with join() as alone:
            return train(config, root, run, out, reporter, command, alone)
    test = resolve_data(config.data.test, root) if config.data.test else run / VALIDATION
    with _open(config, root, run, reporter, world) as data:
        if config.data.test:  # an error there must not wait for hours of training
            _check_test_set(test, data.train.names, config, reporter)
        nets = run_stages(config, data, run, reporter, world)
        if not world.is_main:
            return None
        net = next(reversed(nets.values()))
        model = to_model(config, net, nets["float_twin"], data, run, command)
        model = _calibrated(model, run / VALIDATION, config)
        named = Path("DATA") / portable(config.data.test) if config.data.test else portable(test)
        if not config.data.test:
            reporter.line(
                "there are no test images (data.test): the accuracy below is that of the validation images, by which "
                "the weights were chosen and the scores calibrated, so it is a little too high"
            )
        accuracy = {
            **measure(model, test, config, reporter),
            "part": "test" if config.data.test else "validation",
            "command": f"python -m bnn_perception evaluate {named} --model {portable(out)} "
            "--backend binary|float --device cpu",
        }
        return write_folder(replace(model, info={**model.info, "accuracy": accuracy}), run, out, config.name)


def _calibrated(model: Model, validation: Path, config: Config) -> Model:
    """The model with scores that mean something on the validation images; as it is where that cannot be."""
    try:
        dataset = read_dataset(validation, model.labels)
        return calibrate(model, dataset, validation.name, threads=config.threads)[0]
    except CalibrationError as error:
        warnings.warn(f"scores are not calibrated: {error}", stacklevel=2)
        return model


def measure(model: Model, test: Path, config: Config, reporter: Reporter) -> dict[str, float]:
    """Accuracy of both precisions on a labelled set, by the CPU backends that users run."""
    backends = [make_backend(model, name, "cpu", config.threads) for name in ("binary", "float")]
    results = evaluate_all(model, backends, read_dataset(test, model.labels, config.data.ignore))
    images = len(results[0].truth)
    for backend, result in zip(backends, results):
        backend.close()
        reporter.line(
            f"{backend.name}: accuracy {result.accuracy:.4%} ({result.correct} of {images}) on {test.name}"
        )
    binary, twin = (round(result.accuracy, 6) for result in results)
    return {"binary": binary, "images": images, "float": twin}


def _check_test_set(test: Path, labels: Sequence[str], config: Config, reporter: Reporter) -> None:
    dataset = read_dataset(test, labels, config.data.ignore)
    absent = [label for index, label in enumerate(labels) if index not in dataset.labels]
    if absent:
        reporter.line(
            f"{test}: holds no image of {', '.join(absent)}; the accuracy will say nothing about that"
        )


@contextmanager
def _open(
    config: Config, root: str | None, run: Path, reporter: Reporter, world: World
) -> Iterator[TrainingData]:
    """What a run trains on; its folder belongs to this process, or these, until the end of the block."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with ExitStack() as stack:
        with world.main_first():
            if world.is_main:
                stack.enter_context(locked(run))
            open_run(run, config)
        reporter.line(f"trains on: {world.describe(config.precision)}")
        yield load_data(config, root, run, reporter, world)
