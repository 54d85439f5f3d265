"""Imports QONNX graphs of binary nets (W1A1), as Brevitas exports them (QONNX: arXiv 2206.07527).

The graph is walked once, node by node. What flows along it is either a constant, evaluated as the graph would, or the
one *signal* that began as the image: an integer tensor (pixel levels, signs, or sums of products) and, for each
channel, an affine map ``value = scale * integer + offset``. Scales, biases and batch norms only change the map. It is
kept in exact rational numbers, so the one rounding is that of a batch norm's square root. A sign closes a layer: where
the map crosses zero becomes the integer threshold (:func:`bnn_perception.net.bits.fold_batch_norm`).

The signal may branch in one way, that of Bi-Real Net, QuickNet and ReActNet: into signs, which the next convolution
takes, and a shortcut around this convolution, which an Add joins with its sums. What branches becomes a stream, whose
fixed point :mod:`bnn_perception.importers.onnx.layers` chooses.

====================================================  =============================================================
Conv, Gemm, MatMul                                    weights of one magnitude an output: BipolarQuant, Sign or ±c
BipolarQuant, Sign, Quant of 1 bit, MultiThreshold    one threshold a channel
Greater, GreaterOrEqual, Less, LessOrEqual            the same, strict or not, with a constant on either side
Not, Where, Cast of what these give                   Where chooses between two constants
BatchNormalization, Add, Sub, Mul, Div, Neg           with scalars or one constant a channel
MaxPool                                               square and unpadded, before or after the sign, any sign of gamma
Pad, padding of Conv                                  by the value of -1 or 0 (signs), by one level (pixels)
Conv of the whole map, without padding                a matrix, also as the last layer
Quant of at most 8 bits on the image                  a table of levels
Unsqueeze, Sub, sign, Reshape on the image            a thermometer code
Relu, LeakyRelu, PRelu                                of sums that were only scaled: one slope a channel below 0
Clip, Relu of others                                  of sums and streams whose signs are taken (Hardtanh)
Add of two activations                                sums and the stream that their signs come from, in either order
AveragePool, Concat, Tile                             of a shortcut: 2x2 with stride 2; its channels repeated
Transpose, Flatten, Reshape, Squeeze                  no arithmetic
Identity, Dropout, Cast to floats                     none either
Softmax, LogSoftmax, ArgMax, TopK                     at the end, where they are left out
====================================================  =============================================================

Pixels are compared with thresholds as float32 has them, not as the rational numbers that they stand for.

Everything else is refused with the node's name, its op and the reason.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.frames.preprocess import Frame, prepare_reference
from bnn_perception.importers import ImporterError
from bnn_perception.importers.onnx.graph import MALFORMED
from bnn_perception.importers.onnx.quantizers import quant_operators
from bnn_perception.importers.onnx.walk import Walk
from bnn_perception.net.checks import ModelError
from bnn_perception.net.model import InputSpec, Model

if TYPE_CHECKING:
    import onnx

#: Metadata that the training of this package writes: name, labels (one a line), fit (crop or stretch).
METADATA = "bnn_perception."

MAX_BYTES = 1 << 30


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
    proto = _load(source)
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
        # Of the channel that has the fewest.
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
        raise ImporterError(f"{source}: {_line(error)}") from None
    except MALFORMED as error:
        raise ImporterError(f"{source}: is malformed: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The message on one line: it quotes names of an untrusted graph, which can hold any characters."""
    text = "".join(character if character.isprintable() else " " for character in str(error))
    return " ".join(text.split())


def _load(source: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        size = source.stat().st_size
        if size > MAX_BYTES:
            raise ImporterError(f"{source}: {size} bytes; at most {MAX_BYTES} are read")
        proto = onnx.load(str(source), load_external_data=False)
    except OSError as error:
        raise ImporterError(f"{source}: cannot be read: {error.strerror or error}") from None
    except DecodeError:
        raise ImporterError(f"{source}: is not an ONNX file") from None
    _load_external_data(proto, source)
    return proto


def _load_external_data(proto: onnx.ModelProto, source: Path) -> None:
    """Read the initializers that lie in files beside the graph; onnx sees to it that these lie in its folder."""
    from onnx import external_data_helper
    from onnx.checker import ValidationError

    left = MAX_BYTES
    for tensor in proto.graph.initializer:
        if not external_data_helper.uses_external_data(tensor):
            continue
        try:
            length = external_data_helper.ExternalDataInfo(tensor).length or 0
            if not 0 < length <= left:
                raise ValueError(f"its length is {length}; all of them have at most {MAX_BYTES} bytes")
            left -= length
            external_data_helper.load_external_data_for_tensor(tensor, str(source.parent))
        except (OSError, ValueError, ValidationError) as error:
            raise ImporterError(
                f"{source}: the data of '{tensor.name}', in another file, cannot be read: {_line(error)}"
            ) from None
        tensor.ClearField("data_location")  # older versions of onnx leave both set
        tensor.ClearField("external_data")


class Parity(NamedTuple):
    """How an imported model compares with its source graph on some images.

    Attributes:
        images: how many.
        same_class: on how many both give the same class.
        difference: largest difference between two logits.
        magnitude: largest logit of the source, to judge it by.
    """

    images: int
    same_class: int
    difference: float
    magnitude: float


def compare(source: str | os.PathLike[str], model: Model, frames: Sequence[Frame]) -> Parity:
    """Evaluate the source graph in float32 (with ``onnx.reference``) and the model by the reference backend.

    Args:
        source: the file that ``model`` was read from.
        frames: 1 or more images.

    Raises:
        ImporterError: where the graph cannot be evaluated.
    """
    from bnn_perception.backends.reference import ReferenceBackend

    proto = _load(Path(source))
    walk = Walk(proto, float(model.info["source"]["pixel_maximum"]))
    batches = []
    for frame in frames:
        pixels = prepare_reference(frame, model.input)
        image = pixels.astype(np.float32) * np.float32(walk.pixel_maximum) / np.float32(255)
        if walk.image_axes == "CHW":
            image = image.transpose(2, 0, 1)
        batches.append(np.repeat(image[None].astype(walk.graph.image_dtype), walk.graph.batch, axis=0))
    try:
        expected = _logits(proto, walk, batches)
    except Exception as error:  # of the evaluator, whose operators raise what they like
        raise ImporterError(f"{source}: cannot be evaluated for comparison: {_line(error)}") from None
    actual = ReferenceBackend(model).logits(frames)
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    difference, magnitude = np.abs(expected - actual).max(), np.abs(expected).max()
    return Parity(len(frames), int(same.sum()), float(difference), float(magnitude))


def _logits(proto: onnx.ModelProto, walk: Walk, batches: Iterable[NDArray[Any]]) -> NDArray[np.float32]:
    """(batches, classes) logits of the first image of each batch, by the graph itself."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(proto, new_ops=quant_operators())
    rows = []
    for batch in batches:
        outputs = evaluator.run([walk.graph.logits], {walk.graph.image: batch})
        assert isinstance(outputs, list)
        rows.append(np.asarray(outputs[0])[0].reshape(-1))
    return np.stack(rows)
