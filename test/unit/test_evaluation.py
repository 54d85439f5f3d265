"""Answers on labelled images, two backends compared, temperatures fitted: on a model whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bnn_perception.backends import BackendError
from bnn_perception.backends.cuda.specs import MAX_FRAMES
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.evaluation.calibration import CalibrationError, calibrate
from bnn_perception.evaluation.compare import Comparison, Disagreement, mcnemar
from bnn_perception.evaluation.evaluate import BATCH, Evaluation, evaluate, evaluate_all
from bnn_perception.evaluation.scores import expected_calibration_error
from bnn_perception.frames.dataset import Dataset, read_dataset
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError
from bnn_perception.net import bits
from bnn_perception.net.folder import load_model, save_model
from bnn_perception.net.layers import OutputDense, Thermometer
from bnn_perception.net.model import InputSpec, Model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def model() -> Model:
    """Two layers that tell the mean colour: its logit is 3, the two others are -1."""
    one_hot = bits.pack(np.eye(3, dtype=bool))
    layers = (
        Thermometer("encode", channels=3, levels=1, thresholds=np.full((3, 1), 128, np.uint8)),
        OutputDense("logits", (1, 1, 3), 3, one_hot, np.ones(3, np.float32), np.zeros(3, np.float32)),
    )
    return Model("colours", tuple(COLOURS), InputSpec(1, 1), layers)


def write_images(folder: Path, shown: dict[str, list[str | None]]) -> None:
    """For each class its images in order: the colour that one shows, or None for one that cannot be read."""
    for truth, colours in shown.items():
        (folder / truth).mkdir(parents=True)
        for index, colour in enumerate(colours):
            image = np.full((2, 3, 3), COLOURS[colour or "red"][::-1], np.uint8)
            content = cv2.imencode(".png", image)[1].tobytes()
            (folder / truth / f"{index:02}.png").write_bytes(content if colour else b"broken")


@pytest.mark.parametrize("broken", [[0], [1], [5], [8], [0, 3, 4, 8]])
def test_truth_and_answer_stay_together_around_images_that_cannot_be_read(
    model: Model, tmp_path: Path, broken: list[int]
) -> None:
    """Nine images, three of each class; each is taken for the class after its own, but for the first of a class."""
    names = list(COLOURS)
    expected = [(truth, truth if index == 0 else (truth + 1) % 3) for truth in range(3) for index in range(3)]
    shown: dict[str, list[str | None]] = {name: [] for name in names}
    for place, (truth, answer) in enumerate(expected):
        shown[names[truth]].append(None if place in broken else names[answer])
    write_images(tmp_path, shown)
    dataset = read_dataset(tmp_path, names)
    order = [names.index(Path(name).parent.name) * 3 + int(Path(name).stem) for name in dataset.names]
    read = [place for place in order if place not in broken]

    result = evaluate(model, ReferenceBackend(model), dataset)

    assert [order[index] for index in result.index] == read
    assert [(int(t), int(a)) for t, a in zip(result.truth, result.answer)] == [
        expected[place] for place in read
    ]
    assert result.correct == sum(place % 3 == 0 for place in read)
    assert result.accuracy == result.correct / len(read)
    assert len(dataset.refused) == len(broken)


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH])
def test_every_image_is_answered_once_however_many_there_are(model: Model, count: int) -> None:
    answers = np.random.default_rng(count).integers(0, 3, count)
    pixels = np.array(list(COLOURS.values()), np.uint8)[answers][:, None, None]
    dataset = Dataset(np.zeros(count, np.int64), ["image"] * count, pixels)
    calls: list[int] = []

    class Counting(ReferenceBackend):
        def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
            calls.append(len(frames))
            return super().logits(frames)

    first, second = evaluate_all(model, [Counting(model), ReferenceBackend(model)], dataset)
    assert max(calls) <= MAX_FRAMES  # the most that a GPU takes at once; no more images are held in memory
    for result in (first, second):
        np.testing.assert_array_equal(result.answer, answers)
        np.testing.assert_array_equal(result.index, np.arange(count))


def test_no_image_that_can_be_read(model: Model, tmp_path: Path) -> None:
    write_images(tmp_path, {"red": [None, None], "blue": [None]})
    with pytest.raises(ImageError, match=r"none of the 3 images could be read; the first: .*blue/00\.png"):
        evaluate(model, ReferenceBackend(model), read_dataset(tmp_path, list(COLOURS)))


def test_scores_are_of_the_temperature_of_the_backend(model: Model) -> None:
    class Twin(ReferenceBackend):
        """Answers as the binary net does, under the name of a float twin."""

        is_float = True

    warm = replace(model, temperature=2.0, float_temperature=4.0)
    dataset = Dataset(np.array([0, 1]), ["a", "b"], np.array([[[[255, 0, 0]]]] * 2, np.uint8))
    binary, twin = evaluate_all(warm, [ReferenceBackend(warm), Twin(warm)], dataset)
    for result, temperature in ((binary, 2.0), (twin, 4.0)):
        best = 1 / (1 + 2 * np.exp(-4 / temperature))  # logits of 3, -1 and -1
        np.testing.assert_allclose(result.scores, [[best, (1 - best) / 2, (1 - best) / 2]] * 2, rtol=1e-6)
        np.testing.assert_allclose(result.score, [best] * 2, rtol=1e-6)
        # One of two is right: the mean score lies off by so much.
        assert result.calibration_error == pytest.approx(abs(best - 0.5), rel=1e-6)
        assert result.likelihood == pytest.approx(-np.log([best, (1 - best) / 2]).mean(), rel=1e-6)


def evaluation(truth: list[int], answer: list[int]) -> Evaluation:
    logits = np.eye(3, dtype=np.float32)[answer]
    return Evaluation(np.arange(len(truth)), np.array(truth), logits, 1.0)


def test_a_confusion_matrix_has_the_truth_in_rows() -> None:
    table = evaluation([0, 0, 0, 2, 1], [0, 1, 1, 1, 1]).confusion()
    np.testing.assert_array_equal(table, [[1, 2, 0], [0, 1, 0], [0, 1, 0]])
    assert table.dtype == np.int64


def test_a_comparison_counts_who_alone_is_right() -> None:
    truth = [0, 0, 0, 1, 1, 2, 2, 2]
    #        both, first alone three times, second alone, neither twice (alike, apart), both
    first, second = [0, 0, 0, 1, 0, 1, 1, 2], [0, 1, 1, 2, 1, 1, 0, 2]
    comparison = Comparison(evaluation(truth, first), evaluation(truth, second))
    assert (comparison.only_first, comparison.only_second) == (3, 1)
    assert comparison.points == 100 * (5 - 3) / 8
    assert comparison.p_value == 2 * (1 + 4) / 16
    assert comparison.disagreements() == [
        Disagreement(images=2, truth=0, first=0, second=1),
        Disagreement(images=1, truth=1, first=0, second=1),
        Disagreement(images=1, truth=1, first=1, second=2),
        Disagreement(images=1, truth=2, first=1, second=0),
    ]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1),
        (0, 5, 2 / 32),
        (7, 1, 2 * (1 + 8) / 256),
        (6, 2, 2 * (1 + 8 + 28) / 256),
        (3, 9, 2 * (1 + 12 + 66 + 220) / 4096),
        (3, 3, 1),
        (4, 3, 1),
        (0, 5000, 0),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == p


@pytest.fixture
def labelled() -> Dataset:
    """200 images, four in five of which show the colour of their label."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 200)
    shown = np.where(np.arange(200) % 5 == 0, (truth + 1) % 3, truth)
    pixels = np.array(list(COLOURS.values()), np.uint8)[shown][:, None, None]
    return Dataset(truth, ["image"] * 200, pixels)


def test_a_calibration_is_written_with_what_it_is_worth(
    model: Model, tmp_path: Path, labelled: Dataset
) -> None:
    calibrated, (done,) = calibrate(replace(model, info={"note": "kept"}), labelled, "a set", threads=1)
    after = save_model(calibrated, tmp_path)
    # With logits 3, -1 and -1 a score of 0.8 takes e^(4 / T) = 2 * 0.8 / 0.2; one image of doubt is 0.4 % of it.
    assert after.temperature == pytest.approx(4 / np.log(8), rel=0.01)
    assert (done.precision, done.before.temperature, done.after.temperature) == (
        "binary",
        1.0,
        after.temperature,
    )
    # What model.yaml says holds of the scores as they are now, not as they were.
    error = expected_calibration_error(done.after.score, done.after.hits)
    assert error < 0.01 < 0.1 < done.before.calibration_error
    assert after.info == {
        "note": "kept",
        "calibration": {
            "data": "a set",
            "images": 200,
            "expected_calibration_error": {"binary": round(error, 6)},
        },
    }


def test_a_calibration_that_fails_changes_nothing(model: Model, tmp_path: Path, labelled: Dataset) -> None:
    saved = save_model(model, tmp_path)
    with pytest.raises(BackendError, match="device 'tpu'"):
        calibrate(saved, labelled, "a set", device="tpu")
    with pytest.raises(BackendError, match="threads is -1"):
        calibrate(saved, labelled, "a set", threads=-1)
    labelled.labels[:] = (labelled.labels + 1) % 3
    with pytest.raises(CalibrationError, match="no better than by guessing"):
        calibrate(saved, labelled, "a set")
    assert load_model(tmp_path).info == {}
