"""Imports QONNX graphs of binary nets (W1A1), as Brevitas exports them (QONNX: arXiv 2206.07527).

The graph is walked once, node by node. What flows along it is either a constant, evaluated as the graph would, or the
one *signal* that began as the image: an integer tensor (pixel levels, signs, or sums of products) and, for each
channel, an affine map ``value = scale * integer + offset``. Scales, biases and batch norms only change the map. It is
kept in exact rational numbers, so the one rounding is that of a batch norm's square root. A sign closes a layer: where
the map crosses zero becomes the integer threshold (:func:`bnn_perception.net.bits.fold_batch_norm`).

The signal may branch in one way, that of Bi-Real Net, QuickNet and ReActNet: into signs, which the next convolution
takes, and a shortcut around this convolution, which an Add joins with its sums. What branches becomes a residual, whose
fixed point :mod:`bnn_perception.importers.fold.layers` chooses.

:mod:`bnn_perception.importers.onnx.operators` lists the operators and what can be expressed of each. Everything else is
refused with the node's name, its operator and the reason. Pixels are compared with thresholds as float32 has them, not
as the rational numbers that they stand for.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError, printable
from bnn_perception.importers.onnx.evaluate import evaluator
from bnn_perception.importers.onnx.file import load
from bnn_perception.importers.onnx.graph import MALFORMED
from bnn_perception.importers.onnx.walk import Walk
from bnn_perception.net.model import InputSpec, Model, ModelError

#: Metadata that the training of this package writes: name, labels (one a line), fit (crop or stretch).
METADATA = "bnn_perception."


def read(source: str | os.PathLike[str], pixel_maximum: float | None = None) -> Model:
    """Read a QONNX file.

    Labels are those that the file's metadata hold, otherwise class_0 and so on.

    Args:
        source: the ``.onnx`` file.
        pixel_maximum: what the graph takes for a pixel of 255; None: 255 where its input is of integers, or what
            it does first makes sense of no other (it divides by 255, or subtracts 128), otherwise 1.

    Raises:
        ImporterError: naming the node, its op and the reason.
    """
    source = Path(source)
    if pixel_maximum is not None and not 0 < pixel_maximum < math.inf:
        raise ImporterError(f"{source}: pixel_maximum is {pixel_maximum}; it must be a positive number")
    proto = load(source)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        walk = Walk(proto, pixel_maximum)
        walk.run()
        labels = metadata.get(f"{METADATA}labels", "").split("\n")
        if labels == [""]:
            labels = [f"class_{index}" for index in range(walk.outputs)]
        sizes = walk.image_sizes
        fit = metadata.get(f"{METADATA}fit", "crop")
        units = [float(unit) for row in walk.units.values() for unit in row]
        # The channel with the fewest fractional bits counts.
        fixed_point = {"fraction_bits": math.floor(math.log2(min(units)))} if units else {}
        return Model(
            name=metadata.get(f"{METADATA}name", source.stem),
            labels=tuple(labels),
            input=InputSpec(sizes["H"], sizes["W"], sizes["C"], fit),
            layers=tuple(walk.layers),
            info={
                "source": {
                    "format": "QONNX",
                    "file": source.name,
                    "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
                    "pixel_maximum": walk.pixel_maximum,
                    **fixed_point,
                }
            },
        )
    except ModelError as error:
        raise ImporterError(f"{source}: {printable(error)}") from None
    except MALFORMED as error:
        raise ImporterError(f"{source}: is malformed: {printable(error)}") from None


def source_logits(
    source: str | os.PathLike[str], images: Iterable[NDArray[np.uint8]], pixel_maximum: float
) -> NDArray[np.float32]:
    """Evaluate the graph itself in float32, with ``onnx.reference``.

    Args:
        source: the ``.onnx`` file.
        images: 1 or more, (height, width, channels), as large as the graph takes them.
        pixel_maximum: what the graph takes for a pixel of 255.

    Returns:
        (images, classes)

    Raises:
        ImporterError: where the graph cannot be evaluated.
    """
    proto = load(Path(source))
    walk = Walk(proto, pixel_maximum)
    graph = walk.graph
    rows = []
    try:
        reference = evaluator(proto)
        for pixels in images:
            image = pixels.astype(np.float32) * np.float32(pixel_maximum) / np.float32(255)
            if walk.image_axes == "CHW":
                image = image.transpose(2, 0, 1)
            batch = np.repeat(image[None].astype(graph.image_dtype), graph.batch, axis=0)
            outputs = reference.run([graph.logits], {graph.image: batch})
            assert isinstance(outputs, list)
            rows.append(np.asarray(outputs[0])[0].reshape(-1))
    # The evaluator's operators raise exceptions of any type.
    except Exception as error:
        raise ImporterError(f"{source}: cannot be evaluated for comparison: {printable(error)}") from None
    return np.stack(rows)
