"""A label that does not flicker: what a camera has shown for a while, made of the scores of its frames."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST = np.finfo(np.float32).tiny

#: Seconds without a frame after which what was seen before says nothing any more.
GAP = 2.0


class Steady(NamedTuple):
    """What a camera shows.

    Attributes:
        class_id: of the label; None where no label is sure enough.
        score: of the smoothed scores, at the frame with which the label began to hold.
    """

    class_id: int | None
    score: float


class SteadyLabel:
    """The label of one camera. It is told of every answered frame, in order.

    Two things keep it from flickering. The logits are averaged with weights that fall off exponentially, by
    ``smoothing`` seconds to 1/e: one frame that is off does not count. And a new label must lead for ``hysteresis``
    seconds before it takes the place of the one that holds.

    Both go by the time between frames, so that the rate of the camera does not matter. After :data:`GAP` seconds
    without a frame, and where time goes back, all begins anew.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen: the labels are those of another model."""
        #: What holds; None before the first frame.
        self.current: Steady | None = None
        self._mean: NDArray[np.float64] | None = None
        self._leader: int | None = None
        self._leads = 0.0

    def update(
        self,
        seconds: float,
        scores: NDArray[np.float32],
        smoothing: float,
        hysteresis: float,
        threshold: float,
    ) -> Steady | None:
        """A frame has been answered.

        Args:
            seconds: since the frame before.
            scores: (classes,) that add up to 1.
            smoothing, hysteresis: seconds; 0 takes each frame as it is.
            threshold: labels with a lower score are no label.

        Returns:
            What holds from this frame on, where that is another label; None where it stays.
        """
        if not 0 <= seconds <= GAP:
            self.reset()
        if smoothing <= 0:
            self._mean = None
        judged: NDArray[Any] = self._smoothed(scores, seconds, smoothing) if smoothing > 0 else scores
        leader = int(judged.argmax())
        score = float(judged[leader])
        label = leader if score >= threshold else None
        if label == self._leader:
            self._leads += seconds
        else:
            self._leader, self._leads = label, 0.0
        waits = self._leads < hysteresis
        if self.current is not None and (label == self.current.class_id or waits):
            return None
        self.current = Steady(label, score)
        return self.current

    def _smoothed(self, scores: NDArray[np.float32], seconds: float, smoothing: float) -> NDArray[np.float64]:
        """The softmax of the mean logits, a frame ``seconds`` after the last one included."""
        # They differ from the logits by a constant, which no softmax sees. The least is that of a score of float32.
        logits = np.log(np.maximum(scores, _LEAST).astype(np.float64))
        if self._mean is None:
            self._mean = logits
        else:
            # Exact for any distance of frames: what is older keeps exp(-seconds / smoothing) of its weight.
            self._mean += (logits - self._mean) * -math.expm1(-seconds / smoothing)
        powers = np.exp(self._mean - self._mean.max())
        smoothed: NDArray[np.float64] = powers / powers.sum()
        return smoothed
