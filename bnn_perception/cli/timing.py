"""Times calls against each other on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Rounds of a comparison; each gives one ratio of every pair.
ROUNDS = 21
#: Calls in a row of one contender in a round, and the first of them, which are not counted.
CALLS, UNCOUNTED = 40, 8
#: Seconds of pause before a contender's turn: the idle threads of ONNX Runtime spin for some milliseconds after a call
#: and would take a core away from whoever comes next.
PAUSE = 0.02


@dataclass(frozen=True)
class CallTimes:
    """Milliseconds of every call of one contender: (rounds, calls)."""

    milliseconds: NDArray[np.float64]

    @property
    def median(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.milliseconds, 95))

    def ratio_to(self, other: CallTimes) -> tuple[float, float, float]:
        """How many times longer this took: the median over the rounds, and their 10th and 90th percentile.

        Each round compares the two medians of calls that were made shortly after one another.
        """
        ratios = np.median(self.milliseconds, axis=1) / np.median(other.milliseconds, axis=1)
        low, middle, high = np.percentile(ratios, (10, 50, 90))
        return float(middle), float(low), float(high)


def compare(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 0, calls: int = 0
) -> dict[str, CallTimes]:
    """Time the contenders turn about, each round beginning with another one.

    Args:
        rounds: of turns; 0 takes :data:`ROUNDS`.
        calls: in a row in a turn, that count; 0 takes :data:`CALLS`.
    """
    rounds, calls = rounds or ROUNDS, calls or CALLS
    names = list(contenders)
    times = {name: np.zeros((rounds, calls)) for name in names}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            call = contenders[name]
            time.sleep(PAUSE)
            for _ in range(min(UNCOUNTED, calls)):
                call()
            for index in range(calls):
                begin = time.perf_counter()
                call()
                times[name][round_, index] = (time.perf_counter() - begin) * 1e3
    return {name: CallTimes(values) for name, values in times.items()}
