"""Percentiles of stage times over the newest frames."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_perception.ros.latency import LatencyWindow


def test_percentiles_of_what_is_there():
    latency = LatencyWindow(window=1000)
    values = np.random.default_rng(0).permutation(101).astype(float)
    for value in values:
        latency.add({"inference": value})
    assert latency.summary()["inference"] == (50.0, 95.0, 99.0, 100.0)


def test_old_frames_leave_the_window():
    latency = LatencyWindow(window=10)
    for value in [1e6] * 10 + [1.0] * 10:
        latency.add({"total": value})
    assert latency.summary()["total"] == (1.0, 1.0, 1.0, 1.0)


def test_stages_may_be_missing():
    latency = LatencyWindow()
    latency.add({"receive": 1.0, "node": 2.0})
    latency.add({"node": 4.0})
    summary = latency.summary()
    assert list(summary) == ["receive", "node"]
    assert summary["receive"].maximum == 1.0
    assert summary["node"].p50 == pytest.approx(3.0)
    assert LatencyWindow().summary() == {}
