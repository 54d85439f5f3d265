"""`benchmark --node`: which loads are asked for, and what the tables say of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from bnn_perception.cli import node_load
from bnn_perception.cli.node_load import Measured
from bnn_perception.errors import CommandError
from bnn_perception.ros.load import Scenario


def arguments(*argv):
    parser = argparse.ArgumentParser()
    node_load.add_arguments(parser)
    return parser.parse_args(["--node", *argv])


def test_one_combination_by_default():
    assert node_load.scenarios(arguments()) == [Scenario(4, 30.0, 640, 480, None)]


def test_all_combinations_are_measured():
    asked = [
        "--cameras",
        "1",
        "8",
        "--rates",
        "30",
        "60",
        "--sizes",
        "640x480",
        "1280x720",
        "--boxes",
        "whole",
        "0",
        "50",
    ]
    found = node_load.scenarios(arguments(*asked))
    assert len(set(found)) == 24
    assert Scenario(8, 60.0, 1280, 720, 50) in found
    assert Scenario(1, 30.0, 640, 480, None) in found


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--cameras", "0"], "above 0"),
        (["--rates", "0"], "above 0"),
        (["--seconds", "0"], "above 0"),
        (["--rounds", "0"], "above 0"),
        (["--sizes", "640"], "--sizes 640: 640x480, say"),
        (["--sizes", "640x-1"], "--sizes 640x-1"),
        (["--sizes", "0x4"], "one pixel or more"),
        (["--boxes", "many"], "--boxes many: a number, or whole"),
        (["--sizes", "32x32", "--boxes", "1"], "64 pixels or more"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(asked, reason):
    with pytest.raises(CommandError, match=reason):
        node_load.scenarios(arguments(*asked))


def test_boxes_lie_in_the_image():
    from bnn_perception.ros.load import BOX, _boxes

    boxes = _boxes(Scenario(1, 30.0, 640, 480, 50))
    assert len(boxes) == 50
    for box in boxes:
        assert BOX / 2 <= box.x <= 640 - BOX / 2
        assert BOX / 2 <= box.y <= 480 - BOX / 2
    assert _boxes(Scenario(1, 30.0, 640, 480, 0)) == []


def test_figures():
    measured = Measured(10.0, 300, 297, 2.5, [0.5, 0.7], [float(n) for n in range(1, 101)])
    figures = measured.figures()
    assert figures["labels a second"] == pytest.approx(29.7)
    assert figures["p50"] == pytest.approx(50.5)
    assert figures["p95"] == pytest.approx(95.05)
    assert figures["p99"] == pytest.approx(99.01)
    assert (figures["sent"], figures["dropped"], figures["core %"]) == (300, 3, pytest.approx(25.0))
    assert figures["machine busy %"] == pytest.approx(60.0)


def test_a_table_also_where_no_answer_came():
    answered = Measured(10.0, 300, 297, 2.5, [0.5], [1.0, 2.0, 3.0]).figures()
    none = Measured(10.0, 300, 0, 0.1, [0.5], []).figures()
    lines = node_load.table(Scenario(2, 15.0, 640, 480, 5), {"floor": answered, "binary": none}).splitlines()
    assert lines[0] == "2 x 640x480 at 15 Hz, 5 boxes an image"
    assert " ".join(lines[2].split()) == "floor 29.7 2.00 2.90 2.98 300 3 25 % 50 %"
    assert " ".join(lines[3].split()) == "binary 0.0 - - - 300 300 1 % 50 %"
    assert max(map(len, lines)) <= 100


def test_the_processors_that_a_process_took():
    import os
    import time
    from types import SimpleNamespace

    ourselves = SimpleNamespace(process=SimpleNamespace(pid=os.getpid()))
    before = node_load._spent(ourselves)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = node_load._spent(ourselves)
    assert 0.25 <= (after.process - before.process) / os.sysconf("SC_CLK_TCK") <= 0.6
    assert 0 < after.busy - before.busy <= after.all - before.all
    assert Path("/proc/stat").exists()
