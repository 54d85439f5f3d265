"""Calibration of a model's scores: of the images that get a score of 0.9, nine in ten should be right.

The logits are divided by one number, the temperature, fitted on labelled images that the net was not trained on
(temperature scaling of Guo et al., arXiv 1706.04599, section 4.2). No answer changes, only how sure it is. Sums are
float64: a temperature that is tried may be far from the right one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import make_backend
from bnn_perception.errors import Error
from bnn_perception.evaluation.evaluate import Evaluation, evaluate_all
from bnn_perception.frames.dataset import Dataset
from bnn_perception.net.checks import MAX_TEMPERATURE
from bnn_perception.net.model import TEMPERATURES, Model

#: Halvings of the interval of the temperature's logarithm, 28 at first: down to a millionth of a percent.
HALVINGS = 32


class CalibrationError(Error, ValueError):
    """Logits that no temperature can be fitted to; the message is one line."""


def fit_temperature(logits: NDArray[np.floating[Any]], truth: NDArray[np.int64]) -> float:
    """The temperature of the least negative log likelihood.

    Each of the n labels is smoothed: a share of 1 / (n + 1) is spread over all classes, one image's worth of doubt in
    all (much as in Platt, "Probabilistic outputs for support vector machines", 1999). Without it a net that makes no
    mistake on a few images would be taken for one that never makes any, and no temperature would be low enough.

    The likelihood is convex in the inverse of the temperature: the slope is bisected, which cannot miss.

    Args:
        logits: (n, classes).
        truth: (n,) class of each image.

    Raises:
        CalibrationError: where the net answers no better than by guessing.
    """
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)  # softmax is the same, and cannot overflow
    count = len(truth)
    right, average = logits[np.arange(count), truth].mean(), logits.mean()
    if not right > average:
        raise CalibrationError(
            f"the {count} images are answered no better than by guessing; do their labels belong to this model?"
        )
    wanted = (count * right + average) / (count + 1)
    low, high = -np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        powers = np.exp(logits / np.exp(middle))
        expected = ((powers * logits).sum(axis=1) / powers.sum(axis=1)).mean()
        # Hotter scores lie flatter, so that the logit they expect is lower.
        low, high = (low, middle) if expected < wanted else (middle, high)
    return float(np.exp((low + high) / 2))


class Calibration(NamedTuple):
    """One precision before and after its temperature was fitted, on the images that it was fitted to."""

    precision: str
    before: Evaluation
    after: Evaluation


def calibrate(
    model: Model, dataset: Dataset, source: str, device: str = "cpu", threads: int = 0
) -> tuple[Model, list[Calibration]]:
    """Fit the temperature of the binary net, and of the float twin where there is one. Nothing is written.

    Args:
        model: to calibrate.
        dataset: labelled images that neither net was trained on.
        source: names the dataset in the model's description.
        device, threads: as :func:`bnn_perception.backends.make_backend` takes them.

    Returns:
        The model with its temperatures and, in its description, ``calibration``; and what each temperature changes.

    Raises:
        BackendError: where a backend cannot be made.
        CalibrationError: where a net answers no better than by guessing.
        ImageError: where no image can be read.
    """
    # In the order of TEMPERATURES.
    precisions = ("binary", "float") if model.float_twin else ("binary",)
    backends = [make_backend(model, precision, device, threads) for precision in precisions]
    try:
        results = evaluate_all(model, backends, dataset)
    finally:
        for backend in backends:
            backend.close()
    calibrations = []
    for precision, before in zip(precisions, results):
        fitted = float(f"{fit_temperature(before.logits, before.truth):.4g}")
        calibrations.append(Calibration(precision, before, replace(before, temperature=fitted)))
    errors = {c.precision: round(c.after.calibration_error, 6) for c in calibrations}
    entry = {"data": source, "images": len(results[0].truth), "expected_calibration_error": errors}
    temperatures: dict[str, Any] = {name: c.after.temperature for name, c in zip(TEMPERATURES, calibrations)}
    return replace(model, info={**model.info, "calibration": entry}, **temperatures), calibrations
