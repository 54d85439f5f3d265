"""What a model answers on labelled images: the logits of every image, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import Backend
from bnn_perception.classifier import softmax, temperature
from bnn_perception.evaluation.scores import expected_calibration_error, negative_log_likelihood
from bnn_perception.frames.dataset import LabelledImages
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError
from bnn_perception.net.model import Model

#: Images that a backend gets at a time.
BATCH = 16


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on labelled images.

    Attributes:
        index: (n,) place of each image in its dataset; the images that could not be read are missing.
        truth: (n,) class of each image.
        logits: (n, classes) float32.
        temperature: what the logits are divided by before the softmax.
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
        """Negative log likelihood of the truth: the mean over the images."""
        return negative_log_likelihood(self.logits, self.truth, self.temperature)

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) counts; rows are the truth, columns the answer."""
        classes = self.logits.shape[1]
        table = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(table, (self.truth, self.answer), 1)
        return table


def evaluate(model: Model, backend: Backend, dataset: LabelledImages) -> Evaluation:
    """Classify every image of ``dataset`` that can be read; see :func:`evaluate_all`."""
    return evaluate_all(model, [backend], dataset)[0]


def evaluate_all(model: Model, backends: Sequence[Backend], dataset: LabelledImages) -> list[Evaluation]:
    """Classify every image of ``dataset`` that can be read, with each of the backends.

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
        raise ImageError(
            f"none of the {len(dataset.refused)} images could be read; the first: {dataset.refused[0]}"
        )
    read = np.asarray(indices, dtype=np.int64)
    return [
        Evaluation(read, dataset.labels[read], np.concatenate(logits), temperature(model, backend))
        for backend, logits in zip(backends, rows)
    ]
