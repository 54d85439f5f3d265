"""What a diagnostics message says: the worst finding decides its level, values have names."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("diagnostic_msgs.msg", reason="the ROS messages are not installed")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from bnn_perception.ros.diagnostics import ERROR, OK, WARN, Report, as_mapping
from bnn_perception.ros.latency import Percentiles

WORST_FIRST = (ERROR, WARN, OK)
TEXTS = {OK: "fine", WARN: "odd", ERROR: "broken"}
LEVELS = {OK: DiagnosticStatus.OK, WARN: DiagnosticStatus.WARN, ERROR: DiagnosticStatus.ERROR}


def status_of(report):
    (status,) = report.message(Time(sec=3, nanosec=4)).status
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


def test_percentiles_of_every_stage():
    report = Report("node", "gpu")
    report.add_latency({"wait": Percentiles(1.0, 2.0, 3.0, 4.5), "total": Percentiles(5.0, 6.0, 7.0, 8.25)})
    assert as_mapping(status_of(report).values) == {
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
    message = Report("node", "gpu").message(Time(sec=3, nanosec=4))
    assert message.header.stamp == Time(sec=3, nanosec=4)
