"""`benchmark --node` as a user starts it: a short load over real DDS."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import PATIENCE


@pytest.mark.parametrize("boxes", ["whole", "3"])
def test_a_short_load(english, tmp_path, boxes):
    file = tmp_path / "load.json"
    command = [sys.executable, "-m", "bnn_perception", "benchmark", "--node", "--model", str(english)]
    options = ["--cameras", "2", "--rates", "10", "--sizes", "96x64", "--seconds", "2", "--rounds", "1"]
    done = subprocess.run(
        [*command, *options, "--boxes", boxes, "--device", "cpu", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    title = "whole images" if boxes == "whole" else "3 boxes an image"
    assert f"2 x 96x64 at 10 Hz, {title}" in done.stdout
    results = json.loads(file.read_text())
    (measured,) = results["measured"]
    assert measured["scenario"] == {
        "cameras": 2,
        "rate": 10.0,
        "width": 96,
        "height": 64,
        "boxes": None if boxes == "whole" else 3,
    }
    for subject in ("floor", "binary"):
        figures = measured[subject]
        # Both cameras at their rate, as far as the machine lets them.
        assert 20 <= figures["sent"] <= 44
        assert figures["sent"] - figures["dropped"] >= 20
        assert 0 < figures["p50"] <= figures["p95"] <= figures["p99"]
        assert 0 < figures["core %"] < 100 * results["cores"]
        assert 0 < figures["machine busy %"] <= 100


def test_no_answers_are_told_in_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bnn_perception",
            "benchmark",
            "--node",
            "--cameras",
            "1",
            "--model",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "model.yaml" in done.stderr.splitlines()[-1]
