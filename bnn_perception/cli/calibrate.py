"""``calibrate``: fit a model's temperatures, so that its scores are the share of its answers that are right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnn_perception.backends import DEVICES
from bnn_perception.errors import CommandError
from bnn_perception.evaluation.calibration import CalibrationError, calibrate
from bnn_perception.frames.dataset import read_dataset
from bnn_perception.net.folder import load_model, update_info
from bnn_perception.net.model import TEMPERATURES
from bnn_perception.resources import find_model


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        description="Divides the logits of the binary net, and of its float twin, by the number that makes a score "
        "the share of right answers, and writes it into the model's model.yaml. No answer changes. Take images that "
        "the model was not trained on, and not those that you report its accuracy on.",
    )
    parser.add_argument(
        "data", help="folder with a folder for each class, or .npz with x (N, H, W, 3) uint8 and y"
    )
    parser.add_argument(
        "--model", required=True, help="model folder, or the name of one that ships; it is changed"
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where (default: auto, the GPU if there is one)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of the CPU backends (default: as many as pay off)"
    )


def run(args: argparse.Namespace) -> int:
    folder = find_model(args.model)
    model = load_model(folder)
    dataset = read_dataset(args.data, model.labels)
    try:
        model, calibrations = calibrate(model, dataset, Path(args.data).name, args.device, args.threads)
    except CalibrationError as error:
        raise CommandError(f"{args.data}: {error}") from None
    temperatures = {name: getattr(model, name) for name in TEMPERATURES}
    try:
        update_info(folder, calibration=model.info["calibration"], **temperatures)
    except OSError as error:
        raise CommandError(f"{folder}: cannot be written: {error.strerror or error}") from None
    for line in dataset.refused:
        print(f"bnn_perception calibrate: left out: {line}", file=sys.stderr)
    print("precision  temperature       score            calibration error  negative log likelihood")
    for precision, before, after in calibrations:
        columns = [
            (before.temperature, after.temperature, "11.4g"),
            (before.score.mean(dtype=float), after.score.mean(dtype=float), ".4f"),
            (before.calibration_error, after.calibration_error, ".4f"),
            (before.likelihood, after.likelihood, ".4f"),
        ]
        print(f"{precision:9}  " + "  ".join(f"{old:{form}} -> {new:<{form}}" for old, new, form in columns))
    left = f", {len(dataset.refused)} left out" if dataset.refused else ""
    print(f"{folder}: calibrated on {len(calibrations[0].before.truth)} images{left}")
    return 0
