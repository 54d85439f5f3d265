"""Makes scores mean something: of the images that get a score of 0.9, nine in ten should be right.

Temperature scaling of Guo et al., arXiv 1706.04599, section 4.2: the logits are divided by one number, fitted on
labelled images that the net was not trained on. No answer changes, only how sure it is. Sums are float64: a
temperature that is tried may be far from the right one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error
from bnn_perception.net.checks import MAX_TEMPERATURE

#: Of the expected calibration error, as in the paper.
BINS = 15

#: Each halves the interval of the logarithm, 28 at first: to a millionth of a percent.
HALVINGS = 32


class CalibrationError(Error, ValueError):
    """Logits that no temperature can be fitted to; the message is one line."""


def negative_log_likelihood(
    logits: NDArray[np.floating[Any]], truth: NDArray[np.int64], temperature: float = 1.0
) -> float:
    """Mean over the images of -log(score of the right class), nats.

    Args:
        logits: (n, classes).
        truth: (n,) class of each image.
        temperature: logits are divided by it.
    """
    logits = np.asarray(logits, dtype=np.float64) / temperature
    largest = logits.max(axis=1)
    total = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    return float((total - logits[np.arange(len(truth)), truth]).mean())


def expected_calibration_error(score: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> float:
    """How far scores are from the share of right answers, from 0 to 1 (section 2 of the paper).

    The mean over the images of |accuracy - mean score| of the image's bin; :data:`BINS` bins of equal width.

    Args:
        score: (n,) score of each answer.
        correct: (n,) whether it is right.
    """
    # Bins are closed on the right: a score of exactly 1/15 belongs to the first.
    bins = np.clip(np.ceil(score.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    excess = np.bincount(bins, score.astype(np.float64) - correct, minlength=BINS)
    return float(np.abs(excess).sum() / len(score))


def fit_temperature(logits: NDArray[np.floating[Any]], truth: NDArray[np.int64]) -> float:
    """The temperature of the least negative log likelihood.

    Of n labels a share of 1 / (n + 1) each counts as spread over all classes, one image's worth of doubt (Platt,
    "Probabilistic outputs for support vector machines", 1999, has the like). Without it a net that makes no mistake
    on a few images would be taken for one that never makes any, and no temperature would be low enough.

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
