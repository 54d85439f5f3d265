"""Reading image files and labelled sets, as people's folders hold them."""

from __future__ import annotations

import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from bnn_perception.frames import images
from bnn_perception.frames.dataset import match_label, read_dataset
from bnn_perception.frames.images import ImageError, class_folders, find_images, read_image

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
    fine = grey16 & 0xFF00 | 0x00FF  # what the lower half says is dropped, not rounded
    assert np.array_equal(read_image(write(tmp_path / "fine.png", fine)), np.dstack([picture[..., 0]] * 3))
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


def test_a_camera_that_was_held_upright_is_honoured(tmp_path, picture):
    """EXIF orientation 6: to be turned clockwise by a quarter."""
    content = write(tmp_path / "a.jpg", np.repeat(picture[:1], 24, axis=0)).read_bytes()
    upright = read_image(tmp_path / "a.jpg")
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    (tmp_path / "b.jpg").write_bytes(
        content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    )
    assert np.array_equal(read_image(tmp_path / "b.jpg"), np.rot90(upright, -1))


def turned_webp(content: bytes, size: tuple[int, int], orientation: int) -> bytes:
    """A WebP with an EXIF chunk."""
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    extended = struct.pack("<II", 8, 0) + b"".join((side - 1).to_bytes(3, "little") for side in size)
    extended = extended[:4] + extended[8:]
    chunks = b"".join(
        [
            b"VP8X" + struct.pack("<I", 10) + extended,
            content[12:],
            b"EXIF" + struct.pack("<I", len(exif)) + exif,
        ]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


@pytest.mark.parametrize("orientation", range(9))
def test_a_webp_is_turned_whatever_the_opencv(tmp_path, picture, orientation):
    """OpenCV does it from 4.13 on."""
    content = write(tmp_path / "a.webp", np.repeat(picture[:2], 12, axis=0)).read_bytes()
    plain = read_image(tmp_path / "a.webp")
    (tmp_path / "b.webp").write_bytes(turned_webp(content, plain.shape[1::-1], orientation))
    # Where the first row and the first column of the data belong, by EXIF's table.
    upright = {
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: plain[::-1].transpose(1, 0, 2),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: plain.transpose(1, 0, 2)[::-1],
    }.get(orientation, plain)
    assert np.array_equal(read_image(tmp_path / "b.webp"), upright)


@pytest.mark.parametrize(
    ("box", "upright"), [(b"irot\1", np.rot90), (b"imir\1", np.fliplr), (b"imir\0", np.flipud)]
)
def test_an_avif_is_turned(tmp_path, picture, box, upright):
    """No OpenCV does it. The box is put among the picture's properties, and what lies behind it moves."""
    try:
        path = write(tmp_path / "a.avif", np.repeat(np.repeat(picture, 4, 0), 4, 1))
    except cv2.error:
        pytest.skip("this OpenCV writes no AVIF")
    content, more = path.read_bytes(), struct.pack(">I", 9) + box
    for name in (b"ipco", b"iprp", b"meta"):
        at = content.index(name) - 4
        (size,) = struct.unpack_from(">I", content, at)
        content = content[:at] + struct.pack(">I", size + 9) + content[at + 4 :]
        if name == b"ipco":
            content = content[: at + size] + more + content[at + size :]
    data = struct.pack(">I", path.read_bytes().index(b"mdat") + 4)
    assert content.count(data) == 1  # where the item's data lies
    content = content.replace(data, struct.pack(">I", content.index(b"mdat") + 4))
    (tmp_path / "b.avif").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "b.avif"), upright(read_image(path)))


@pytest.mark.parametrize("ending", [".png", ".tiff", ".pgm"])
def test_12_bits_in_16_are_refused(tmp_path, rng, ending):
    deep = rng.integers(0, 4096, (12, 17), dtype=np.uint16)
    with pytest.raises(
        ImageError, match="of 16 bits whose values need 12 or fewer, and would be nearly black"
    ):
        read_image(write(tmp_path / f"a{ending}", deep))
    assert read_image(write(tmp_path / f"b{ending}", deep << 4)).max() == (deep >> 4).max()
    assert read_image(write(tmp_path / f"black{ending}", deep * 0)).max() == 0
    assert read_image(write(tmp_path / f"dark{ending}", (deep >> 8).astype(np.uint8))).max() == 15


def test_images_without_an_ending_are_taken(tmp_path, picture):
    content = write(tmp_path / "other" / "a.jpg", picture).read_bytes()
    (tmp_path / "stop").mkdir()
    (tmp_path / "stop" / "IMG_0001").write_bytes(content)
    (tmp_path / "stop" / "README").write_text("no image")
    (tmp_path / "stop" / ".thumbs").mkdir()
    (tmp_path / "stop" / ".thumbs" / "IMG_0001").write_bytes(content)
    (tmp_path / "stop" / "c.MPO").write_bytes(content)
    found = [file.name for file in class_folders(tmp_path)["stop"]]
    assert [Path(name).name for name in found] == ["IMG_0001", "c.MPO"]
    assert [path.name for path in find_images(tmp_path / "stop")] == ["IMG_0001", "c.MPO"]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "stop", "stop")
    assert [Path(file.name).name for file in class_folders(tmp_path / "all.tar")["stop"]] == [
        "IMG_0001",
        "c.MPO",
    ]


def test_parts_of_a_dataset_are_named(tmp_path, picture):
    for part in ("training_set", "test_set"):
        for label in ("stop", "Löwe"):
            write(tmp_path / part / label / "a.png", picture)
    with pytest.raises(
        ImageError, match=r"its folders \(test_set, training_set\) are parts; give .*/test_set, say"
    ):
        read_dataset(tmp_path, LABELS)


def test_images_have_their_limits(tmp_path, picture, monkeypatch):
    for shape in ((1, 16385), (16385, 1)):
        path = write(tmp_path / "long.png", np.zeros(shape, np.uint8))
        with pytest.raises(
            ImageError, match=f"long.png: {shape[1]}x{shape[0]} pixels; at most .* 16384 a side"
        ):
            read_image(path)
    assert read_image(write(tmp_path / "long.png", np.zeros((16384, 1), np.uint8))).shape == (16384, 1, 3)
    # 2**27, in the place of which a smaller number stands here.
    assert images.MAX_PIXELS == 1 << 27
    path = write(tmp_path / "large.png", picture)
    monkeypatch.setattr(images, "MAX_PIXELS", 12 * 17)
    read_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 12 * 17 - 1)
    with pytest.raises(ImageError, match=r"large\.png: 17x12 pixels; at most 203"):
        read_image(path)


def test_what_is_too_large_is_refused_before_it_is_unpacked(tmp_path):
    """A PNG of some bytes that states 16,384 x 16,384 pixels, 768 MiB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 16384, 16384, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    code = (
        "import sys\n"
        "from bnn_perception.frames.images import ImageError, read_image\n"
        "try: read_image(sys.argv[1])\n"
        "except ImageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.png")], capture_output=True, text=True, check=True
    )
    message = f"16384x16384 pixels; at most {2**27} and 16384 a side are taken"
    assert done.stdout == f"{tmp_path / 'bomb.png'}: {message}\n"


def test_a_single_file_is_taken_as_it_is(tmp_path, picture):
    path = write(tmp_path / "a.png", picture)
    odd = path.rename(tmp_path / "a picture without an ending")
    assert find_images(odd) == [odd]


def test_size_on_disk_is_that_of_the_image(tmp_path, picture):
    path = write(tmp_path / "photos" / "stop" / "a.png", picture)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", ".")
    (in_folder,) = class_folders(tmp_path / "photos")["stop"]
    (in_tar,) = class_folders(tmp_path / "photos.tar")["stop"]
    assert in_folder.size_on_disk() == in_tar.size_on_disk() == path.stat().st_size


def test_what_lies_beside_the_folders_of_classes_is_passed_over(tmp_path, picture):
    photos = tmp_path / "photos"
    for name in ("stop/a.png", "löwe/deep/b.png", ".git/stop/c.png", "löwe/.thumbs/d.png", "e.png"):
        write(photos / name, picture)
    (photos / "speed limit 50").mkdir()
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, ".")
    for place in (photos, tmp_path / "photos.tar"):
        found = class_folders(place)
        assert list(found) == sorted(["stop", "löwe", "speed limit 50"])
        assert [[Path(file.name).name for file in files] for files in found.values()] == [
            ["b.png"],
            [],
            ["a.png"],
        ]
        assert read_dataset(place, LABELS).labels.tolist() == [2, 0]
        assert read_dataset(place, LABELS, ignore=["stop"]).labels.tolist() == [2]
    with pytest.raises(ImageError, match="nothing: no such file or folder"):
        class_folders(tmp_path / "nothing")
    with pytest.raises(ImageError, match="stop: holds no folders; one for each class"):
        class_folders(photos / "stop")
    with pytest.raises(ImageError, match="its class folders hold no images"):
        read_dataset(photos, LABELS, ignore=["stop", "löwe"])


def test_a_dataset_forgets_what_it_refused_before(tmp_path, picture):
    write(tmp_path / "stop" / "a.png", picture)
    broken = tmp_path / "stop" / "b.png"
    broken.write_bytes(b"x")
    dataset = read_dataset(tmp_path, LABELS)
    for _ in range(2):
        assert [index for index, _ in dataset] == [0]
        assert len(dataset.refused) == 1
    write(broken, picture)
    assert [index for index, _ in dataset] == [0, 1]
    assert dataset.refused == []


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
        ("Lo\u0308we", 2),  # as a Mac spells it
        ("speed  limit\t50 ", 1),
        ("00001", 1),
        ("2", 2),
        ("000000002", 2),
        ("0000000002", None),  # more digits than a class has
        ("²", None),
        ("-1", None),
        ("", None),
        ("3", None),
        ("yield", None),
    ],
)
def test_match_label(folder, index):
    assert match_label(folder, LABELS) == index


def test_match_label_takes_the_name_as_it_is_first():
    labels = ("A", "a", "Lo\u0308we", "löwe", "3", "1")
    assert [match_label(label, labels) for label in labels] == list(range(6))
    assert match_label("LÖWE", labels) == 2


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
    for labels, shown in (
        (LABELS, "stop, speed limit 50, Löwe"),
        ("abcdef", "a, b, c, d, e, f"),
        ("abcdefg", "a, b, c, d, e, f, ..."),
    ):
        with pytest.raises(ImageError) as error:
            read_dataset(tmp_path, labels)
        assert str(error.value) == f"{tmp_path / 'zebra'}: the model has no class 'zebra'; it has {shown}"


def test_tar_file_reads_as_its_folder_does(tmp_path, picture):
    for name in (
        "train/stop/ü 1",
        "train/stop/ä",
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
    assert [Path(name).name for name in in_tar.names] == ["2.png", "ä.png", "ü 1.png"]
    for index in range(3):
        assert np.array_equal(in_tar.read(index), in_folder.read(index))
    assert len(read_dataset(tmp_path / "photos.tar" / "train", LABELS, ignore=["löwe"])) == 2
    with pytest.raises(ImageError, match=r"photos\.tar/nothing: holds no folders"):
        read_dataset(tmp_path / "photos.tar" / "nothing", LABELS)


def test_a_file_that_the_system_does_not_give_is_named():
    unreadable = Path("/proc/self/mem")  # nobody can read its first byte
    if not unreadable.exists():
        pytest.skip("this system has no /proc/self/mem")
    with pytest.raises(
        ImageError, match="/proc/self/mem: is not an uncompressed tar file that can be read: .*error"
    ):
        class_folders(unreadable)
    with pytest.raises(ImageError, match="/proc/self/mem: "):
        read_image(unreadable)


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
    shown = dict(iter(dataset))
    assert shown[3].shape == (8, 9, 3)
    assert np.array_equal(shown[3], np.broadcast_to(x[3].reshape(8, 9, -1), (8, 9, 3)))
    assert dataset.names[3] == "set.npz[3]"
    assert dataset.labels.tolist() == y.tolist()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "'y is not a file|'y'"),
        ({"x": np.zeros((2, 4, 4, 3), np.float32), "y": np.zeros(2, int)}, "float32, not uint8"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8), "y": np.zeros(2, int)}, "shape"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(3, int)}, "not 2 integers"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(2)}, "not 2 integers"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros((2, 1), int)}, "not 2 integers"),
        ({"x": np.zeros((2, 0, 4, 3), np.uint8), "y": np.zeros(2, int)}, "shape"),
        ({"x": np.zeros((4, 4), np.uint8), "y": np.zeros(4, int)}, "shape"),
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
