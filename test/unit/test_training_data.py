"""Image folders as people have them: what is read, what is left out and said, and what is refused with a remedy."""

from __future__ import annotations

import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra [opencv])")

from bnn_perception.cli import execute  # noqa: E402
from bnn_perception.cli import train as tool  # noqa: E402
from bnn_perception.net.model import InputSpec  # noqa: E402
from bnn_perception.training import config as configs  # noqa: E402
from bnn_perception.training import data as datasets  # noqa: E402
from bnn_perception.training.config import ConfigError  # noqa: E402
from bnn_perception.training.data import DataError, PreparedImages  # noqa: E402
from bnn_perception.training.distributed import World  # noqa: E402
from bnn_perception.training.progress import Reporter  # noqa: E402
from bnn_perception.training.train import TrainingData, load_data  # noqa: E402

SPEC = InputSpec(8, 8)

#: Trains in a second.
TINY = """
input: {height: 8, width: 8}
network: [{kind: input_conv2d, channels: 8, pool: 2}, {kind: output_dense}]
data: {train: train, test: test}
batch: 8
epoch_images: 16
float_twin: {epochs: 1}
binary: {epochs: 1}
"""


def write(path: Path, image: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.asarray(image))[1].tobytes())
    return path


def fill(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of each class; the images of a class are of one grey, lighter from class to class."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            write(folder / name / f"photo {index} ü.png", np.full((9, 11, 3), 40 + 60 * label, np.uint8))
    return folder


def large_png(width: int, height: int) -> bytes:
    """A whole black picture of 1 bit a pixel: a few kilobytes, whatever its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + -(-width // 8))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_every_kind_of_picture_is_brought_to_the_input(tmp_path: Path) -> None:
    folder = fill(tmp_path / "my photos 标志", {"Löwe im Zoo": 1, "b": 1})
    odd = folder / "b"
    write(odd / "grey.png", np.full((9, 9), 100, np.uint8))
    write(odd / "grey 16 bit.png", np.full((9, 9), 100 * 257, np.uint16))
    write(odd / "colour 16 bit.tiff", np.full((9, 9, 3), 100 * 257, np.uint16))
    write(odd / "transparent.png", np.full((9, 9, 4), 100, np.uint8))
    write(odd / "one pixel.png", np.full((1, 1, 3), 100, np.uint8))
    write(odd / "ribbon.png", np.full((1, 16384, 3), 100, np.uint8))
    data = datasets.load(folder, SPEC)
    assert data.names == ("Löwe im Zoo", "b")
    assert data.images.shape == (8, 8, 8, 3)
    assert data.labels.tolist() == [0] + 7 * [1]
    # In the order of the names, "photo 0 ü" the fifth of its class.
    assert data.images[:, 0, 0, 0].tolist() == [40, 100, 100, 100, 100, 100, 100, 100]


@pytest.mark.filterwarnings("always")
def test_a_bad_file_costs_that_file_and_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", {"a": 3, "b": 3})
    whole = write(folder / "a" / "whole.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    bad = {
        "cut.jpg": whole.read_bytes()[:900],
        "empty.png": b"",
        "text.png": b"no image",
        "too long.png": large_png(20000, 1),
    }
    for name, content in bad.items():
        (folder / "b" / name).write_bytes(content)
    with pytest.warns(UserWarning, match="left out") as warned:
        data = datasets.load(folder, SPEC)
    assert np.bincount(data.labels).tolist() == [4, 3]
    lines = [str(warning.message) for warning in warned]
    assert len(lines) == len(bad)
    for name, line in zip(sorted(bad), lines):
        assert line.startswith(f"left out: {folder / 'b' / name}: ")
        assert len(line.splitlines()) == 1


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(large_png(16000, 12000))
    script = (
        "import re, sys\n"
        "from bnn_perception.frames.images import ImageError, read_image\n"
        "try:\n    read_image(sys.argv[1])\n"
        "except ImageError as error:\n    print(error)\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "large.png")]
    reason, kilobytes = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "large.png: 16000x12000 pixels; at most 134217728 " in reason
    assert int(kilobytes) < 400_000  # decoded it takes 576 MB


@pytest.mark.parametrize(
    ("counts", "labels", "reason"),
    [
        (
            {"a": 2, "b": 0},
            (),
            r"d/b: holds no images \(\.bmp, .*\); delete the folder or name it under data.ignore",
        ),
        (
            {"a": 2},
            (),
            "d: has 1 folder to train on; it takes a folder of images for each of 2 or more classes",
        ),
        (
            {"a": 2, "b": 2},
            ("a", "b", "c"),
            "d: has no folder 'c'; add it, or take it out of data.labels",
        ),
        (
            {"a": 2, "b": 2, "c": 2},
            ("a", "b"),
            "d/c: its name is none of the 2 labels; name the folder under",
        ),
        (
            {"train": 2, "val": 2},
            (),
            r"d: its folders \(train, val\) are parts and not classes, by .* share; train on .*d/train, say, or name",
        ),
        ({"seg_test": 2, "seg_train": 2}, (), r"\(seg_test, seg_train\) are parts .* train on .*d/seg_train"),
        ({"dev/a": 1, "dev/b": 1, "holdout/a": 1}, (), r"\(dev, holdout\) are parts"),
        (
            {f"{part}/{name}": 1 for part in ("new", "old") for name in ("cats", "dogs")},
            (),
            r"\(new, old\) are parts",
        ),
        (
            {f"{part}/{name}": 1 for part in ("new", "old") for name in ("cats", "dogs")},
            ("cats", "dogs"),
            r"d: its folders \(new, old\) are parts; give .*d/new, say",
        ),
        ({"a": 2, "b\nc": 2}, (), r"d: 'b\\nc' cannot be a label; rename the folder"),
    ],
    ids=[
        "empty class",
        "one class",
        "label without a folder",
        "folder without a label",
        "parts",
        "parts by a word",
        "parts for development",
        "parts by their folders",
        "parts of the labels",
        "line break",
    ],
)
def test_folders_are_refused_with_a_remedy(
    tmp_path: Path, counts: dict[str, int], labels: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as refused:
        datasets.load(fill(tmp_path / "d", counts), SPEC, labels)
    assert len(str(refused.value).splitlines()) == 1


def test_classes_may_hold_folders(tmp_path: Path) -> None:
    """Each its own, or the same where the labels say that they are classes."""
    own = {"cat/indoors": 1, "cat/outdoors": 1, "dog/large": 1, "bus": 2}
    assert datasets.load(fill(tmp_path / "own", own), SPEC).names == ("bus", "cat", "dog")
    same = {f"{name}/{side}": 1 for name in ("stop", "yield") for side in ("back", "front")}
    folder = fill(tmp_path / "same", same)
    assert datasets.load(folder, SPEC, ("stop", "yield")).names == ("stop", "yield")
    with pytest.raises(DataError, match="name them under data.labels if they are classes"):
        datasets.load(folder, SPEC)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", {"a": 2, "b": 2})
    with pytest.raises(DataError, match="d: has no folder to train on"):
        datasets.load(folder, SPEC, ignore=["a", "b"])
    with pytest.raises(DataError, match="d: data.labels names 'a' alone"):
        datasets.load(folder, SPEC, ["a"])


def test_a_class_of_bad_files_only_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", {"a": 2, "b": 0})
    (folder / "b" / "text.png").write_bytes(b"no image")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="d/b: none of its images can be read; delete the folder or name it"),
    ):
        datasets.load(folder, SPEC)


def test_a_name_that_no_text_can_hold_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", {"a": 2})
    try:
        fill(folder, {"b\udcff": 2})  # the byte 0xff, which is no UTF-8
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match=r"'b\\udcff' cannot be a label; rename the folder"):
        datasets.load(folder, SPEC)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    data = datasets.load(fill(tmp_path / "d", {"a": 3, "only one": 1}), SPEC)
    with pytest.raises(
        DataError, match="class 'only one' has one image or track only; .* add images, or name"
    ):
        datasets.split(data, 0.2, 1)


def test_an_umlaut_may_be_spelt_as_two_characters(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", {"a": 1, unicodedata.normalize("NFD", "Löwe"): 1})
    assert datasets.load(folder, SPEC, ("Löwe", "a")).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 cut short", "is not an .npz file"),
        (b"", "is not an .npz file"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "it takes x"),
        (
            {"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(2, int)},
            "y holds 0 only; it takes images of 2",
        ),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.array([0, -1])}, "whole numbers"),
        ({"x": np.array([object()]), "y": np.zeros(1, int)}, "is not an .npz file"),
    ],
)
def test_npz_is_refused_in_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "set.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(DataError, match=reason) as refused:
        datasets.load(path, SPEC)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value).splitlines()) == 1


# -- several files


def npz(path: Path, labels: list[int], tracks: list[int] | None = None, first: int = 0) -> Path:
    """Images that tell themselves apart: each of another grey, from ``first`` on."""
    greys = np.arange(first, first + len(labels), dtype=np.uint8)
    stated = {} if tracks is None else {"track": np.array(tracks)}
    np.savez(path, x=np.tile(greys[:, None, None, None], (1, 8, 8, 3)), y=np.array(labels), **stated)
    return path


def load_all(folder: Path, run: Path, train: str, *also: str, **options: Any) -> TrainingData:
    """What a run on these files of ``folder`` trains on."""
    data = {"train": train, "also": list(also), "validation": 0.4, **options}
    config = configs.from_mapping({"input": {"height": 8, "width": 8}, "data": data})
    run.mkdir(exist_ok=True)
    return load_data(config, str(folder), run, Reporter(quiet=True), World(torch.device("cpu")))


def greys(data: PreparedImages) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_track_in_several_files_stays_on_one_side_of_the_split(
    tmp_path: Path, order: tuple[int, int, int]
) -> None:
    """Two files share their tracks; the third one, wherever it comes, states none."""
    tracks = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    labels = 5 * [0] + 5 * [1]
    names = ["a.npz", "untracked.npz", "b.npz"]
    npz(tmp_path / "a.npz", labels, tracks)
    npz(tmp_path / "untracked.npz", labels, first=100)
    npz(tmp_path / "b.npz", labels, tracks[::-1], first=200)
    data = load_all(tmp_path, tmp_path / "run", *(names[place] for place in order))
    kept, held = set(greys(data.train)), set(greys(data.validation))
    assert sorted(kept | held) == [*range(10), *range(100, 110), *range(200, 210)]
    for side in (kept, held):
        # Track t of class 0 is image t of a.npz and, because b.npz counts down, image 4 - t of b.npz.
        assert {4 - grey for grey in side if grey < 5} == {grey - 200 for grey in side if 200 <= grey < 205}
        assert {14 - grey for grey in side if 5 <= grey < 10} == {grey - 200 for grey in side if grey >= 205}
    # 10 tracks a class, five of them of two images: 4 are held, and not only those of one file.
    assert len(np.unique(data.validation.tracks[data.validation.labels == 0])) == 4


def test_images_of_folders_are_tracks_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path / "first", {"a": 3, "b": 3})
    fill(tmp_path / "second", {"a": 2, "b": 2})
    npz(tmp_path / "tracked.npz", [0, 0, 1, 1], [2, 2, 7, 7])
    folders = [datasets.load(tmp_path / name, SPEC) for name in ("first", "second")]
    both = datasets.concatenate(*folders)
    assert len(set(both.tracks)) == len(both) == 10
    assert both.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    with_tracks = datasets.concatenate(
        folders[0], datasets.load(tmp_path / "tracked.npz", SPEC, ("a", "b")), folders[1]
    )
    assert with_tracks.tracks[6:10].tolist() == [2, 2, 7, 7]
    assert len(set(with_tracks.tracks)) == 10 + 2


def test_the_digest_covers_every_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        npz(tmp_path / f"{name}.npz", [0, 0, 0, 1, 1, 1])

    def digest(number: int, *names: str) -> str:
        load_all(tmp_path, tmp_path / f"run {number}", *names)
        return (tmp_path / f"run {number}" / "data.sha256").read_text(encoding="utf-8")

    alone, together, again = digest(0, "a.npz"), digest(1, "a.npz", "b.npz"), digest(2, "a.npz", "b.npz")
    assert alone != together == again
    npz(tmp_path / "b.npz", [0, 0, 0, 1, 1, 1], first=1)
    assert digest(3, "a.npz", "b.npz") != together
    (tmp_path / "run 1" / "float_twin.pt").write_bytes(b"")  # something was trained
    with pytest.raises(ConfigError, match="run 1: holds a run with other images"):
        load_all(tmp_path, tmp_path / "run 1", "a.npz", "b.npz")


def test_other_classes_in_a_further_folder_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "first", {"a": 3, "b": 3})
    fill(tmp_path / "second", {"a": 2, "b": 2, "c": 2})
    with pytest.raises(DataError, match="second/c: its name is none of the 2 labels"):
        load_all(tmp_path, tmp_path / "run", "first", "second")
    npz(tmp_path / "three.npz", [0, 1, 2])
    with pytest.raises(DataError, match="three.npz: y holds 2, but there are 2 labels"):
        load_all(tmp_path, tmp_path / "run", "first", "three.npz")
    few, many = (datasets.load(npz(tmp_path / "n.npz", list(range(n))), SPEC) for n in (2, 3))
    with pytest.raises(DataError, match="3 classes cannot be added to 2"):
        datasets.concatenate(few, many)


# -- the command


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments of a run on tmp_path/data."""
    for module in ("brevitas", "onnx", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra [train])")
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    words = [str(tmp_path / "tiny.yaml"), "--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")]
    return [*words, "--out", str(tmp_path / "model"), "--threads", "1"]


def test_a_test_class_without_a_label_is_refused_before_training(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "data" / "train", {"a": 4, "b": 4})
    fill(tmp_path / "data" / "test", {"a": 1, "zebra": 1})
    assert execute(tool, "train", command) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"bnn_perception train: {tmp_path}/data/test/zebra: the model has no class 'zebra'; it has a, b"
    ]
    assert "epoch" not in captured.out


def test_bad_files_and_a_class_missing_in_the_test_set_are_reported_in_one_line(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "data" / "train", {"a": 8, "b": 8})
    fill(tmp_path / "data" / "test", {"a": 2})
    (tmp_path / "data" / "train" / "b" / "broken.png").write_bytes(b"x")
    assert execute(tool, "train", command) == 0
    captured = capsys.readouterr()
    assert (
        f"{tmp_path}/data/test: holds no image of b; the accuracy will say nothing about that" in captured.out
    )
    broken = f"bnn_perception train: left out: {tmp_path}/data/train/b/broken.png: "
    assert sum(line.startswith(broken) for line in captured.err.splitlines()) == 1
    assert "UserWarning" not in captured.err
