"""Makes models of nets that other tools trained.

Each format has a module or folder with ``read(source) -> Model``: :mod:`~bnn_perception.importers.bnn_pynq`,
:mod:`~bnn_perception.importers.onnx` and :mod:`~bnn_perception.importers.tflite`, which makes ONNX of its files. What
does not depend on the format of a graph stands in :mod:`~bnn_perception.importers.fold`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import save_model
from bnn_perception.net.model import Model


def read(source: str | os.PathLike[str], pixels: PixelRange | None = None) -> Model:
    """Read a net of another tool; the form of the source tells its format.

    Args:
        source: a QONNX file (``.onnx``), a file of Larq Compute Engine (``.tflite``) or a BNN-PYNQ parameter folder
            (``*-weights.bin``).
        pixels: what a graph takes for pixels; None: told from the graph.

    Raises:
        ImporterError: for a source of neither kind, or one that the model format cannot express.
    """
    source = Path(source)
    if source.is_dir():
        if pixels is not None:
            raise ImporterError(f"{source}: a folder; a pixel range is of .onnx and .tflite files alone")
        from bnn_perception.importers import bnn_pynq

        return bnn_pynq.read(source)
    if source.suffix.lower() == ".onnx" and source.is_file():
        from bnn_perception.importers.onnx import read as qonnx

        return qonnx.read(source, pixels)
    if source.suffix.lower() == ".tflite" and source.is_file():
        from bnn_perception.importers.tflite import read as tflite

        return tflite.read(source, pixels)
    found = "is none of them" if source.exists() else "no such file or folder"
    raise ImporterError(
        f"{source}: {found}; what can be imported is an .onnx or .tflite file, or a folder of *-weights.bin"
    )


def source_logits(
    source: str | os.PathLike[str], images: Iterable[NDArray[np.uint8]], pixels: PixelRange
) -> NDArray[np.float32]:
    """Evaluate the graph of a source itself, in float32.

    Args:
        source: an ``.onnx`` or ``.tflite`` file.
        images: 1 or more, (height, width, channels), as large as the graph takes them.
        pixels: what the graph takes for pixels.

    Returns:
        (images, classes)

    Raises:
        ImporterError: where the graph cannot be evaluated.
    """
    from bnn_perception.importers.onnx.read import graph_logits

    if Path(source).suffix.lower() == ".tflite":
        from bnn_perception.importers.tflite.read import load_graph

        return graph_logits(load_graph(Path(source))[0], source, images, pixels)
    from bnn_perception.importers.onnx.file import load

    return graph_logits(load(Path(source)), source, images, pixels)


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
        ImporterError: where the source cannot be imported, or the folder cannot be written; it is as it was then.
    """
    model = read(source, pixels)
    try:
        model = replace(model, labels=tuple(labels) or model.labels, name=name or model.name)
    except ModelError as error:
        raise ImporterError(f"{source}: {error}") from None
    try:
        return save_model(model, out)
    except ModelError as error:
        raise ImporterError(str(error)) from None
    except OSError as error:
        raise ImporterError(f"{out}: cannot be written: {error}") from None
