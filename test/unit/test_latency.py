"""Percentiles of stage times over the newest frames."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from bnn_perception.ros.latency import WINDOW, LatencyWindow


def test_percentiles_of_what_is_there():
    latency = LatencyWindow(window=1000)
    values = np.random.default_rng(0).permutation(101).astype(float)
    for value in values:
        latency.add({"inference": value})
    summary = latency.summary()["inference"]
    assert summary == (50.0, 95.0, 99.0, 100.0)
    assert summary._fields == ("p50", "p95", "p99", "maximum")


def test_old_frames_leave_the_window_one_by_one():
    latency = LatencyWindow(window=10)
    for value in range(25):
        latency.add({"total": float(value)})
        newest = np.arange(max(0, value - 9), value + 1)
        summary = latency.summary()["total"]
        assert summary.maximum == value
        assert summary.p50 == np.median(newest)
    for _ in range(10):
        latency.add({"total": 1.0})
    assert latency.summary()["total"] == (1.0, 1.0, 1.0, 1.0)


def test_the_window_holds_twenty_seconds_of_a_camera():
    latency = LatencyWindow()
    assert WINDOW == 20 * 30
    latency.add({"total": 1e6})
    for _ in range(WINDOW - 1):
        latency.add({"total": 1.0})
    assert latency.summary()["total"].maximum == 1e6
    latency.add({"total": 1.0})
    assert latency.summary()["total"].maximum == 1.0


def test_stages_may_be_missing():
    latency = LatencyWindow(window=3)
    latency.add({"receive": 1.0, "node": 2.0})
    for value in (4.0, 6.0, 8.0):
        latency.add({"node": value})
    summary = latency.summary()
    assert list(summary) == ["receive", "node"]
    assert summary["receive"] == (1.0, 1.0, 1.0, 1.0)
    assert summary["node"].p50 == pytest.approx(6.0)
    assert LatencyWindow().summary() == {}


def test_a_frame_s_stages_are_seen_together():
    latency = LatencyWindow()
    seen = []
    reader = threading.Thread(target=lambda: seen.append(latency.summary()))

    class Times(dict):
        """Lets the other thread read between two stages."""

        def items(self):
            yield "wait", 1.0
            reader.start()
            reader.join(0.1)
            yield "total", 2.0

    latency.add(Times())
    reader.join()
    assert list(seen[0]) == ["wait", "total"]


def test_one_thread_adds_while_another_reads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        for _ in range(8):
            latency = LatencyWindow(window=4)
            # Each stage is a new one: what is read grows all the time.
            stages = [f"stage {count}" for count in range(200)]
            thread = threading.Thread(target=lambda: [latency.add({stage: 1.0}) for stage in stages])  # noqa: B023
            thread.start()
            while thread.is_alive():
                assert set(latency.summary().values()) <= {(1.0, 1.0, 1.0, 1.0)}
            thread.join()
            assert list(latency.summary()) == stages
    finally:
        sys.setswitchinterval(before)
