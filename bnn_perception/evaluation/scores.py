"""What scores are worth: measures of how well they say how often an answer is right. Sums are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bins of the expected calibration error, as in the paper that :func:`expected_calibration_error` names.
BINS = 15


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
    """How far scores are from the share of right answers, from 0 to 1 (Guo et al., arXiv 1706.04599, section 2).

    The mean over the images of |accuracy - mean score| of the image's bin; :data:`BINS` bins of equal width.

    Args:
        score: (n,) score of each answer.
        correct: (n,) whether it is right.
    """
    # Bins are closed on the right: a score of exactly 1/15 belongs to the first.
    bins = np.clip(np.ceil(score.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    excess = np.bincount(bins, score.astype(np.float64) - correct, minlength=BINS)
    return float(np.abs(excess).sum() / len(score))
