"""Reading image files and labelled sets, as people's folders hold them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from bnn_perception.frames.dataset import match_label, read_dataset
from bnn_perception.frames.images import ImageError, find_images, read_image

LABELS = ("stop", "speed limit 50", "Löwe")


def write(path, image):
    """Write a picture under any name (cv2.imwrite cannot write every Unicode name)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, image)
    assert ok
    path.write_bytes(data.tobytes())
    return path


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (12, 17, 3), dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_reads_rgb_order(tmp_path, picture):
    path = write(tmp_path / "a.png", picture)
    assert np.array_equal(read_image(path), picture[..., ::-1])


def test_reads_names_with_spaces_and_unicode(tmp_path, picture):
    path = write(tmp_path / "Straße 50 标志.png", picture)
    assert read_image(path).shape == (12, 17, 3)


def test_grey_16_bit_and_transparent_become_8_bit_rgb(tmp_path, picture):
    grey16 = picture[..., 0].astype(np.uint16) * 257
    assert np.array_equal(read_image(write(tmp_path / "grey16.png", grey16))[..., 2], picture[..., 0])
    rgba = np.dstack([picture, np.zeros((12, 17), np.uint8)])
    assert np.array_equal(read_image(write(tmp_path / "rgba.png", rgba)), picture[..., ::-1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not an image", "not an image"), (None, "cut short"), ("absent", "No such")],
)
def test_unreadable_files_are_named(tmp_path, picture, content, reason):
    path = tmp_path / "broken.png"
    if content is None:
        whole = write(path, picture).read_bytes()
        path.write_bytes(whole[:20])
    elif content != "absent":
        path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    assert "broken.png" in str(error.value)


def test_image_with_a_side_too_long_is_refused(tmp_path):
    path = write(tmp_path / "long.png", np.zeros((1, 20000), np.uint8))
    with pytest.raises(ImageError, match="20000x1 pixels"):
        read_image(path)


def test_find_images_passes_over_other_files(tmp_path, picture):
    write(tmp_path / "b" / "2.JPG".lower(), picture)
    write(tmp_path / "a" / "1.png", picture)
    (tmp_path / "a" / "notes.txt").write_text("x")
    write(tmp_path / "a" / ".hidden.png", picture)
    write(tmp_path / ".thumbnails" / "1.png", picture)
    assert [p.name for p in find_images(tmp_path)] == ["1.png", "2.jpg"]
    with pytest.raises(ImageError, match="no such file or folder"):
        find_images(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no images"):
        find_images(tmp_path / "empty")


@pytest.mark.parametrize(
    ("folder", "index"),
    [
        ("stop", 0),
        ("STOP", 0),
        ("speed_limit-50", 1),
        ("löwe", 2),
        ("00001", 1),
        ("3", None),
        ("yield", None),
    ],
)
def test_match_label(folder, index):
    assert match_label(folder, LABELS) == index


def test_match_label_by_number_means_the_label_where_labels_are_numbers():
    labels = ["1", "2", "3", "10"]
    assert [match_label(folder, labels) for folder in ("1", "03", "10", "0", "4")] == [0, 2, 3, None, None]


def test_links_are_followed_once_and_dead_ones_reported(tmp_path, picture):
    write(tmp_path / "elsewhere" / "b.png", picture)
    write(tmp_path / "data" / "stop" / "a.png", picture)
    stop = tmp_path / "data" / "stop"
    (stop / "more").symlink_to(tmp_path / "elsewhere")
    (stop / "again").symlink_to(stop)
    (stop / "dead.png").symlink_to(tmp_path / "nowhere.png")
    dataset = read_dataset(tmp_path / "data", LABELS)
    assert [Path(name).name for name in dataset.names] == ["a.png", "dead.png", "b.png"]
    assert len(list(dataset)) == 2
    assert dataset.refused == [f"{stop / 'dead.png'}: No such file or directory"]
    assert [path.name for path in find_images(stop)] == ["a.png", "dead.png", "b.png"]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".pbm", ".pnm"])
def test_rare_endings_are_images(tmp_path, picture, suffix):
    encoding, shown = {".pbm": (".pbm", picture[..., 0]), ".pnm": (".ppm", picture)}.get(
        suffix, (".jpg", picture)
    )
    content = cv2.imencode(encoding, shown)[1]
    (tmp_path / f"a{suffix}").write_bytes(content.tobytes())
    assert read_image(find_images(tmp_path)[0]).shape == picture.shape


def test_a_picture_of_a_kind_that_cannot_be_read_is_reported(tmp_path, picture):
    write(tmp_path / "stop" / "a.png", picture)
    (tmp_path / "stop" / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    dataset = read_dataset(tmp_path, LABELS)
    assert len(list(dataset)) == 1
    assert dataset.refused[0].startswith(f"{tmp_path}/stop/b.HEIC: is not an image that can be decoded")


def test_folder_of_classes_costs_only_the_broken_image(tmp_path, picture):
    write(tmp_path / "stop" / "a.png", picture)
    write(tmp_path / "Speed Limit 50" / "deep" / "b.png", picture)
    (tmp_path / "stop" / "broken.png").write_bytes(b"x")
    dataset = read_dataset(tmp_path, LABELS)
    read = [(int(dataset.labels[index]), image.shape) for index, image in dataset]
    assert read == [(1, (12, 17, 3)), (0, (12, 17, 3))]
    assert len(dataset) == 3
    assert len(dataset.refused) == 1
    assert "broken.png" in dataset.refused[0]


def test_folder_of_an_unknown_class_is_named(tmp_path, picture):
    write(tmp_path / "zebra" / "a.png", picture)
    with pytest.raises(ImageError, match="no class 'zebra'; it has stop"):
        read_dataset(tmp_path, LABELS)


def test_tar_file_reads_as_its_folder_does(tmp_path, picture):
    for name in (
        "train/stop/ü 1",
        "train/stop/.hidden",
        "train/löwe/2",
        "val/stop/3",
    ):
        write(tmp_path / "photos" / f"{name}.png", picture)
    picture[0, 0] ^= 1
    write(tmp_path / "photos/train/löwe/2.png", picture)
    (tmp_path / "photos/train/stop/note.txt").write_text("no image")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", ".")
    in_tar = read_dataset(tmp_path / "photos.tar" / "train", LABELS)
    in_folder = read_dataset(tmp_path / "photos" / "train", LABELS)
    assert in_tar.labels.tolist() == in_folder.labels.tolist()
    assert [Path(name).name for name in in_tar.names] == ["2.png", "ü 1.png"]
    for index in range(2):
        assert np.array_equal(in_tar.read(index), in_folder.read(index))
    assert len(read_dataset(tmp_path / "photos.tar" / "train", LABELS, ignore=["löwe"])) == 1
    with pytest.raises(ImageError, match=r"photos\.tar/nothing: holds no folders"):
        read_dataset(tmp_path / "photos.tar" / "nothing", LABELS)


def test_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w:gz"):
        pass
    with pytest.raises(ImageError, match="not an uncompressed tar file"):
        read_dataset(tmp_path / "photos.tar", LABELS)


@pytest.mark.parametrize("shape", [(5, 8, 9, 3), (5, 8, 9, 1), (5, 8, 9)])
def test_npz(tmp_path, rng, shape):
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    y = np.array([0, 1, 2, 1, 0], np.uint8)
    np.savez(tmp_path / "set.npz", x=x, y=y)
    dataset = read_dataset(tmp_path / "set.npz", LABELS)
    images = dict(iter(dataset))
    assert images[3].shape == (8, 9, 3)
    assert np.array_equal(images[3][..., 0], x[3].reshape(8, 9, -1)[..., 0])
    assert dataset.labels.tolist() == y.tolist()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "'y is not a file|'y'"),
        ({"x": np.zeros((2, 4, 4, 3), np.float32), "y": np.zeros(2, int)}, "float32, not uint8"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8), "y": np.zeros(2, int)}, "shape"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(3, int)}, "not 2 integers"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.array([0, 3])}, "classes 0 to 2"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.array([0, -1])}, "classes 0 to 2"),
        ({"x": np.array([object()]), "y": np.zeros(1, int)}, "not an .npz"),
        ({"x": np.zeros((0, 4, 4, 3), np.uint8), "y": np.zeros(0, int)}, "shape"),
    ],
)
def test_npz_that_does_not_fit_is_named(tmp_path, arrays, reason):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ImageError, match=reason) as error:
        read_dataset(tmp_path / "set.npz", LABELS)
    assert "set.npz" in str(error.value)


def test_file_that_is_no_npz_is_named(tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ImageError, match="not an .npz"):
        read_dataset(tmp_path / "set.npz", LABELS)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ImageError, match="not an .npz"):
        read_dataset(tmp_path / "one.npy", LABELS)
