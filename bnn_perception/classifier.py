"""From frames to labels: a backend's logits, softmax, top-k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import Backend
from bnn_perception.frames.frame import Frame
from bnn_perception.net.model import Model


class Prediction(NamedTuple):
    """One class a frame may show."""

    class_id: int
    label: str
    score: float


def temperature(model: Model, backend: Backend) -> float:
    """What the logits of this backend are divided by: the float twin has a temperature of its own."""
    return model.float_temperature if backend.is_float else model.temperature


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Softmax of ``logits / temperature`` along the last axis; rows add up to 1."""
    scaled = logits / np.float32(temperature)
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class Classifier:
    """Classifies images and frames with one backend. Used by one thread at a time, like the backend.

    :func:`bnn_perception.load_classifier` makes one from the name of a model. In a ``with`` statement the backend is
    closed at the end.
    """

    def __init__(self, model: Model, backend: Backend) -> None:
        self.model = model
        self.backend = backend

    def predict(self, image: NDArray[np.uint8] | Frame, top_k: int = 1) -> list[Prediction]:
        """The ``top_k`` most likely classes of one image, best first.

        Args:
            image: (height, width, 3) uint8 RGB or (height, width) uint8 grey, of any size; a :class:`Frame` for other
                encodings or for a region of interest.
            top_k: most classes to return.

        Raises:
            TypeError: for what is no array, a path among them; :func:`bnn_perception.read_image` reads files.
            ValueError: for an array that is no such image.
            BackendError: where the device fails.
        """
        if not isinstance(image, Frame):
            if not isinstance(image, np.ndarray):
                raise TypeError(
                    f"an image is an array, not a {type(image).__name__}; bnn_perception.read_image reads a file"
                )
            image = Frame(image[..., None], "mono8") if image.ndim == 2 else Frame(image)
        (predictions,) = self.classify([image], top_k)
        return predictions

    def scores(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """(len(frames), classes) float32; each row adds up to 1."""
        return softmax(self.backend.logits(frames), temperature(self.model, self.backend))

    def classify(self, frames: Sequence[Frame], top_k: int = 1) -> list[list[Prediction]]:
        """The ``top_k`` most likely classes of each frame, best first; equal scores in label order.

        Raises:
            BackendError: where the device fails.
        """
        return [predictions for predictions, _ in self.classify_with_scores(frames, top_k)]

    def classify_with_scores(
        self, frames: Sequence[Frame], top_k: int = 1
    ) -> list[tuple[list[Prediction], NDArray[np.float32]]]:
        """As :meth:`classify`, with the scores of all classes of each frame, (classes,) float32.

        Raises:
            BackendError: where the device fails.
        """
        return [(self._ranked(row, top_k), row) for row in self.scores(frames)]

    def _ranked(self, scores: NDArray[np.float32], top_k: int) -> list[Prediction]:
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [Prediction(int(i), self.model.labels[i], float(scores[i])) for i in best]

    def close(self) -> None:
        """Give back what the backend holds. Calling it again does nothing."""
        self.backend.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
