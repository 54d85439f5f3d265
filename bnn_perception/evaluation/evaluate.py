"""What a model answers on labelled images, how two of its backends differ, and what their scores are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import Backend, make_backend
from bnn_perception.classifier import softmax, temperature
from bnn_perception.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from bnn_perception.frames.images import Dataset, ImageError
from bnn_perception.frames.preprocess import Frame
from bnn_perception.net.folder import update_info
from bnn_perception.net.model import TEMPERATURES, Model

BATCH = 16  # the most that a GPU backend takes at once


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on labelled images.

    Attributes:
        index: (n,) place of each image in its dataset; the images that could not be read are missing.
        truth: (n,) class of each image.
        logits: (n, classes) float32.
        temperature: that the logits are divided by for scores.
    """

    index: NDArray[np.int64]
    truth: NDArray[np.int64]
    logits: NDArray[np.float32]
    temperature: float

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """(n, classes); each row adds up to 1."""
        return softmax(self.logits, self.temperature)

    @cached_property
    def answer(self) -> NDArray[np.int64]:
        """(n,) the class with the highest score."""
        return self.scores.argmax(axis=1)

    @cached_property
    def score(self) -> NDArray[np.float32]:
        """(n,) the highest score."""
        return self.scores.max(axis=1)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """(n,) where the answer is right."""
        return self.truth == self.answer

    @property
    def correct(self) -> int:
        return int(self.hits.sum())

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.truth)

    @property
    def calibration_error(self) -> float:
        return expected_calibration_error(self.score, self.hits)

    @property
    def likelihood(self) -> float:
        """Negative log likelihood of the truth, mean over the images."""
        return negative_log_likelihood(self.logits, self.truth, self.temperature)

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) counts; rows are the truth, columns the answer."""
        classes = self.logits.shape[1]
        table = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(table, (self.truth, self.answer), 1)
        return table


def evaluate(model: Model, backend: Backend, dataset: Dataset) -> Evaluation:
    """As :func:`evaluate_all`, with one backend."""
    return evaluate_all(model, [backend], dataset)[0]


def evaluate_all(model: Model, backends: Sequence[Backend], dataset: Dataset) -> list[Evaluation]:
    """Classify every image of ``dataset`` that can be read by each of the backends.

    Raises:
        ImageError: where none of them can be read.
    """
    indices: list[int] = []
    rows: list[list[NDArray[np.float32]]] = [[] for _ in backends]
    pending: list[Frame] = []

    def flush() -> None:
        if pending:
            for backend, logits in zip(backends, rows):
                logits.append(backend.logits(pending))
            pending.clear()

    for index, image in dataset:
        indices.append(index)
        pending.append(Frame(image))
        if len(pending) == BATCH:
            flush()
    flush()
    if not indices:
        raise ImageError(f"none of the {len(dataset)} images could be read; the first: {dataset.refused[0]}")
    read = np.asarray(indices, dtype=np.int64)
    return [
        Evaluation(read, dataset.labels[read], np.concatenate(logits), temperature(model, backend))
        for backend, logits in zip(backends, rows)
    ]


class Calibration(NamedTuple):
    """One precision before and after its temperature was fitted, on the images that it was fitted to."""

    precision: str
    before: Evaluation
    after: Evaluation


def calibrate(
    model: Model, dataset: Dataset, source: str, device: str = "cpu", threads: int = 0
) -> list[Calibration]:
    """Fit the temperature of the binary net, and of the float twin where there is one, and write ``model.yaml``.

    Args:
        model: loaded from its folder.
        dataset: labelled images that neither net was trained on.
        source: names the dataset in ``model.yaml``.
        device, threads: as :func:`bnn_perception.backends.make_backend` takes them.

    Raises:
        BackendError: where a backend cannot be made.
        CalibrationError: where a net answers no better than by guessing; nothing is written then.
        ImageError: where no image can be read.
        OSError: where ``model.yaml`` cannot be written.
    """
    if model.folder is None:
        raise ValueError("the model was not loaded from a folder")
    # In the order of model.TEMPERATURES.
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
    update_info(
        model.folder,
        **{name: c.after.temperature for name, c in zip(TEMPERATURES, calibrations)},
        calibration={
            "data": source,
            "images": len(results[0].truth),
            "expected_calibration_error": errors,
        },
    )
    return calibrations


class Disagreement(NamedTuple):
    """How many images of one class two backends answer differently, and the two answers."""

    images: int
    truth: int
    first: int
    second: int


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same images."""

    first: Evaluation
    second: Evaluation

    @property
    def points(self) -> float:
        """Accuracy of the first less that of the second, percentage points."""
        return 100 * (self.first.correct - self.second.correct) / len(self.first.truth)

    @property
    def only_first(self) -> int:
        """Images that the first alone gets right."""
        return int((self.first.hits & ~self.second.hits).sum())

    @property
    def only_second(self) -> int:
        """Images that the second alone gets right."""
        return int((self.second.hits & ~self.first.hits).sum())

    @property
    def p_value(self) -> float:
        """Of the exact McNemar test; see :func:`mcnemar`."""
        return mcnemar(self.only_first, self.only_second)

    def disagreements(self) -> list[Disagreement]:
        """Where the answers differ, the commonest first; equal counts in order of the classes."""
        differs = self.first.answer != self.second.answer
        triples = np.stack([self.first.truth, self.first.answer, self.second.answer], axis=1)[differs]
        kinds, counts = np.unique(triples, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [Disagreement(int(counts[i]), *map(int, kinds[i])) for i in order]


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test.

    Where both are equally good, an image that only one of them gets right is right by either with equal chance: how
    often would ``only_first + only_second`` throws of a coin be at least as uneven?
    """
    throws, fewer = only_first + only_second, min(only_first, only_second)
    ways, total = 1, 0
    for heads in range(fewer + 1):
        total += ways
        ways = ways * (throws - heads) // (heads + 1)
    return min(1.0, 2 * total / 2**throws)  # of whole numbers, which do not overflow
