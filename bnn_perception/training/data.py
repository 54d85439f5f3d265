"""Images to train on: reading and rendering them, splitting off a part for validation, drawing an epoch.

Images are brought to the network's input size once, by the same preprocessing that the robot runs
(:mod:`bnn_perception.frames.preprocess`), and kept in memory as uint8.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error
from bnn_perception.frames.dataset import match_label
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import (
    SUFFIXES,
    ImageError,
    ImageFile,
    class_folders,
    parts_among,
    read_image,
)
from bnn_perception.frames.preprocess import prepare
from bnn_perception.net.model import InputSpec
from bnn_perception.training.config import is_label


class DataError(Error, ValueError):
    """Data that cannot be used; the message names the file or folder and the remedy."""


@dataclass(frozen=True)
class PreparedImages:
    """Images of the network's input size, all in memory.

    Attributes:
        images: (N, height, width, channels) uint8.
        labels: (N,) int64.
        tracks: (N,) int64; images of one track show one object. Where nothing is known each image has its own.
        names: of the classes.
        tracked: whether ``tracks`` was stated with the images.
        digest: SHA-256 of what was read, the same wherever it lies: of the names and sizes of the files, or of the
            arrays of an npz. Empty for images that were not read, and for a part of those that were.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    tracks: NDArray[np.int64]
    names: tuple[str, ...]
    digest: str = ""
    tracked: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: NDArray[np.bool_]) -> PreparedImages:
        """The images where ``chosen`` is true."""
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            tracks=self.tracks[chosen],
            digest="",
        )


def load(
    path: Path, spec: InputSpec, names: Sequence[str] = (), ignore: Sequence[str] = ()
) -> PreparedImages:
    """Read a folder (or tar file) with a folder for each class, or an ``.npz`` with x, y and optionally track.

    A file that cannot be read costs that file only: it is left out with a warning.

    Args:
        path: as :func:`bnn_perception.frames.images.class_folders` takes it, or the ``.npz``.
        spec: size that the images are brought to.
        names: the classes, in order; a folder's classes are then looked up by name. Empty: the folders' names in
            alphabetical order; of an npz, class_0 and so on.
        ignore: folders that are left out.

    Raises:
        DataError: naming the file or folder.
    """
    if path.suffix == ".npz" and not path.is_dir():
        return _load_npz(path, spec, tuple(names))
    try:
        folders = class_folders(path)
    except ImageError as error:
        raise DataError(str(error)) from None
    absent = sorted(set(ignore) - set(folders))
    if absent:
        raise DataError(f"{path}: has no folder '{absent[0]}' to ignore; it has {', '.join(folders)}")
    return _load_folders(
        path, {name: files for name, files in folders.items() if name not in ignore}, spec, tuple(names)
    )


def _load_folders(
    path: Path, folders: dict[str, list[ImageFile]], spec: InputSpec, names: tuple[str, ...]
) -> PreparedImages:
    names = _class_names(path, folders, names)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    read: list[tuple[int, str, int]] = []  # class, name and size of each file
    for folder, files in folders.items():
        label = match_label(folder, names)
        if label is None:
            raise DataError(
                f"{path / folder}: its name is none of the {len(names)} labels; name the folder under data.ignore "
                f"to leave it out"
            )
        before = len(images)
        for file in files:
            try:
                images.append(prepare(Frame(read_image(file)), spec))
                labels.append(label)
                read.append((label, Path(file.name).name, file.size_on_disk()))
            except ImageError as error:
                warnings.warn(f"left out: {error}", stacklevel=3)
        if len(images) == before:
            what = f"holds no images ({', '.join(sorted(SUFFIXES))})"
            if files:
                what = "none of its images can be read"
            raise DataError(f"{path / folder}: {what}; delete the folder or name it under data.ignore")
    # Not of the pixels: another version of a decoder may give others, and the run is to go on with them.
    digest = hashlib.sha256(json.dumps([names, read]).encode())
    tracks = np.arange(len(images))
    return PreparedImages(
        np.stack(images), np.asarray(labels, dtype=np.int64), tracks, names, digest.hexdigest()
    )


def _class_names(path: Path, folders: dict[str, list[ImageFile]], labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels, or the names of the folders where there are none, after a look at whether they can be right."""
    if len(labels) == 1:
        raise DataError(f"{path}: data.labels names '{labels[0]}' alone; it takes 2 or more classes")
    if labels:
        found = {match_label(folder, labels) for folder in folders}
        if found == {None} and (parts := parts_among(path, folders)):
            raise DataError(
                f"{path}: its folders ({', '.join(parts)}) are parts; give {path / _training_part(parts)}, say"
            )
        absent = [name for index, name in enumerate(labels) if index not in found]
        if absent:
            raise DataError(f"{path}: has no folder '{absent[0]}'; add it, or take it out of data.labels")
        return labels
    if parts := parts_among(path, folders):
        raise DataError(
            f"{path}: its folders ({', '.join(parts)}) are parts and not classes, by their names or by the folders "
            f"that they share; train on {path / _training_part(parts)}, say, or name them under data.labels if they "
            "are classes"
        )
    if len(folders) < 2:
        raise DataError(
            f"{path}: has {len(folders) or 'no'} folder to train on; it takes a folder of images for each of 2 or "
            "more classes"
        )
    for folder in folders:
        if not is_label(folder):
            raise DataError(f"{path}: {folder!a} cannot be a label; rename the folder")
    return tuple(folders)


def _training_part(parts: list[str]) -> str:
    """The part of a dataset to train on."""
    return next((folder for folder in parts if "train" in folder.lower()), parts[0])


def _load_npz(path: Path, spec: InputSpec, names: tuple[str, ...]) -> PreparedImages:
    try:
        with np.load(path, allow_pickle=False) as archive:
            x, y = archive["x"], archive["y"]
            tracked = "track" in archive.files
            tracks = archive["track"] if tracked else np.arange(len(y))
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}; it takes x (N, H, W, 3) uint8 and y (N,)") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(f"{path}: is not an .npz file with x and y that can be read: {error}") from None
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or len(x) == 0:
        raise DataError(f"{path}: x is {x.dtype} {list(x.shape)}; it must be uint8 (N, height, width, 3)")
    if (
        tracks.dtype.kind not in "iu"
        or y.shape != (len(x),)
        or tracks.shape != (len(x),)
        or y.dtype.kind not in "iu"
        or y.min() < 0
    ):
        raise DataError(f"{path}: y and track must be {len(x)} whole numbers, one an image")
    classes = len(names) or int(y.max()) + 1
    if int(y.max()) >= classes:
        raise DataError(f"{path}: y holds {int(y.max())}, but there are {classes} labels")
    if classes < 2:
        raise DataError(f"{path}: y holds 0 only; it takes images of 2 or more classes")
    names = names or tuple(f"class_{index}" for index in range(classes))
    digest = hashlib.sha256(json.dumps(names).encode())
    for array in (x, y.astype(np.int64), tracks.astype(np.int64)):
        digest.update(np.ascontiguousarray(array).data)
    if x.shape[1:] != spec.shape:
        encoding = "rgb8" if x.shape[3] == 3 else "mono8"
        x = np.stack([prepare(Frame(image, encoding), spec) for image in x])
    return PreparedImages(x, y.astype(np.int64), tracks.astype(np.int64), names, digest.hexdigest(), tracked)


def split(data: PreparedImages, part: float, seed: int) -> tuple[PreparedImages, PreparedImages]:
    """Split off about ``part`` of every class, whole tracks at a time.

    Returns:
        What is left for training, and the validation part.

    Raises:
        DataError: for a class of fewer than two tracks (or images, where no tracks are known).
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(data), dtype=bool)
    for label, name in enumerate(data.names):
        tracks = np.unique(data.tracks[data.labels == label])
        if len(tracks) < 2:
            what = "no image" if len(tracks) == 0 else "one image or track only"
            raise DataError(
                f"class '{name}' has {what}; training and validation need one each at least: add images, or name "
                f"its folder under data.ignore"
            )
        count = min(len(tracks) - 1, max(1, round(part * len(tracks))))
        held |= (data.labels == label) & np.isin(data.tracks, rng.permutation(tracks)[:count])
    return data.subset(~held), data.subset(held)


def render_road_signs(count: int, spec: InputSpec, seed: int) -> PreparedImages:
    """Draw ``count`` road signs: half as single crops, half cut out of rendered drives as the demo shows them.

    Labels are class ids of GTSRB. Signs that cannot be drawn do not occur.
    """
    from bnn_perception.scenes.crops import random_crop_image
    from bnn_perception.scenes.drive import Scene
    from bnn_perception.scenes.signs import RENDERED_CLASSES, ROAD_SIGNS

    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.resize(RENDERED_CLASSES, count - count // 2))
    images = [
        prepare(Frame(random_crop_image(int(label), rng, max(spec.height, spec.width))), spec)
        for label in classes
    ]
    labels = [int(label) for label in classes]
    drive = Scene(seed=seed)
    for frame in range(5 * (count // 2)):
        pixels, label = drive.next()
        if frame % 5 == 0:  # neighbours look alike
            if frame % 1000 == 0:
                drive = Scene(seed=seed + 1 + frame)  # another sky, other trees and houses
            images.append(prepare(Frame(pixels, region=drive.region), spec))
            labels.append(label)
    return PreparedImages(
        np.stack(images),
        np.asarray(labels, dtype=np.int64),
        np.arange(count, dtype=np.int64),
        ROAD_SIGNS,
    )


def concatenate(*parts: PreparedImages) -> PreparedImages:
    """The images of all parts, in order; class ids must mean the same, and the names are those of the first part.

    Tracks that were stated keep their numbers, so that one number is one track in whichever parts it stands. All other
    images get numbers that no part has.

    Raises:
        DataError: where a part has more classes than the first.
    """
    most = max(len(part.names) for part in parts)
    if most > len(parts[0].names):
        raise DataError(f"{most} classes cannot be added to {len(parts[0].names)}")
    unused = 1 + max(int(part.tracks.max()) for part in parts)
    tracks = []
    for part in parts:
        tracks.append(part.tracks if part.tracked else np.arange(unused, unused + len(part)))
        unused += len(part)
    digests = [part.digest for part in parts]
    return PreparedImages(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(tracks),
        parts[0].names,
        hashlib.sha256(" ".join(digests).encode()).hexdigest() if all(digests) else "",
        any(part.tracked for part in parts),
    )


def epoch_indices(
    labels: NDArray[np.int64], exponent: float, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """About ``count`` images, in random order, classes partly balanced.

    A class of n images is drawn in proportion to ``n ** exponent``: 1 leaves the data as it is, 0 gives every
    class the same share. Inside a class every image comes up equally often, to within one.
    """
    counts = np.bincount(labels)
    share = np.where(counts > 0, counts.astype(np.float64) ** exponent, 0.0)
    quota = np.rint(share / share.sum() * count).astype(int)
    chosen = []
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(labels == label)
        repeats, rest = divmod(int(quota[label]), len(members))
        chosen += [members] * repeats + [rng.permutation(members)[:rest]]
    return rng.permutation(np.concatenate(chosen))
