"""The command ``collect``: from frames of a source to a folder to train on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bnn_perception.__main__ import main
from bnn_perception.frames.images import class_folders


@pytest.fixture
def shots(tmp_path):
    """A folder of 12 images, of which each two that follow one another are nearly alike."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(12):
        level = 40 * (number // 2) + number % 2
        cv2.imwrite(str(folder / f"{number:02}.png"), np.full((24, 32, 3), level, np.uint8))
    return folder


@pytest.fixture
def collect(shots, tmp_path):
    """A function that runs the command on the images; returns its exit code."""

    def run(*options, label="forklift", source=shots):
        return main(["collect", str(source), "--label", label, "--out", str(tmp_path / "out"), *options])

    return run


def test_near_duplicates_are_left_out(collect, tmp_path, capsys):
    assert collect("--every", "1") == 0
    said = capsys.readouterr().out.strip()
    assert said == (
        f"forklift: 6 saved, 6 near-duplicates, of 12 frames; {tmp_path / 'out'} holds 6 forklift"
    )
    (files,) = class_folders(tmp_path / "out").values()
    assert [cv2.imread(file.name)[0, 0, 0] for file in files] == [0, 40, 80, 120, 160, 200]


def test_every_nth_frame_is_taken_from_the_first_on(collect, tmp_path, capsys):
    assert collect("--every", "5", "--difference", "0") == 0
    assert "3 saved, of 12 frames" in capsys.readouterr().out
    (files,) = class_folders(tmp_path / "out").values()
    assert [file.path.name for file in files] == [
        "shots-0000000000.000000000.png",
        "shots-0000000000.500000000.png",
        "shots-0000000001.000000000.png",
    ]


def test_the_same_once_more_is_known_and_another_region_is_not(collect, capsys):
    options = ("--every", "6", "--difference", "0")
    assert collect(*options) == 0
    assert collect(*options) == 0
    assert "2 saved before, of 12 frames" in capsys.readouterr().out
    assert collect(*options, "--region", "0", "0", "0.5", "0.5") == 0
    assert "2 saved, of 12 frames" in capsys.readouterr().out


def test_labels_stand_side_by_side(collect, tmp_path, capsys):
    assert collect() == 0
    assert collect(label="person") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("holds 2 forklift, 2 person")
    assert sorted(class_folders(tmp_path / "out")) == ["forklift", "person"]


def test_a_full_folder_ends_the_command(collect, tmp_path, capsys):
    assert collect("--every", "1", "--difference", "0", "--max-images", "4") == 1
    output = capsys.readouterr()
    assert "4 saved, 1 over the limits, of 5 frames" in output.out
    assert output.err == (
        f"bnn_perception collect: {tmp_path / 'out'}: is full, with 4 images; raise --max-images, or empty it\n"
    )


def test_a_frame_that_cannot_be_read_is_said_and_counted(collect, shots, capsys):
    (shots / "03.png").write_bytes(b"damaged")
    assert collect("--every", "1") == 0
    output = capsys.readouterr()
    assert "1 refused, of 11 frames" in output.out
    assert "03.png" in output.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--every", "0"), "--every 0: at least every frame is taken, 1"),
        (("--difference", "300"), "--difference 300.0: it lies between 0 and 255"),
        (("--difference", "nan"), "--difference nan: it lies between 0 and 255"),
        (
            ("--region", "0", "0", "2", "1"),
            "--region: region [0.0, 0.0, 2.0, 1.0] does not lie inside the image",
        ),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(collect, tmp_path, capsys, options, said):
    assert collect(*options) == 1
    assert capsys.readouterr().err.startswith(f"bnn_perception collect: {said}")
    assert not (tmp_path / "out").exists()


def test_a_label_that_leads_elsewhere_is_refused(collect, tmp_path, capsys):
    assert collect(label="../escaped") == 1
    error = capsys.readouterr().err
    assert error.startswith("bnn_perception collect: label '../escaped' holds '/'")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_makes_no_folder(collect, tmp_path, capsys):
    assert collect(source=tmp_path / "nowhere") == 1
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
