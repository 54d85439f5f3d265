"""Two evaluations of the same images: where they differ, and whether that can be chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnn_perception.evaluation.evaluate import Evaluation


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
        """The p-value of the exact McNemar test; see :func:`mcnemar`."""
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
    # In whole numbers, which do not overflow.
    throws, fewer = only_first + only_second, min(only_first, only_second)
    ways, total = 1, 0
    for heads in range(fewer + 1):
        total += ways
        ways = ways * (throws - heads) // (heads + 1)
    return min(1.0, 2 * total / 2**throws)
