"""The table of docs/importing.md: on how many pictures an imported net gives the class of the original.

``PYTHONPATH=.:test python -m nets.table`` writes it; a test holds it to the stored files.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lce import make as larq
from numpy.typing import NDArray

from bnn_perception.backends.cpu.binary import CpuBinaryBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import read
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.net.model import Model
from nets.stored import stored

PAGE = Path(__file__).parents[2] / "docs" / "importing.md"
BEGIN, END = "<!-- kinds of nets by exporters: python -m nets.table -->\n", "<!-- end -->"

#: Of each exporter, its column and the range of pixels that its nets take.
COLUMNS = {
    "torchscript": ("PyTorch, TorchScript", PixelRange.of(0.0, 1.0)),
    "dynamo": ("PyTorch, dynamo", PixelRange.of(0.0, 1.0)),
    "qonnx": ("Brevitas, QONNX", PixelRange.of(0.0, 1.0)),
    "tf2onnx": ("Keras with Larq, tf2onnx", PixelRange.of(-1.0, 1.0)),
    "tflite": ("Larq Compute Engine, `.tflite`", PixelRange.of(-1.0, 1.0)),
}


class Case(NamedTuple):
    """A stored net, and the logits that its tool gives for as many pictures."""

    content: bytes
    logits: NDArray[np.float32]


@lru_cache(None)
def cases(exporter: str) -> dict[str, Case]:
    """The stored nets of an exporter, by their kinds."""
    if exporter != "tflite":
        return {kind: Case(*found) for kind, found in stored(exporter).items()}
    files = {kind: larq.FOLDER / name for name, kind in larq.KINDS.items()}
    return {
        kind: Case(path.with_suffix(".tflite").read_bytes(), np.load(path.with_suffix(".npy")))
        for kind, path in files.items()
    }


@lru_cache(None)
def imported(exporter: str, kind: str) -> Model:
    suffix = ".tflite" if exporter == "tflite" else ".onnx"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net{suffix}"
        path.write_bytes(cases(exporter)[kind].content)
        return read(path, COLUMNS[exporter][1])


def frames(count: int) -> list[Frame]:
    return [Frame(picture) for picture in larq.pictures(count)]


@lru_cache(None)
def answers(exporter: str, kind: str) -> NDArray[np.float32]:
    """(pictures, classes) logits of the imported net."""
    backend = CpuBinaryBackend(imported(exporter, kind), 1)
    logits = backend.logits(frames(len(cases(exporter)[kind].logits)))
    backend.close()
    return logits


def alike(exporter: str, kind: str) -> int:
    """On how many pictures the class is that of the original."""
    theirs = cases(exporter)[kind].logits
    return int((answers(exporter, kind).argmax(axis=1) == theirs.argmax(axis=1)).sum())


def table() -> str:
    kinds = list(dict.fromkeys(kind for exporter in COLUMNS for kind in cases(exporter)))
    lines = ["| kind of net | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("| --- |" + " --- |" * len(COLUMNS))
    for kind in kinds:
        cells = [
            f"{alike(exporter, kind)} of {len(cases(exporter)[kind].logits)}"
            if kind in cases(exporter)
            else "–"
            for exporter in COLUMNS
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def on_page() -> str:
    """The table as it stands in the page."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return rest.partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(BEGIN + on_page(), BEGIN + table()), encoding="utf-8")
