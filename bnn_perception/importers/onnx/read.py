"""Imports QONNX graphs of binary nets (W1A1), as Brevitas exports them (QONNX: arXiv 2206.07527).

The graph is walked once, node by node. What flows along it is either a constant, evaluated as the graph would, or a
*signal*: pixel levels, signs, sums of products, or the real values that a layer gives, and for each channel an affine
map ``value = scale * x + offset``. Scales, biases and batch norms only change the map. It is kept in exact rational
numbers, so the one rounding is that of a batch norm's square root. A sign of integers closes a layer: where the map
crosses zero becomes the integer threshold (:func:`bnn_perception.net.bits.fold_batch_norm`).

Where a net needs real values (shortcuts, activations, real weights, pools), the sums become a layer that gives them,
and what acts on them becomes layers of :mod:`bnn_perception.net.signals`, in the order of the graph.

:mod:`bnn_perception.importers.onnx.operators` lists the operators and what can be expressed of each. Everything else is
refused with the node's name, its operator and the reason. Pixels are compared with thresholds as float32 has them, not
as the rational numbers that they stand for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line
from bnn_perception.importers.errors import MALFORMED, ImporterError
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.importers.onnx.evaluate import evaluator
from bnn_perception.importers.onnx.file import load
from bnn_perception.importers.onnx.walk import Walk
from bnn_perception.net.checks import ModelError
from bnn_perception.net.model import InputSpec, Model

if TYPE_CHECKING:
    import onnx

#: Metadata that the training of this package writes: name, labels (one a line), fit (crop or stretch).
METADATA = "bnn_perception."


def read(source: str | os.PathLike[str], pixels: PixelRange | None = None) -> Model:
    """Read a QONNX file.

    Labels are those that the file's metadata hold, otherwise class_0 and so on.

    Args:
        source: the ``.onnx`` file.
        pixels: what the graph takes for pixels; None: 0 to 255 where its input is of integers, or what it does first
            makes sense of no other (it divides by 255, or subtracts 128), otherwise 0 to 1.

    Raises:
        ImporterError: naming the node, its op and the reason.
    """
    source = Path(source)
    return read_graph(load(source), source, "QONNX", pixels)


def read_graph(
    proto: onnx.ModelProto,
    source: Path,
    kind: str,
    pixels: PixelRange | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Model:
    """The model of a graph that was read already, or made of another format.

    Args:
        source: the file that it was read from.
        kind: the file's format, for the model's description.
        pixels: as :func:`read` takes it.
        shapes: what tensors must have, by their names; their first axis is that of the images.

    Raises:
        ImporterError: naming the node, its op and the reason.
    """
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        walk = Walk(proto, pixels, shapes or {})
        walk.run()
        labels = metadata.get(f"{METADATA}labels", "").split("\n")
        if labels == [""]:
            labels = [f"class_{index}" for index in range(walk.outputs)]
        sizes = walk.image_sizes
        fit = metadata.get(f"{METADATA}fit", "crop")
        told = pixels is not None or walk.is_told
        return Model(
            name=metadata.get(f"{METADATA}name", source.stem),
            labels=tuple(labels),
            input=InputSpec(sizes["H"], sizes["W"], sizes["C"], fit, *walk.pixels.stated(sizes["C"])),
            layers=tuple(walk.layers),
            info={
                "source": {
                    "format": kind,
                    "file": source.name,
                    "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
                    **({} if told else {"pixel_range": "assumed"}),
                }
            },
        )
    except ModelError as error:
        raise ImporterError(f"{source}: {error}") from None
    except MALFORMED as error:
        raise ImporterError(f"{source}: is malformed: {one_line(error)}") from None


def graph_logits(
    proto: onnx.ModelProto,
    source: str | os.PathLike[str],
    images: Iterable[NDArray[np.uint8]],
    pixels: PixelRange,
) -> NDArray[np.float32]:
    """Evaluate a graph itself in float32, with ``onnx.reference``.

    Args:
        source: the file that it was read from.
        images: 1 or more, (height, width, channels), as large as the graph takes them.
        pixels: what the graph takes for pixels.

    Returns:
        (images, classes)

    Raises:
        ImporterError: where the graph cannot be evaluated.
    """
    try:
        walk = Walk(proto, pixels)
        # What its constants cost is known, and bounded, when they have been computed once.
        walk.run()
    except ImporterError as error:
        raise ImporterError(f"{source}: {error}") from None
    graph = walk.graph
    # The evaluator would compute what nobody asks for as well.
    del proto.graph.node[:]
    proto.graph.node.extend(graph.stated)
    rows = []
    try:
        reference = evaluator(proto)
        for image_pixels in images:
            image = pixels.of_image(image_pixels)
            if walk.image_axes == "CHW":
                image = image.transpose(2, 0, 1)
            batch = np.repeat(image[None].astype(graph.image_dtype), graph.batch, axis=0)
            outputs = reference.run([graph.logits], {graph.image: batch})
            assert isinstance(outputs, list)
            rows.append(np.asarray(outputs[0])[0].reshape(-1))
    # The evaluator's operators raise exceptions of any type.
    except Exception as error:
        raise ImporterError(f"{source}: cannot be evaluated for comparison: {one_line(error)}") from None
    return np.stack(rows)
