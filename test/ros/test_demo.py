"""The demo as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import PATIENCE

from bnn_perception.resources import find_model


def demo(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bnn_perception", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """What it wrote and its exit code; nothing of it is left running."""
    try:
        output, _ = process.communicate(timeout=2 * PATIENCE)
    finally:
        left = running_in(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    assert left == []
    return output, process.returncode


def running_in(session):
    """Command lines of the processes of a session."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as line:
                fields = stat.read().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(line.read().replace("\0", " "))
        except OSError:  # it has ended meanwhile
            continue
    return found


def numbers(pattern, output):
    match = re.search(pattern, output)
    assert match, output
    return [float(number) for number in match.groups()]


def test_scene(english):
    output, code = finish(demo("--model", str(english), "--frames", "40"))
    assert code == 0, output
    sent, classified, dropped, lost, refused, failed = numbers(
        r"(\d+) sent, (\d+) classified, (\d+) dropped for a newer one, "
        r"(\d+) lost in transport, (\d+) refused, (\d+) failed",
        output,
    )
    assert sent == 40 == classified + dropped
    assert classified > 0
    assert lost == refused == failed == 0
    rows = [line for line in output.splitlines() if re.match(r"\d+ ", line)]
    assert [int(row.split()[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert any(re.search(r"(red|green|blue) +\d\.\d{3} +\d+\.\d ms$", row) for row in rows)
    for stage in ("receive", "preprocess", "inference", "node", "total"):
        p50, p95 = numbers(rf"{stage} +(\d+\.\d+) +(\d+\.\d+)  ", output)
        assert 0 < p50 <= p95


@pytest.mark.parametrize("boxes", [[], ["--boxes"]], ids=["region", "boxes"])
def test_shipped_model_knows_the_scene(boxes):
    if not find_model("road_signs").is_dir():
        pytest.skip("the model road_signs is not there yet")
    output, code = finish(demo("--frames", "60", "--backend", "reference", *boxes))
    assert code == 0, output
    correct, judged = numbers(r"accuracy +\d+\.\d % \((\d+) of (\d+) frames\)", output)
    assert judged > 0
    # Rendered signs are part of the training set and large in the picture. 43 classes: chance is 2 %.
    assert correct / judged > 0.7


def test_folder_without_truth(english, tmp_path):
    cv2 = pytest.importorskip("cv2")
    np = pytest.importorskip("numpy")
    for name, colour in (("a", (0, 0, 255)), ("b", (255, 0, 0))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((48, 64, 3), colour, np.uint8))
    output, code = finish(demo("--model", str(english), "--source", str(tmp_path), "--frames", "6"))
    assert code == 0, output
    assert "accuracy  unknown: the source does not tell the truth" in output
    assert re.search(r"6 seen, 6 classified", output)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "/nowhere"], "/nowhere/model.yaml: no such file"),
        (["--source", "/nowhere"], "'/nowhere': no such file or folder"),
        (["--frames", "0"], "at least one frame"),
        (
            ["--boxes", "--source", "/tmp"],
            "--boxes: the source /tmp does not know where things are; scene does",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_failure_is_told_in_one_line(english, arguments, reason):
    output, code = finish(demo("--model", str(english), *arguments))
    assert code == 1
    assert reason in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_its_nodes_when_told_to(english, number):
    process = demo("--model", str(english), "--frames", "100000")
    while not re.match(r"1 ", process.stdout.readline()):  # the first row of the table
        assert process.poll() is None
    assert len(running_in(process.pid)) == 3
    process.send_signal(number)
    output, code = finish(process)
    assert code == 130, output
    assert "Traceback" not in output
