"""The scripts of examples/ do what they say. The node among them is tested in test/ros."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnn_perception import load_model

cv2 = pytest.importorskip("cv2")

ROOT = Path(__file__).resolve().parents[2]


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_folder_is_labelled(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    done = run("classify_folder.py", tmp_path)
    labels = load_model(ROOT / "models" / "road_signs").labels
    lines = [re.fullmatch(r"(\S+): (.+) \((\d\.\d\d)\)", line) for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == ["a.png", "b.png"]
    assert all(line[2] in labels for line in lines)
    assert "broken.png: is not an image that can be decoded" in done.stderr


def test_a_model_made_by_hand_answers(tmp_path):
    done = run("handmade_model.py", tmp_path / "sides")
    answers = [line.split(" (")[0] for line in done.stdout.splitlines()]
    assert answers == ["right is brighter", "left is brighter", "both alike"]
    model = load_model(tmp_path / "sides")
    assert model.labels == ("left is brighter", "right is brighter", "both alike")
    assert [layer.kind for layer in model.layers] == ["input_conv2d", "output_dense"]


def test_the_example_of_the_readme_runs(tmp_path):
    (program,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((40, 50, 3), 90, np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("Prediction(") == 3


def test_every_example_is_tested():
    here = Path(__file__).read_text(encoding="utf-8")
    ros = (ROOT / "test" / "ros" / "test_example_node.py").read_text(encoding="utf-8")
    for script in (ROOT / "examples").glob("*.py"):
        assert f'"{script.name}"' in here + ros, script.name
