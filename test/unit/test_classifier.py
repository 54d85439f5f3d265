"""From logits to labels: softmax and top-k worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import random_model
from numpy.typing import NDArray

from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.classifier import Classifier, Prediction, softmax
from bnn_perception.frames.frame import Frame
from bnn_perception.net.model import Model

FRAME = Frame(np.zeros((1, 1, 3), np.uint8))


class Scripted:
    """A backend that answers with given logits."""

    name = "scripted"
    device_name = "none"

    def __init__(self, logits: list[list[float]], is_float: bool = False) -> None:
        self._logits = np.array(logits, np.float32)
        self.is_float = is_float
        self.times: dict[str, float] = {}
        self.frames: list[Frame] = []
        self.closed = 0

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        assert len(frames) == len(self._logits)
        self.frames += frames
        return self._logits

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        return iter(())

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def model() -> Model:
    net = random_model(np.random.default_rng(0), classes=3)
    return replace(net, labels=("a", "b", "c"), temperature=2.0, float_temperature=0.5)


def test_softmax_of_each_row_is_its_own() -> None:
    """Whatever the other rows of the batch are: with one maximum for all, the second would be 0 / 0."""
    rows = softmax(np.array([[500, 500], [-500, -501], [0, np.log(3)]], np.float32))
    assert rows.dtype == np.float32
    # float32 rounds each power and each quotient by at most 2**-24.
    np.testing.assert_allclose(
        rows, [[0.5, 0.5], [1 / (1 + 1 / np.e), 1 / (1 + np.e)], [0.25, 0.75]], rtol=1e-6
    )
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-6)


def test_softmax_is_along_the_last_axis() -> None:
    for shape in ((2,), (1, 1, 2)):
        rows = softmax(np.log(np.array([1, 3], np.float32)).reshape(shape))
        np.testing.assert_allclose(rows, np.reshape([0.25, 0.75], shape), rtol=1e-6)


def test_softmax_divides_by_the_temperature() -> None:
    logits = np.log(np.array([[1.0, 9.0]], np.float32))
    np.testing.assert_allclose(softmax(logits, 2.0), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(softmax(logits, 0.5), [[1 / 82, 81 / 82]], rtol=1e-6)


@pytest.mark.parametrize(("is_float", "ratio"), [(False, 3.0), (True, 81.0)])
def test_each_precision_has_its_temperature(model: Model, is_float: bool, ratio: float) -> None:
    backend = Scripted([[0.0, np.log(9.0), 0.0]], is_float)
    (scores,) = Classifier(model, backend).scores([FRAME])
    assert scores[1] / scores[0] == pytest.approx(ratio, rel=1e-5)


def test_the_best_stand_first_and_equals_in_the_order_of_the_labels(model: Model) -> None:
    classifier = Classifier(model, Scripted([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]]))
    first, second = classifier.classify([FRAME, FRAME], top_k=3)
    assert [p.label for p in first] == ["c", "a", "b"]
    assert [p.class_id for p in first] == [2, 0, 1]
    assert first[0].score == pytest.approx(np.e / (np.e + 2), rel=1e-5)  # a temperature of 2
    assert [p.label for p in second] == ["a", "b", "c"]
    assert [[p.label for p in row] for row in classifier.classify([FRAME, FRAME])] == [["c"], ["a"]]
    assert [len(row) for row in classifier.classify([FRAME, FRAME], top_k=2)] == [2, 2]
    # Few numbers are sorted by another method than many, which keeps the order of equals by itself.
    many = random_model(np.random.default_rng(0), classes=64)
    (row,) = Classifier(many, Scripted([[0.0, 1.0] * 32])).classify([FRAME], top_k=64)
    assert [p.class_id for p in row] == [*range(1, 64, 2), *range(0, 64, 2)]
    assert isinstance(first[0], Prediction)
    assert type(first[0].score) is float


@pytest.mark.parametrize("image", ["picture.png", [[0, 1]], None], ids=str)
def test_what_is_no_array_is_refused_with_the_remedy(model: Model, image: object) -> None:
    classifier = Classifier(model, ReferenceBackend(model))
    with pytest.raises(
        TypeError, match=f"not a {type(image).__name__}; bnn_perception.read_image reads a file"
    ):
        classifier.predict(image)  # type: ignore[arg-type]


def test_an_image_becomes_the_frame_that_it_shows(model: Model) -> None:
    backend = Scripted([[1.0, 1.0, 3.0]])
    colour = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    grey, region = colour[..., 0], Frame(colour[..., :1], "mono8", (0.5, 0.0, 0.5, 1.0))
    with Classifier(model, backend) as classifier:
        for image in (colour, grey, region):
            assert [p.label for p in classifier.predict(image)] == ["c"]
        assert [p.label for p in classifier.predict(colour, top_k=2)] == ["c", "a"]
        assert backend.closed == 0
    assert backend.closed == 1
    first, second, third, _ = backend.frames
    assert (first.encoding, second.encoding) == ("rgb8", "mono8")
    np.testing.assert_array_equal(first.pixels, colour)
    np.testing.assert_array_equal(second.pixels, grey[..., None])
    assert third is region
    for wrong in (colour[..., :2], colour.astype(np.float32), grey[0]):
        with pytest.raises(ValueError, match="channels"):
            classifier.predict(wrong)
