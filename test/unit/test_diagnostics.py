"""What a diagnostics message says: the worst finding decides its level, values have names."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

pytest.importorskip("diagnostic_msgs.msg", reason="the ROS messages are not installed")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from bnn_perception.errors import printable, shown
from bnn_perception.ros import diagnostics
from bnn_perception.ros.diagnostics import ERROR, OK, WARN, CameraState, Report, State, as_mapping, as_message
from bnn_perception.ros.latency import Percentiles

WORST_FIRST = (ERROR, WARN, OK)
TEXTS = {OK: "fine", WARN: "odd", ERROR: "broken"}
LEVELS = {OK: DiagnosticStatus.OK, WARN: DiagnosticStatus.WARN, ERROR: DiagnosticStatus.ERROR}


def status_of(report):
    (status,) = as_message([report], Time(sec=3, nanosec=4)).status
    return status


@pytest.mark.parametrize("findings", [c for n in (1, 2, 3) for c in itertools.permutations(TEXTS, n)])
def test_the_worst_finding_decides_and_comes_first(findings):
    report = Report("node", "gpu")
    for level in findings:
        report.find(level, TEXTS[level])
    status = status_of(report)
    ranked = [level for level in WORST_FIRST if level in findings]
    assert status.level == LEVELS[ranked[0]]
    assert status.message == "; ".join(TEXTS[level] for level in ranked)


def test_findings_of_one_level_keep_their_order():
    report = Report("node", "gpu")
    for text in ("first", "second", "third"):
        report.find(WARN, text)
    assert status_of(report).message == "first; second; third"


def test_nothing_found_is_ok():
    status = status_of(Report("/bnn/classifier", "NVIDIA Orin"))
    assert (status.level, status.message) == (DiagnosticStatus.OK, "OK")
    assert (status.name, status.hardware_id) == ("/bnn/classifier", "NVIDIA Orin")
    assert list(status.values) == []


def test_values_are_texts_in_order():
    report = Report("node", "gpu")
    report.add({"model": "road_signs", "rate in (Hz)": 29.99951, "frames received": 12})
    report.add({"frames refused": 0, "exact": 1.0})
    values = as_mapping(status_of(report).values)
    assert list(values.items()) == [
        ("model", "road_signs"),
        ("rate in (Hz)", "30.000"),
        ("frames received", "12"),
        ("frames refused", "0"),
        ("exact", "1.000"),
    ]


#: A state in which every field says something of its own.
STATE = State(
    lifecycle="active",
    model="road_signs",
    backend="cpu_binary",
    device="AMD Ryzen 7",
    device_wanted="auto",
    why_not_gpu="no driver",
    rate_in=29.5,
    rate_out=28.25,
    frames={
        diagnostics.RECEIVED: 21,
        diagnostics.CLASSIFIED: 6,
        diagnostics.SKIPPED: 8,
        diagnostics.STALE: 5,
        diagnostics.LOADING: 4,
        diagnostics.LOST: 3,
        diagnostics.FAILED: 2,
        diagnostics.REFUSED: 1,
    },
    refused={"step": 1, "encoding": 0},
    latency={"wait": Percentiles(1.0, 2.0, 3.0, 4.5), "total": Percentiles(5.0, 6.0, 7.0, 8.25)},
    unexpected=7,
    threads={"inference": "waiting", "loading": "closing an engine for 0.1 s"},
)


def values_of(state):
    """The values of a message that tells the state."""
    report = Report("node", "gpu")
    report.add(state.values())
    return as_mapping(status_of(report).values)


def test_every_value_of_a_state_has_its_key():
    values = values_of(STATE)
    assert {key: value for key, value in values.items() if not key.startswith("latency ")} == {
        "state": "active",
        "model": "road_signs",
        "backend": "cpu_binary",
        "device": "AMD Ryzen 7",
        "device wanted": "auto",
        "why not the GPU": "no driver",
        "rate in (Hz)": "29.500",
        "rate out (Hz)": "28.250",
        "frames received": "21",
        "frames classified": "6",
        "frames skipped by max_rate": "8",
        "frames dropped as stale": "5",
        "frames dropped while loading": "4",
        "frames lost in transport": "3",
        "frames failed": "2",
        "frames refused": "1",
        "frames refused: encoding": "0",
        "frames refused: step": "1",
        "unexpected errors": "7",
        "inference thread": "waiting",
        "loading thread": "closing an engine for 0.1 s",
    }


def test_a_state_is_read_as_it_was_written():
    assert State.from_values(values_of(STATE)) == STATE
    loading = replace(STATE, backend="none", device="none", why_not_gpu="", refused={}, latency={})
    assert State.from_values(values_of(loading)) == loading
    assert "why not the GPU" not in values_of(loading)
    assert (STATE.answers, loading.answers) == (True, False)


def test_percentiles_of_every_stage():
    values = values_of(STATE)
    assert {key: value for key, value in values.items() if key.startswith("latency ")} == {
        "latency wait p50 (ms)": "1.000",
        "latency wait p95 (ms)": "2.000",
        "latency wait p99 (ms)": "3.000",
        "latency wait maximum (ms)": "4.500",
        "latency total p50 (ms)": "5.000",
        "latency total p95 (ms)": "6.000",
        "latency total p99 (ms)": "7.000",
        "latency total maximum (ms)": "8.250",
    }


def test_the_stamp_is_the_header_s():
    message = as_message([Report("a", "gpu"), Report("b", "gpu")], Time(sec=3, nanosec=4))
    assert message.header.stamp == Time(sec=3, nanosec=4)
    assert [status.name for status in message.status] == ["a", "b"]


def test_the_state_of_a_camera_is_read_as_it_was_written():
    state = CameraState(
        29.5, 28.25, {diagnostics.RECEIVED: 9, diagnostics.REFUSED: 1}, 0.125, Percentiles(1, 2, 3, 4.5)
    )
    assert values_of(state) == {
        "rate in (Hz)": "29.500",
        "rate out (Hz)": "28.250",
        "since the last frame (s)": "0.125",
        "frames received": "9",
        "frames refused": "1",
        "latency to labels p50 (ms)": "1",
        "latency to labels p95 (ms)": "2",
        "latency to labels p99 (ms)": "3",
        "latency to labels maximum (ms)": "4.500",
    }
    boxes = {diagnostics.ANSWERED: 3, diagnostics.UNUSABLE: 1}
    full = replace(state, boxes=boxes, brightness=100.5, sharpness=0.25)
    for written in (state, replace(state, latency=None), full):
        assert CameraState.from_values(values_of(written)) == written


def test_foreign_text_is_cut_and_cannot_steer_a_terminal():
    assert printable("camera \x1b[2J\r\n\x9b31m") == "camera \\x1b[2J\\r\\n\\x9b31m"
    assert printable("Füße 木 \ud800\0") == "Füße 木 ??"
    assert len(printable("x" * 3_000_000)) < 2100
    assert printable("x" * 3_000_000 + ": the reason").endswith("x: the reason")
    assert "x... (3000012 characters) ...x" in printable("x" * 3_000_000 + ": the reason")
    assert shown("y" * 100) == "y" * 80 + "..."
