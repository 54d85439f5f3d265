"""Temperature scaling: figures worked out by hand, and logits whose right temperature is known."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_perception.evaluation.calibration import CalibrationError, fit_temperature
from bnn_perception.evaluation.scores import expected_calibration_error, negative_log_likelihood


def test_expected_calibration_error_by_hand() -> None:
    # Two scores of 0.9, one right: off by 0.4. Two of 0.5, both right: off by 0.5. Half of the images each.
    score = np.array([0.9, 0.9, 0.5, 0.5], np.float32)
    correct = np.array([True, False, True, True])
    assert expected_calibration_error(score, correct) == pytest.approx(0.45)


def test_scores_at_the_ends_have_a_bin() -> None:
    assert expected_calibration_error(np.array([0.0, 1.0], np.float32), np.array([False, True])) == 0


@pytest.mark.parametrize(
    ("scores", "together"),
    [
        ((1 / 15, 1 / 15 + 1e-9), False),  # fifteen bins, closed on the right
        ((0.0, 1 / 15), True),
        ((0.93, 0.94), False),
        ((0.94, 1.0), True),
        ((0.94, np.nextafter(1, 2, dtype=np.float32)), True),  # as float32 may round a certainty
    ],
)
def test_edges_of_bins(scores: tuple[float, float], together: bool) -> None:
    """The first answer is right, the second wrong: in one bin the errors cancel, in two they add up."""
    low, high = scores
    error = abs(low - 1 + high) if together else (1 - low) + high
    assert expected_calibration_error(np.array(scores), np.array([True, False])) == pytest.approx(error / 2)


def test_negative_log_likelihood_by_hand() -> None:
    logits, truth = np.log([[1.0, 3.0], [4.0, 1.0]]), np.array([1, 1])
    assert negative_log_likelihood(logits, truth) == pytest.approx(-np.log(3 / 4 * 1 / 5) / 2)
    # Twice the temperature takes the root of every ratio.
    root = np.sqrt(3)
    assert negative_log_likelihood(logits[:1], truth[:1], 2.0) == pytest.approx(-np.log(root / (1 + root)))


def drawn(count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 5 classes, and classes drawn by their softmax at a temperature."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(count, 5)) * 2 * temperature).astype(np.float32)
    powers = np.exp(logits / temperature)
    below = np.cumsum(powers / powers.sum(axis=1, keepdims=True), axis=1) < rng.random((count, 1))
    return logits, below.sum(axis=1).clip(max=4)


@pytest.mark.parametrize("temperature", [1e-3, 0.4, 1.0, 37.0, 1e4])
def test_the_temperature_that_drew_the_classes_is_found(temperature: float) -> None:
    logits, truth = drawn(20_000, temperature)
    # Its standard error is about 1 / sqrt(20,000), 0.7 %.
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.03)


def test_it_is_the_least_of_the_likelihood() -> None:
    logits, truth = drawn(20, 2.0)

    def loss(temperature: float) -> float:
        """Of n labels and of each class in its turn, as one label more."""
        classes = [
            negative_log_likelihood(logits, np.full(len(truth), label), temperature) for label in range(5)
        ]
        return len(truth) * negative_log_likelihood(logits, truth, temperature) + np.mean(classes)

    best = fit_temperature(logits, truth)
    assert loss(best) < min(loss(best * 0.999), loss(best * 1.001))


def test_logits_may_lie_anywhere() -> None:
    logits, truth = drawn(500, 1.0)
    offset = np.random.default_rng(1).normal(size=(500, 1)) * 1e4  # far beyond what exp takes
    assert fit_temperature(logits + offset, truth) == pytest.approx(fit_temperature(logits, truth), rel=1e-5)


def test_no_mistake_gives_no_certainty() -> None:
    logits = np.tile([5.0, 0.0], (98, 1))
    temperature = fit_temperature(logits, np.zeros(98, int))
    # A share of 1 / 99 of each label is spread over both classes.
    score = 1 / (1 + np.exp(-5.0 / temperature))
    assert score == pytest.approx(1 - 0.5 / 99, abs=1e-6)


@pytest.mark.parametrize("logits", [[[1.0, 2.0]], [[1.0, 1.0]]])
def test_a_net_that_guesses_is_refused(logits: list[list[float]]) -> None:
    with pytest.raises(CalibrationError, match="no better than by guessing"):
        fit_temperature(np.array(logits), np.array([0]))
