"""What the soak's page says of a run, made up here: the run itself takes minutes (``make soak``)."""

from __future__ import annotations

import re
from collections import Counter

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from benchmark import soak


class Ended(soak.Soak):
    """A run of an hour without faults, of which three of four good frames were answered."""

    def __init__(self, latencies=(4.0, 2.0, 9.0)):
        self.seconds = 3600.0
        self.sent = {(stamp, "left 1"): "stop" for stamp in range(5)}
        self.spoilt = {(4, "left 1")}
        self.answered = {(stamp, "left 1") for stamp, _ in enumerate(latencies)}
        self.latencies = list(latencies)
        self.counts = Counter({"sent": 5, "answers after the last storm": 1})
        self.wrong = []
        self.samples = [soak.Sample(300.0, 20, 26, 100.0)] * 10


def rows(page):
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE))


def test_the_page_of_a_run():
    page = soak.page(Ended(), "make soak MINUTES=60")
    assert "for 60 minutes" in page
    assert "**Faults: none**" in page
    assert rows(page)["frames sent"] == "5"
    assert rows(page)["good ones answered"].startswith("3 of 4; ")
    assert rows(page)["latency, stamp to answer, p50 and p99"].startswith("4.0 ms, 9.0 ms, ")


def test_the_page_names_the_versions_of_what_the_node_is_made_of():
    (line,) = soak.page(Ended(), "make soak").splitlines()[-1:]
    names = ("bnn_perception", "Python", "NumPy", "numba", "ONNX Runtime", "OpenCV")
    for name in names:
        assert re.search(rf"\b{name} \d+\.\d+", line), name
    assert "rmw_fastrtps_cpp" in line


def test_a_run_without_an_answer_has_a_page():
    page = soak.page(Ended(latencies=()), "make soak")
    assert rows(page)["latency, stamp to answer, p50 and p99"] == "no answer"


def test_growth_and_what_was_wrong_are_faults_on_the_page():
    run = Ended()
    run.samples = [soak.Sample(300.0 + 2 * n, 20, 26, 100.0) for n in range(20)]
    run.wrong = ["a second answer to (1, 'left')"]
    page = soak.page(run, "make soak")
    assert "**Faults: 2: a second answer to (1, 'left'); MB resident grew from 311.0 to 335.0**" in page


@pytest.mark.parametrize("minutes", ["0", "nan", "0.5"])
def test_a_run_that_is_too_short_is_refused(minutes, capsys):
    with pytest.raises(SystemExit):
        soak.main(["--minutes", minutes])
    assert f"--minutes {minutes}: it takes 1 or more" in capsys.readouterr().err
