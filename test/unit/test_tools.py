"""The commands classify, evaluate and inspect, run as a user runs them, on a model whose answers are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from bnn_perception import bits
from bnn_perception.__main__ import main
from bnn_perception.model import InputSpec, Model, OutputDense, Thermometer, save_model

PURE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A model of two layers that tells red, green and blue apart by the mean colour."""
    one_hot = bits.pack(np.eye(3, dtype=bool))
    layers = (
        Thermometer("encode", channels=3, levels=1, thresholds=np.full((3, 1), 128, np.uint8)),
        OutputDense("logits", (1, 1, 3), 3, one_hot, np.ones(3, np.float32), np.zeros(3, np.float32)),
    )
    folder = tmp_path_factory.mktemp("models") / "colours"
    save_model(Model("colours", tuple(PURE), InputSpec(1, 1), layers), folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder for each colour: two red, one green, one blue, and a green one in the blue folder."""
    folder = tmp_path / "pictures of colours"
    for place, shown, name in (
        ("red", "red", "a.png"),
        ("red", "red", "b.png"),
        ("green", "green", "ü.png"),
        ("blue", "blue", "d.png"),
        ("blue", "green", "e.png"),
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        image = np.full((20, 30, 3), PURE[shown][::-1], np.uint8)
        (folder / place / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def test_classify_prints_a_line_an_image(colours, pictures, capsys):
    assert (
        main(["classify", str(pictures), "--model", str(colours), "--backend", "reference", "--top", "2"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    # Logits of a pure colour are 3 and twice -1: softmax 0.965 and 0.018.
    assert lines[3].endswith("red/a.png: red 0.965, green 0.018")


def test_classify_json_and_a_broken_image(colours, pictures, capsys):
    (pictures / "broken.png").write_bytes(b"x")
    assert main(["classify", str(pictures), "--model", str(colours), "--backend", "reference", "--json"]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["results"][0]["label"] for row in rows] == ["blue", "green", "green", "red", "red"]
    assert rows[0]["results"][0]["score"] == pytest.approx(0.964664, abs=1e-6)  # e^3 / (e^3 + 2 e^-1)
    assert "broken.png" in captured.err
    assert "1 of 6 images" in captured.err


def test_classify_looks_at_the_region_only(colours, tmp_path, capsys):
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10] = PURE["red"][::-1]
    image[:, 10:] = PURE["blue"][::-1]
    (tmp_path / "halves.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    arguments = ["classify", str(tmp_path / "halves.png"), "--model", str(colours), "--backend", "reference"]
    assert main([*arguments, "--region", "0.5", "0", "0.5", "1"]) == 0
    assert ": blue" in capsys.readouterr().out
    assert main([*arguments, "--region", "0.5", "0", "0.6", "1"]) == 1
    assert "does not lie inside" in capsys.readouterr().err


def test_evaluate_counts_and_ends_with_json(colours, pictures, capsys, tmp_path):
    (pictures / "red" / "broken.png").write_bytes(b"x")
    confusion, sheet = tmp_path / "confusion.png", tmp_path / "mistakes.png"
    arguments = ["evaluate", str(pictures), "--model", str(colours), "--backend", "reference", "--json"]
    arguments += ["--picture", str(confusion), "--mistakes", str(sheet)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["accuracy"], report["n"], report["correct"], report["left_out"]) == (0.8, 5, 4, 1)
    assert report["confusion"] == [[2, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert "1  blue taken for green" in captured.out
    assert "broken.png" in captured.err
    assert all(cv2.imread(str(path)) is not None for path in (confusion, sheet))


def test_evaluate_npz_with_every_backend_alike(colours, capsys, tmp_path):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (40, 3, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=x, y=rng.integers(0, 3, 40))
    reports = []
    for backend in ("reference", "binary"):
        assert (
            main(
                [
                    "evaluate",
                    str(tmp_path / "set.npz"),
                    "--model",
                    str(colours),
                    "--backend",
                    backend,
                    "--device",
                    "cpu",
                    "--json",
                ]
            )
            == 0
        )
        reports.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert reports[0]["confusion"] == reports[1]["confusion"]
    assert reports[0]["n"] == 40


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "missing"], "missing: no such file or folder"),
        (["evaluate", "x", "--model", "no_such_model"], "no_such_model/model.yaml: no such file"),
        (["classify", "missing.png"], "missing.png: no such file or folder"),
        (["classify", "x", "--top", "0"], "--top 0"),
        (["evaluate", "x", "--backend", "float"], "has no float twin"),
        (["inspect", "no_such_model"], "no_such_model/model.yaml: no such file"),
    ],
)
def test_mistakes_end_with_one_line(colours, arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", x=np.zeros((1, 1, 1, 3), np.uint8), y=[0])
    arguments = [argument if argument != "x" else "set.npz" for argument in arguments]
    if arguments[0] != "inspect" and "--model" not in arguments:
        arguments += ["--model", str(colours)]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert reason in captured.err
    assert len(captured.err.splitlines()) == 1


def test_inspect_sums_up(colours, capsys):
    assert main(["inspect", str(colours)]) == 0
    table = capsys.readouterr().out
    assert "output_dense" in table
    assert main(["inspect", str(colours), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    # thresholds: 3 bytes; logits: 3 words, 3 scales, 3 biases. Float: 3 x (3 weights + 1 bias).
    assert (report["packed_bytes"], report["float_bytes"], report["macs"]) == (3 + 36, 48, 9)


def test_a_reader_that_goes_away_is_no_traceback(colours, pictures):
    command = [sys.executable, "-m", "bnn_perception", "classify", *[str(pictures)] * 400]
    command += ["--model", str(colours), "--backend", "reference"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(timeout=60) == 1
    assert errors == ""
