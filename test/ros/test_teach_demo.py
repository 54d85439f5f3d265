"""The way from a live camera to new labels on the running node, with a net that hardly learns: each part is there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import PATIENCE
from test_demo import finish

from bnn_perception.cli.teach_demo import LABELS, OTHER
from bnn_perception.frames.images import class_folders, read_image
from bnn_perception.net.folder import load_model

#: The shortest training that there is.
TINY = """
name: tiny
input: {height: 8, width: 8}
network: [{kind: input_conv2d, channels: 32, pool: 2}, {kind: output_dense}]
data: {train: .}
threads: 1
epoch_images: 64
float_twin: {epochs: 1, learning_rate: 1e-3}
binary: {epochs: 1, learning_rate: 1e-3}
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bnn_perception.cli.teach_demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_running_node_is_taught_what_its_camera_shows(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
    pytest.importorskip("brevitas", reason="Brevitas is not installed (extra [train])")
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    folder = tmp_path / "taught"
    output, code = finish(
        start(folder, "--images", "3", "--config", tmp_path / "tiny.yaml", "--frames", "60")
    )
    assert code == 0, output
    images = class_folders(folder / "images")
    assert sorted(images) == sorted([*LABELS, OTHER])
    assert min(map(len, images.values())) >= 3
    assert {read_image(file).shape for files in images.values() for file in files} == {(288, 288, 3)}
    assert list(load_model(folder / "model").labels) == sorted([*LABELS, OTHER])
    assert f"/bnn/classifier answers with {', '.join(sorted([*LABELS, OTHER]))}" in output
    right, frames, mean = re.search(
        r"\((\d+) of (\d+) frames of another drive\), mean of the labels (\S+)%", output
    ).groups()
    assert 0 <= int(right) <= int(frames) <= 60
    assert int(frames) > 30
    assert 0 <= float(mean) <= 100
    assert re.search(r"minutes   \d+\.\d: starting .*, collecting .*, training .*, watching ", output)


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    process = start(tmp_path)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert (
        output
        == f"bnn_perception teach_demo: {tmp_path}: is there already; delete it, or name another folder\n"
    )
    assert (tmp_path / "thesis.tex").exists()
