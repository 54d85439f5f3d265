"""The stored nets and their answers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
#: Pictures that a net is asked about.
PICTURES = 64


def add(exporter: str, nets: dict[str, bytes], logits: dict[str, NDArray[np.float64]]) -> None:
    """Write the nets of an exporter, and what they answer, as the same bytes each time."""
    with zipfile.ZipFile(FOLDER / f"{exporter}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in nets.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.onnx"), content, zipfile.ZIP_DEFLATED, 9)
    np.savez_compressed(
        FOLDER / f"{exporter}.npz", **{name: values.astype(np.float32) for name, values in logits.items()}
    )


def stored(exporter: str) -> dict[str, tuple[bytes, NDArray[np.float32]]]:
    """The nets of an exporter by their kinds: the file's content, and (PICTURES, classes) logits."""
    with (
        zipfile.ZipFile(FOLDER / f"{exporter}.zip") as archive,
        np.load(FOLDER / f"{exporter}.npz") as logits,
    ):
        return {
            name[: -len(".onnx")]: (archive.read(name), logits[name[: -len(".onnx")]])
            for name in archive.namelist()
        }
