"""The commands classify, evaluate, calibrate and inspect as a user runs them, on a model whose answers are known."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from models import PURE, colours_model, scaled_stem_model

from bnn_perception.__main__ import main
from bnn_perception.cli.json_text import to_json
from bnn_perception.evaluation import pictures as drawing
from bnn_perception.net.folder import load_model, save_model


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "colours"
    save_model(colours_model(), folder)
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
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 5
    assert captured.err == "colours, reference on NumPy\n"
    # Logits of a pure colour are 3 and twice -1: softmax 0.965 and 0.018.
    assert lines[3].endswith("red/a.png: red 0.965, green 0.018")


def test_classify_takes_videos_and_recordings(colours, tmp_path, capsys):
    frames = [np.full((48, 64, 3), PURE[name][::-1], np.uint8) for name in ("red", "green", "blue")]
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 48))
    for frame in frames:
        writer.write(frame)
    writer.release()
    recordings = pytest.importorskip("recordings", reason="rosbags is not installed")
    messages = [recordings.raw_message(frame) for frame in frames]
    messages[1].data = messages[1].data[:-1]
    bag = recordings.record(
        tmp_path / "bag",
        {"/a": (recordings.IMAGE, messages), "/b": (recordings.IMAGE, [messages[0], b"\0\1\0\0"])},
    )
    arguments = ["classify", "--model", str(colours), "--device", "cpu"]
    assert main([*arguments, str(video), str(bag)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        *(f"{video}#{index}: {name} 0.965" for index, name in enumerate(("red", "green", "blue"))),
        f"{bag}:/a#0: red 0.965",
        f"{bag}:/a#2: blue 0.965",
    ]
    assert f"{bag}: plays /a; name a topic for another: /b" in captured.err
    assert f"{bag}:/a#1: 9455 bytes of data in an image of 48 rows of 197 bytes" in captured.err
    assert "1 of 6 images could not be read" in captured.err
    assert main([*arguments, str(bag), "--topic", "/b", "--json"]) == 1
    captured = capsys.readouterr()
    (row,) = map(json.loads, captured.out.splitlines())
    assert (row["image"], row["results"][0]["label"]) == (f"{bag}:/b#0", "red")
    assert "1 of 2 images could not be read" in captured.err


@pytest.mark.parametrize("name", ["drive.mp4", "drive.mcap", "drive.db3", "bag/metadata.yaml", "bag2/a.mcap"])
def test_classify_refuses_what_is_no_recording(colours, tmp_path, name, capsys):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")
    path = file.parent if "/" in name else file
    assert main(["classify", str(path), "--model", str(colours)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"bnn_perception classify: {path}: ")
    assert captured.err.count("\n") == 1


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
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
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
    assert report["mean_score"] == pytest.approx(0.964664, abs=1e-6)
    # All scores lie in one bin: the error is how far the mean is from 4 of 5.
    assert report["expected_calibration_error"] == pytest.approx(0.964664 - 0.8, abs=1e-6)
    assert "mean score 0.9647, expected calibration error 0.1647" in captured.out
    assert captured.err.startswith("colours, reference on NumPy\n")
    assert "broken.png" in captured.err
    assert all(cv2.imread(str(path)) is not None for path in (confusion, sheet))


def test_no_picture_of_mistakes_where_there_are_none(colours, tmp_path, capsys):
    np.savez(tmp_path / "set.npz", x=np.array([*PURE.values()], np.uint8)[:, None, None], y=[0, 1, 2])
    sheet = tmp_path / "mistakes.png"
    arguments = ["evaluate", str(tmp_path / "set.npz"), "--model", str(colours), "--backend", "reference"]
    assert main([*arguments, "--mistakes", str(sheet)]) == 0
    assert f"no mistakes: {sheet} is not written" in capsys.readouterr().out
    assert not sheet.exists()


@pytest.fixture
def pair(colours, tmp_path):
    """The model of colours with a float twin that takes green for blue."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [test])")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra [tools])")
    weights = np.array([[6, 0, 0], [0, 0, 6], [0, 0, 6]], np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["image"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "twin",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 3, 1, 1])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    twin = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    folder = tmp_path / "pair"
    save_model(load_model(colours), folder, twin.SerializeToString())
    return folder


def test_evaluate_compares_binary_and_float(pair, pictures, capsys, tmp_path):
    (pictures / "red" / "broken.png").write_bytes(b"x")
    picture, sheet = tmp_path / "both.png", tmp_path / "only binary.png"
    arguments = ["evaluate", str(pictures), "--model", str(pair), "--device", "cpu", "--compare", "--json"]
    arguments += ["--picture", str(picture), "--mistakes", str(sheet)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert report["binary"]["confusion"] == [[2, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert report["float"]["confusion"] == [[2, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert (report["n"], report["left_out"], report["points"], report["p_value"]) == (5, 1, 0.0, 1.0)
    assert report["only_right"] == [1, 1]
    assert report["disagreements"] == [
        {"images": 1, "truth": 1, "first": 1, "second": 2},
        {"images": 1, "truth": 2, "first": 1, "second": 2},
    ]
    lines = [line.split() for line in captured.out.splitlines()]
    assert ["green", "1", "100.0%", "0.0%", "+100.0"] in lines
    assert ["blue", "2", "50.0%", "100.0%", "-50.0"] in lines
    assert "1  blue: binary says green, float blue" in captured.out
    assert captured.err.count("broken.png") == 1
    # The mistake of the binary net alone: the green image in the folder of blue ones.
    assert "1 mistakes" in captured.out
    assert cv2.imread(str(picture)).shape[1] > 1.4 * cv2.imread(str(picture)).shape[0]
    assert cv2.imread(str(sheet)) is not None


def test_mistakes_of_both_nets_are_no_mistakes_of_the_binary_one_alone(pair, pictures, capsys, tmp_path):
    image = np.full((20, 30, 3), PURE["blue"][::-1], np.uint8)
    (pictures / "red" / "c.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())  # both say blue
    arguments = [
        "evaluate",
        str(pictures),
        "--model",
        str(pair),
        "--device",
        "cpu",
        "--threads",
        "3",
        "--json",
    ]
    arguments += ["--mistakes", str(tmp_path / "sheet.png")]
    assert main([*arguments, "--compare"]) == 0
    out = capsys.readouterr().out
    assert "1 mistakes: " in out
    assert out.count("3 threads: accuracy") == 2  # both run on the threads that were asked for
    report = json.loads(out.splitlines()[-1])
    assert report["only_right"] == [1, 1]
    assert report["points"] == 0


def test_a_comparison_says_who_alone_is_right(pair, pictures, capsys):
    """Two more green ones, which the twin takes for blue."""
    for name in ("v.png", "w.png"):
        (pictures / "green" / name).write_bytes((pictures / "green" / "ü.png").read_bytes())
    arguments = ["evaluate", str(pictures), "--model", str(pair), "--device", "cpu", "--compare", "--json"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert report["only_right"] == [3, 1]
    assert report["points"] == pytest.approx(100 * 2 / 7)
    assert report["p_value"] == 2 * (1 + 4) / 16
    assert "only binary is right on 3 images, only float on 1: +28.57 points, exact McNemar p = 0.62" in out
    assert report["disagreements"][0] == {"images": 3, "truth": 1, "first": 1, "second": 2}


def test_labels_of_any_kind_are_shown_and_drawn(colours, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    labels = ("$\\frac$", "a" * 60 + " and its end", "標識")
    odd = tmp_path / "odd"
    save_model(replace(load_model(colours), labels=labels), odd)
    x = np.array([*PURE.values(), PURE["red"]], np.uint8)[:, None, None]
    np.savez(tmp_path / "set.npz", x=x, y=[0, 1, 2, 1])
    picture, sheet = tmp_path / "confusion.png", tmp_path / "mistakes.png"
    arguments = ["evaluate", str(tmp_path / "set.npz"), "--model", str(odd), "--backend", "reference"]
    assert main([*arguments, "--picture", str(picture), "--mistakes", str(sheet)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "class".ljust(40) + "  images  recall  precision"
    assert lines[2].startswith("a" * 26 + "…" + " and its end"[-13:].rjust(13, "a") + "       2   50.0%")
    assert lines[3].startswith("標識" + " " * 36 + "       1  100.0%")
    assert sum("taken for" in line for line in lines) == 1
    assert all(len(line) <= 80 for line in lines if "taken for" in line)
    assert "Glyph" not in captured.err
    assert all(cv2.imread(str(path)) is not None for path in (picture, sheet))


def test_figures_of_a_confusion_matrix_can_be_read():
    """Against the colour of their cell by the formula of WCAG 2.1, which asks 3 of large letters."""
    colours = pytest.importorskip("matplotlib.colors")
    from matplotlib import colormaps

    def luminance(colour):
        rgb = np.array(colours.to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    for percent in range(1, 101):
        cell = luminance(colormaps["Blues"](np.sqrt(percent) / 10)[:3])
        for right in (True, False):
            low, high = sorted([cell, luminance(drawing.cell_colour(percent, right))])
            assert (high + 0.05) / (low + 0.05) > 3, (percent, right)


def test_a_picture_of_many_classes_has_its_limit(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(drawing, "MAX_SIDE", 5.0)  # instead of 50 inches, which take long to draw
    labels = [f"class {index}" for index in range(40)]
    drawing.confusion_matrices([np.eye(40, dtype=int)], [""], labels, tmp_path / "a.png")
    assert max(cv2.imread(str(tmp_path / "a.png")).shape) < 150 * 7  # 5 inches, and the labels


@pytest.mark.parametrize(
    ("name", "reason"),
    [("confusion", "the ending says"), ("a.doc", "the ending says"), ("no/a.png", "there is no folder no")],
)
def test_a_picture_that_cannot_be_written_is_refused_at_once(
    colours, pictures, name, reason, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(pictures), "--model", str(colours), "--mistakes", name]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"bnn_perception evaluate: {name}: {reason}")


def test_calibrate_both_precisions(pair, tmp_path, capsys):
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 3, 4000)
    truth = np.where(rng.random(4000) < 0.8, shown, (shown + 1) % 3)
    x = np.array(list(PURE.values()), np.uint8)[shown][:, None, None]
    np.savez(tmp_path / "set.npz", x=x, y=truth)
    before = load_model(pair)
    assert main(["calibrate", str(tmp_path / "set.npz"), "--model", str(pair), "--device", "cpu"]) == 0
    after = load_model(pair)
    # Logits are 3, -1, -1, and four in five are right: e^(4 / T) = 2 * 0.8 / 0.2.
    assert after.temperature == pytest.approx(4 / np.log(8), rel=0.02)
    # The twin is right on 80 % of red and blue, 20 % of green: 3 in 5 where logits are 6, 0, 0.
    assert after.float_temperature == pytest.approx(6 / np.log(3), rel=0.05)
    assert before.float_twin.read_bytes() == after.float_twin.read_bytes()
    assert after.info["calibration"]["images"] == 4000
    assert "calibrated on 4000 images" in capsys.readouterr().out
    for backend in ("binary", "float"):
        arguments = ["evaluate", str(tmp_path / "set.npz"), "--model", str(pair), "--backend", backend]
        assert main([*arguments, "--device", "cpu", "--json"]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["mean_score"] == pytest.approx(report["accuracy"], abs=0.002)


def test_calibrate_writes_nothing_for_a_net_that_guesses(pair, tmp_path, capsys):
    np.savez(tmp_path / "set.npz", x=np.full((3, 1, 1, 3), PURE["red"], np.uint8), y=[1, 1, 2])
    before = (pair / "model.yaml").read_bytes()
    assert main(["calibrate", str(tmp_path / "set.npz"), "--model", str(pair), "--device", "cpu"]) == 1
    assert "set.npz: the 3 images are answered no better than by guessing" in capsys.readouterr().err
    assert (pair / "model.yaml").read_bytes() == before


def test_calibrate_says_where_it_cannot_write(pair, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    np.savez(tmp_path / "set.npz", x=np.full((3, 1, 1, 3), PURE["red"], np.uint8), y=[0, 0, 0])
    monkeypatch.setattr(os, "replace", refuse)
    assert main(["calibrate", str(tmp_path / "set.npz"), "--model", str(pair), "--device", "cpu"]) == 1
    assert capsys.readouterr().err.endswith("pair: cannot be written: Permission denied\n")


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


def test_json_is_json_whatever_a_model_says(colours, tmp_path, capsys):
    shutil.copytree(colours, tmp_path / "model")
    odd = (
        "n: [.nan, .inf, -.inf, 0x"
        + "f" * 5000
        + "]\n2024-01-01: 2024-01-01\n1: {2: 3, null: 4}\nmacs: none\n"
    )
    text = (tmp_path / "model" / "model.yaml").read_text()
    (tmp_path / "model" / "model.yaml").write_text(odd + text)

    def refuse(constant):
        raise AssertionError(constant)

    assert main(["inspect", str(tmp_path / "model"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert report["n"] == [None, None, None, "0x" + "f" * 5000]
    assert report["2024-01-01"] == "2024-01-01"
    assert report["1"] == {"2": 3, "None": 4}
    assert isinstance(report["macs"], int)  # what was counted, not what the model says of itself
    assert to_json({"a": b"x", "b": datetime.date(2024, 1, 1), "c": (1, True)}) == (
        '{"a": "b\'x\'", "b": "2024-01-01", "c": [1, true]}'
    )


@pytest.mark.parametrize("arguments", [["--help"], ["inspect"], ["inspect", "--json"]])
def test_a_full_disk_is_one_line(arguments):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bnn_perception", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(": No space left on device")


def npz(path, **headers):
    """An ``.npz`` whose headers state shapes that its data do not hold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, dtype) in headers.items():
            with archive.open(f"{name}.npy", "w") as stream:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                stream.write(bytes(1000))
    return path


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (
            ((10**12, 1, 1, 3), "|u1"),
            ((1,), "<i8"),
            "x takes 3000000000000 bytes; at most 4294967296 are read",
        ),
        (((1, 1, 1, 3), "|u1"), ((1 << 40,), "<i8"), "y takes 8796093022208 bytes"),
        (((1, 1, 1, 3), "|O"), ((1,), "<i8"), "bject"),
        (((-1, 5), "|u1"), ((1,), "<i8"), "is not an .npz file"),
    ],
)
def test_the_size_of_arrays_is_known_before_they_are_read(colours, tmp_path, capsys, x, y, reason):
    path = npz(tmp_path / "set.npz", x=x, y=y)
    assert main(["evaluate", str(path), "--model", str(colours)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "missing"], "missing: no such file or folder"),
        (["evaluate", "x", "--model", "no_such_model"], "no_such_model/model.yaml: no such file"),
        (["classify", "missing.png"], "missing.png: no such file or folder"),
        (["classify", "x", "--top", "0"], "--top 0"),
        (["evaluate", "x", "--backend", "float"], "has no float twin"),
        (["evaluate", "x", "--compare"], "has no float twin"),
        (["evaluate", "x", "--compare", "--backend", "float"], "leave --backend float out"),
        (["inspect", "no_such_model"], "no_such_model/model.yaml: no such file"),
        (
            ["evaluate", "x", "--threads", "100000"],
            "threads is 100000; it must be 0 (as many as pay off) to 256",
        ),
        (["evaluate", "x", "--threads", "-1"], "threads is -1; it must be 0 (as many as pay off) to 256"),
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


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A net with shortcuts; what it answers is random."""
    model = scaled_stem_model(np.random.default_rng(3), side=16, classes=3)
    folder = tmp_path_factory.mktemp("models") / "residual"
    save_model(replace(model, name="residual", labels=tuple(PURE)), folder)
    return folder


def test_inspect_shows_shortcuts(residual, capsys):
    assert main(["inspect", str(residual)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()[2:]) for line in printed.splitlines() if "->" in line}
    assert rows["stem"].startswith("k3 p1 pool2 8x8x32 8 x 1 -> 32")
    assert rows["add1"].startswith("norm1 + stem 8x8x32 32 -> 32")
    assert rows["repeat2"].startswith("mean2 x2 4x4x64 32 -> 32")
    assert rows["sign1"].startswith("8x8x32 32 -> 1 0.2 kB")
    # Of 16*16*27*32, 8*8*9*32*32, 4*4*9*32*64 and 4*4*64*3 the first are of pixels.
    assert "binary: 80.1% of the multiply-accumulates" in printed
    assert main(["inspect", str(residual), "--json"]) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert (layers["conv1"]["bit_bytes"], layers["conv1"]["real_bytes"]) == (32 * 9 * 4, 32 * 2 * 4)
    assert layers["conv1"]["precision"] == "1 x 1 -> 32"
    assert layers["mean2"]["inputs"] == ["add1"]
    assert layers["sign1"]["inputs"] == []


def test_residual_nets_answer_alike_on_both_backends(residual, pictures, capsys):
    answers = []
    for backend in ("reference", "binary"):
        common = ["--model", str(residual), "--backend", backend, "--json"]
        device = ["--device", "cpu"]
        assert main(["classify", str(pictures), *common, *device]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert main(["evaluate", str(pictures), *common, *device]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        answers.append(([row["results"] for row in rows], report["confusion"]))
    assert len(answers[0][0]) == 5
    assert answers[0] == answers[1]


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
    assert errors == "colours, reference on NumPy\n"


@pytest.fixture
def umlaut(colours, tmp_path):
    folder = tmp_path / "umlaut"
    save_model(replace(load_model(colours), labels=("grün", "標識", "rot")), folder)
    return folder


def test_a_terminal_that_knows_ascii_alone_is_no_traceback(umlaut):
    command = [sys.executable, "-m", "bnn_perception", "inspect", str(umlaut), "--json"]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True
    )
    assert json.loads(done.stdout)["labels"] == ["grün", "標識", "rot"]
    code = f"from bnn_perception.__main__ import main; main(['inspect', {str(umlaut / 'grün')!r}])"
    code += "; print('grün')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert done.stdout == b"gr\\xfcn\n"


def test_a_reader_that_never_read_is_no_traceback(colours):
    """All of the output still waits in memory when the command is through."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "bnn_perception", "inspect", str(colours)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
