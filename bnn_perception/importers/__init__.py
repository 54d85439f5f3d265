"""Makes models of nets that other tools trained.

Each format has a module or folder with ``read(source) -> Model``: :mod:`~bnn_perception.importers.bnn_pynq` and
:mod:`~bnn_perception.importers.onnx`. What does not depend on the format of a graph stands in
:mod:`~bnn_perception.importers.fold`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnn_perception.importers.errors import ImporterError
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import save_model
from bnn_perception.net.model import Model


def read(source: str | os.PathLike[str], pixels: PixelRange | None = None) -> Model:
    """Read a net of another tool; the form of the source tells its format.

    Args:
        source: a QONNX file (``.onnx``) or a BNN-PYNQ parameter folder (``*-weights.bin``).
        pixels: what a QONNX graph takes for pixels; None: told from the graph.

    Raises:
        ImporterError: for a source of neither kind, or one that the model format cannot express.
    """
    source = Path(source)
    if source.is_dir():
        if pixels is not None:
            raise ImporterError(f"{source}: a folder; a pixel range is of .onnx files alone")
        from bnn_perception.importers import bnn_pynq

        return bnn_pynq.read(source)
    if source.suffix.lower() == ".onnx" and source.is_file():
        from bnn_perception.importers.onnx import read as qonnx

        return qonnx.read(source, pixels)
    found = "is neither" if source.exists() else "no such file or folder"
    raise ImporterError(
        f"{source}: {found}; what can be imported is an .onnx file or a folder of *-weights.bin"
    )


def import_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: Sequence[str] = (),
    name: str = "",
    pixels: PixelRange | None = None,
) -> Model:
    """Read a net of another tool and write it as a model folder.

    Args:
        source: as :func:`read` takes it.
        out: the folder to write; made where it does not exist.
        labels: names of the classes; empty: those that the source states, otherwise class_0 and so on.
        name: the model's name; empty: that of the source.
        pixels: as :func:`read` takes it.

    Returns:
        The model as it is read back from ``out``.

    Raises:
        ImporterError: where the source cannot be imported or the folder cannot be written.
    """
    model = read(source, pixels)
    try:
        model = replace(model, labels=tuple(labels) or model.labels, name=name or model.name)
    except ModelError as error:
        raise ImporterError(f"{source}: {error}") from None
    try:
        return save_model(model, out)
    except OSError as error:
        raise ImporterError(f"{out}: cannot be written: {error}") from None
