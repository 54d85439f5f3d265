"""How a model that was imported compares with the graph it came from, on some images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.importers import source_logits
from bnn_perception.importers.fold.builder import UNIT, PixelRange
from bnn_perception.net.model import Model


class Parity(NamedTuple):
    """How an imported model compares with its source graph on some images.

    Attributes:
        images: how many.
        same_class: on how many both give the same class.
        difference: largest difference between two logits.
        magnitude: largest logit of the source, to judge it by.
    """

    images: int
    same_class: int
    difference: float
    magnitude: float


def pixel_range(model: Model) -> PixelRange:
    """What the net that a model came from takes for pixels."""
    return PixelRange(model.input.mean, model.input.std) if model.input.std else UNIT


def compare(source: str | os.PathLike[str], model: Model, frames: Sequence[Frame]) -> Parity:
    """Evaluate the source graph in float32 and the model by the reference backend.

    Args:
        source: the ``.onnx`` file that ``model`` was read from.
        frames: 1 or more images.

    Raises:
        ImporterError: where the graph cannot be evaluated.
    """
    images = [prepare_reference(frame, model.input) for frame in frames]
    expected = source_logits(source, images, pixel_range(model))
    actual = ReferenceBackend(model).logits(frames)
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    difference, magnitude = np.abs(expected - actual).max(), np.abs(expected).max()
    return Parity(len(frames), int(same.sum()), float(difference), float(magnitude))
