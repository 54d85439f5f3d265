"""Imports the parameter folders of BNN-PYNQ (github.com/Xilinx/BNN-PYNQ): the nets LFC W1A1 and CNV W1A1.

A folder holds, for each layer and each of its processing elements (PE), ``<layer>-<pe>-weights.bin`` and, where the
layer has thresholds, ``<layer>-<pe>-thres.bin``; beside them, as a rule, ``classes.txt`` with a label a line.

Weights are little-endian 64-bit words that hold SIMD bits each, the least significant first. The words of a PE are
its rows one after the other, and row r of the layer's matrix is row ``r // PE`` of element ``r % PE``. The columns
are the input (y, x, channel), as everywhere in this package. Thresholds are signed 64-bit integers, one a row.

The nets are fixed in size; PE and SIMD are not, and are deduced: PE from the number of files, SIMD from their size.

=====  ===========================================================================================================
LFC    28x28 grey, a pixel is +1 from level 128 on; three layers of 1024 and the output. Rows of the first layer are
       padded from 784 to 832 columns, which meet input bits 0. An output fires or does not; the class is the
       highest that fires, or 0 where none does.
CNV    32x32 RGB, a pixel p is the integer round(128 * (2p / 255 - 1)) in 8 bits; 3x3 convolutions without padding,
       64, 64, pool, 128, 128, pool, 256, 256; dense layers of 512, 512 and the output, whose scores are the
       numbers of agreeing bits. In the first layer the threshold is in units of 1/256, a pixel in units of 1/128.
=====  ===========================================================================================================

A row fires when its number of agreeing bits, in CNV's first layer its sum, is greater than the threshold. The last
layer is padded with rows of ones.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError
from bnn_perception.net import bits
from bnn_perception.net.checks import ModelError
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.model import InputSpec, Model

CLASSES = "classes.txt"
WORD_BYTES = 8
MAX_SIMD = 8 * WORD_BYTES
MAX_OUTPUTS = 64
#: 64 labels of 200 characters of 4 bytes fit.
MAX_CLASSES_BYTES = 1 << 16

_FILE = re.compile(r"(0|[1-9][0-9]?)-(0|[1-9][0-9]{0,3})-(weights|thres)\.bin")


class Matrix(NamedTuple):
    """The shape of a layer's matrix and the width of its thresholds, which the net fixes.

    Attributes:
        rows: outputs; 0 for the last layer, which has as many as its files hold.
        columns: inputs, padding included.
        threshold_bits: width of a threshold, a signed integer, in the hardware; 0 where the layer has none.
    """

    rows: int
    columns: int
    threshold_bits: int = 16


@dataclass(frozen=True)
class Parameters:
    """What the files of one layer hold.

    Attributes:
        weights: (rows, columns) bool.
        thresholds: (rows,) int64; (0,) where the layer has none.
    """

    weights: NDArray[np.bool_]
    thresholds: NDArray[np.int64]


@dataclass(frozen=True)
class Net:
    """One of the nets.

    Attributes:
        name: as BNN-PYNQ calls it.
        matrices: the matrices of its layers, in order.
        input: the images that it takes.
        build: makes the layers of a model from the parameters.
    """

    name: str
    matrices: tuple[Matrix, ...]
    input: InputSpec
    build: Callable[[Sequence[Parameters]], Iterator[Layer]]


def read(source: str | os.PathLike[str]) -> Model:
    """Read the net in a BNN-PYNQ parameter folder.

    Raises:
        ImporterError: naming the file or the layer and what is wrong with it.
    """
    source = Path(source)
    folder = _Folder(source)
    net = NETS.get(folder.layers)
    if net is None:
        known = ", ".join(f"{net.name} with {layers}" for layers, net in NETS.items())
        raise ImporterError(
            f"{source}: holds files of {folder.layers} layers; what can be imported is {known}"
        )
    *hidden, last = (folder.read_layer(index, matrix) for index, matrix in enumerate(net.matrices))
    outputs = _outputs_in_use(last)
    if not outputs:
        raise ImporterError(
            f"{source}: layer {folder.layers - 1} has no output in use, only rows that pad it"
        )
    labels = _read_labels(source / CLASSES, outputs)
    parameters = [*hidden, Parameters(last.weights[:outputs], last.thresholds[:outputs])]
    for index, (matrix, layer) in enumerate(zip(net.matrices, parameters)):
        _check_thresholds(folder.file(index, "*", "thres"), matrix, layer)
    try:
        return Model(
            name=source.resolve().name or net.name,
            labels=labels,
            input=net.input,
            layers=tuple(net.build(parameters)),
            info={
                "description": f"{net.name} of BNN-PYNQ",
                "source": {"format": "bnn_pynq", "net": net.name},
            },
        )
    except ModelError as error:
        raise ImporterError(f"{source}: {error}") from None


class _Folder:
    """The parameter files of a folder, which is untrusted.

    Attributes:
        layers: how many layers have files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # (layer, "weights" or "thres") -> element -> bytes
        self._sizes: dict[tuple[int, str], dict[int, int]] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    match = _FILE.fullmatch(entry.name)
                    if match is None:
                        continue
                    if not entry.is_file():
                        raise ImporterError(f"{entry.path}: is not a file")
                    layer, element, kind = int(match[1]), int(match[2]), match[3]
                    self._sizes.setdefault((layer, kind), {})[element] = entry.stat().st_size
        except OSError as error:
            raise ImporterError(
                f"{error.filename or path}: cannot be read: {error.strerror or error}"
            ) from None
        if not self._sizes:
            raise ImporterError(
                f"{path}: holds no <layer>-<pe>-weights.bin; is it a BNN-PYNQ parameter folder?"
            )
        self.layers = max(layer for layer, _ in self._sizes) + 1

    def file(self, index: int, element: int | str, kind: str) -> Path:
        """The file of one element, or of all with an element of ``*``."""
        return self._path / f"{index}-{element}-{kind}.bin"

    def read_layer(self, index: int, matrix: Matrix) -> Parameters:
        """Read all files of a layer, whose folding is deduced from their number and size."""
        elements, weight_bytes = self._files(index, "weights")
        threshold_elements, threshold_bytes = self._files(index, "thres")
        if not elements:
            raise ImporterError(f"{self.file(index, 0, 'weights')}: no such file")
        if threshold_elements != elements and (threshold_elements or matrix.threshold_bits):
            missing = "thres" if threshold_elements < elements else "weights"
            file = self.file(index, min(threshold_elements, elements), missing)
            raise ImporterError(f"{file}: no such file")
        thresholds = threshold_elements * threshold_bytes // WORD_BYTES
        rows = matrix.rows or thresholds or MAX_OUTPUTS
        self._check_rows(index, matrix, rows, thresholds)
        words = elements * weight_bytes // WORD_BYTES
        simd = rows * matrix.columns // words
        if (
            rows % elements
            or simd * words != rows * matrix.columns
            or simd > MAX_SIMD
            or matrix.columns % simd
        ):
            raise ImporterError(
                f"{self.file(index, '*', 'weights')}: {elements} files of {weight_bytes} bytes; no PE and SIMD "
                f"fold the {rows} x {matrix.columns} weights of layer {index} so"
            )
        return Parameters(
            self._weights(index, rows, elements, simd),
            self._thresholds(index, elements) if matrix.threshold_bits else np.zeros(0, dtype=np.int64),
        )

    def _check_rows(self, index: int, matrix: Matrix, rows: int, thresholds: int) -> None:
        files = self.file(index, "*", "thres")
        if not matrix.rows and rows > MAX_OUTPUTS:
            raise ImporterError(
                f"{files}: {rows} thresholds; the last layer has at most {MAX_OUTPUTS} outputs"
            )
        if not matrix.threshold_bits or thresholds == rows:
            return
        if thresholds % rows == 0:
            raise ImporterError(
                f"{files}: {thresholds // rows} thresholds for each output of layer {index}, so its activations "
                "have more than 1 bit; only W1A1 nets can be imported"
            )
        raise ImporterError(f"{files}: {thresholds} thresholds for the {rows} outputs of layer {index}")

    def _weights(self, index: int, rows: int, elements: int, simd: int) -> NDArray[np.bool_]:
        """(rows, columns) bool."""
        words = np.stack([self._array(index, element, "weights", "<u8") for element in range(elements)])
        used = int(np.bitwise_or.reduce(words, axis=None)).bit_length()
        if used != simd:
            raise ImporterError(
                f"{self.file(index, '*', 'weights')}: {used} bits are in use of a word, but the size of the files "
                f"leaves {simd} to a word of layer {index}; they are damaged, or their weights have more than 1 bit"
            )
        in_words = np.unpackbits(
            words.view(np.uint8).reshape(*words.shape, WORD_BYTES), axis=-1, bitorder="little"
        )
        # (element, row of the element, column) -> (row of the element, element, column): the order of the rows
        weights = in_words[..., :simd].reshape(elements, rows // elements, -1).swapaxes(0, 1)
        return weights.reshape(rows, -1).astype(bool)

    def _thresholds(self, index: int, elements: int) -> NDArray[np.int64]:
        """(rows,) int64."""
        values = [self._array(index, element, "thres", "<i8") for element in range(elements)]
        return np.stack(values, axis=1).reshape(-1).astype(np.int64)

    def _files(self, index: int, kind: str) -> tuple[int, int]:
        """How many elements have a file of this kind, and how many bytes each has; zeros where there is none."""
        sizes = self._sizes.get((index, kind), {})
        for element in range(len(sizes)):
            file = self.file(index, element, kind)
            if element not in sizes:
                raise ImporterError(f"{file}: no such file, but there is one of element {max(sizes)}")
            if sizes[element] == 0 or sizes[element] % WORD_BYTES:
                raise ImporterError(f"{file}: {sizes[element]} bytes; it must hold whole numbers of 64 bits")
            if sizes[element] != sizes[0]:
                raise ImporterError(
                    f"{file}: {sizes[element]} bytes, but {self.file(index, 0, kind).name} has {sizes[0]}; "
                    "the files of a layer are of one size"
                )
        return len(sizes), sizes.get(0, 0)

    def _array(self, index: int, element: int, kind: str, dtype: str) -> NDArray[np.generic]:
        path = self.file(index, element, kind)
        size = self._sizes[index, kind][element]
        data = _read_bytes(path, size)
        if len(data) != size:
            raise ImporterError(f"{path}: its size changed while it was read")
        return np.frombuffer(data, dtype=dtype)


def _read_bytes(path: Path, limit: int) -> bytes:
    """At most ``limit + 1`` bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ImporterError(f"{path}: cannot be read: {error.strerror or error}") from None


def _outputs_in_use(last: Parameters) -> int:
    """Number of outputs before the rows that only pad the layer, whose weights are all equal."""
    in_use = last.weights.any(axis=1) & ~last.weights.all(axis=1)
    return int(np.flatnonzero(in_use).max(initial=-1)) + 1


def _read_labels(path: Path, outputs: int) -> tuple[str, ...]:
    """The lines of ``classes.txt``, which must be as many as there are outputs; ``class_0`` and so on without it."""
    if not os.path.lexists(path):
        return tuple(f"class_{index}" for index in range(outputs))
    if not path.is_file():
        raise ImporterError(f"{path}: is not a file")
    data = _read_bytes(path, MAX_CLASSES_BYTES)
    if len(data) > MAX_CLASSES_BYTES:
        raise ImporterError(f"{path}: over {MAX_CLASSES_BYTES} bytes; it must hold a label a line")
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise ImporterError(f"{path}: is not UTF-8 text") from None
    if "" in lines:
        raise ImporterError(f"{path}: line {lines.index('') + 1} is empty; it must hold a label a line")
    if len(lines) != outputs:
        raise ImporterError(f"{path}: {len(lines)} labels, but the net has {outputs} outputs in use")
    return tuple(lines)


def _check_thresholds(files: Path, matrix: Matrix, layer: Parameters) -> None:
    bound = 1 << max(matrix.threshold_bits - 1, 0)
    outside = np.flatnonzero((layer.thresholds < -bound) | (layer.thresholds >= bound))
    if outside.size:
        raise ImporterError(
            f"{files}: the threshold of output {outside[0]} is {layer.thresholds[outside[0]]}; "
            f"it must fit {matrix.threshold_bits} bits"
        )


def _never_flipped(rows: int) -> NDArray[np.bool_]:
    return np.zeros(rows, dtype=bool)


def _dot_threshold(layer: Parameters, fan_in: int) -> NDArray[np.int32]:
    """The threshold of the dot product that is reached when the number of agreements is above the one of the file.

    Args:
        layer: of the file; its columns from ``fan_in`` on meet input bits 0 and agree where the weight is 0.
        fan_in: number of columns that meet the input.

    Returns:
        (rows,) int32.
    """
    padding = (~layer.weights[:, fan_in:]).sum(axis=1)
    agreements = layer.thresholds + 1 - padding
    return (2 * agreements - fan_in).astype(np.int32)


def _packed_rows(layer: Parameters, shape: Shape) -> NDArray[np.uint32]:
    """(rows, height * width * words) uint32 of a dense layer on an input of ``shape``."""
    rows = len(layer.weights)
    columns = layer.weights[:, : math.prod(shape)]
    return bits.pack(columns.reshape(rows, *shape)).reshape(rows, -1)


def _dense(name: str, layer: Parameters, shape: Shape) -> BinaryDense:
    rows = len(layer.weights)
    threshold = _dot_threshold(layer, math.prod(shape))
    return BinaryDense(name, shape, rows, _packed_rows(layer, shape), threshold, _never_flipped(rows))


def _lfc(parameters: Sequence[Parameters]) -> Iterator[Layer]:
    # A level of 127 is -0.004 on the scale from -1 to 1, one of 128 is 0.004.
    yield Thermometer("binarize", channels=1, levels=1, thresholds=np.array([[128]], dtype=np.uint8))
    *hidden, last = parameters
    shape = LFC.input.shape
    for index, layer in enumerate(hidden, start=1):
        yield _dense(f"dense{index}", layer, shape)
        shape = (1, 1, len(layer.weights))
    classes = len(last.weights)
    # The logit of output i is i + 1 where it fires and 0 where not, so that the highest that fires wins and the
    # first class where none does.
    yield OutputBits(
        name="output",
        in_shape=shape,
        out_features=classes,
        weights=_packed_rows(last, shape),
        threshold=_dot_threshold(last, shape[2]),
        flip=_never_flipped(classes),
        scale=np.arange(1, classes + 1, dtype=np.float32),
        bias=np.zeros(classes, dtype=np.float32),
    )


def _cnv(parameters: Sequence[Parameters]) -> Iterator[Layer]:
    *convolutions, dense1, dense2, last = parameters
    channels = CNV.input.channels
    for index, layer in enumerate(convolutions, start=1):
        rows = len(layer.weights)
        common: dict[str, Any] = {
            "name": f"conv{index}",
            "in_channels": channels,
            "out_channels": rows,
            "kernel": (3, 3),
            "stride": (1, 1),
            "padding": (0, 0),
            "pool": Pool(size=2, stride=2) if index in (2, 4) else None,
            "weights": bits.pack(layer.weights.reshape(rows, 3, 3, channels)),
            "flip": _never_flipped(rows),
        }
        if index == 1:
            # 2 * sum > threshold of an integer sum: the sum is in 1/128, the threshold in 1/256.
            reached = (layer.thresholds // 2 + 1).astype(np.int32)
            yield InputConv2d(**common, threshold=reached, levels=_pixel_levels())
        else:
            yield BinaryConv2d(**common, threshold=_dot_threshold(layer, 9 * channels))
        channels = rows
    yield _dense("dense1", dense1, (1, 1, channels))
    yield _dense("dense2", dense2, (1, 1, len(dense1.weights)))
    classes, fan_in = last.weights.shape
    # The score of a class is its number of agreements: (dot + fan-in) / 2.
    yield OutputDense(
        name="output",
        in_shape=(1, 1, fan_in),
        out_features=classes,
        weights=_packed_rows(last, (1, 1, fan_in)),
        scale=np.full(classes, 0.5, dtype=np.float32),
        bias=np.full(classes, fan_in / 2, dtype=np.float32),
    )


def _pixel_levels() -> NDArray[np.int16]:
    """(256,) int16: round(128 * (2p / 255 - 1)), at most 127. No p lies half way between two integers."""
    levels = (np.arange(256) * 512 + 255) // 510 - 128
    return np.minimum(levels, 127).astype(np.int16)


LFC = Net(
    name="LFC W1A1",
    matrices=(Matrix(1024, 832), Matrix(1024, 1024), Matrix(1024, 1024), Matrix(0, 1024)),
    input=InputSpec(28, 28, channels=1),
    build=_lfc,
)
CNV = Net(
    name="CNV W1A1",
    matrices=(
        Matrix(64, 9 * 3, threshold_bits=24),
        Matrix(64, 9 * 64),
        Matrix(128, 9 * 64),
        Matrix(128, 9 * 128),
        Matrix(256, 9 * 128),
        Matrix(256, 9 * 256),
        Matrix(512, 256),
        Matrix(512, 512),
        Matrix(0, 512, threshold_bits=0),
    ),
    input=InputSpec(32, 32, channels=3),
    build=_cnv,
)
NETS = {len(net.matrices): net for net in (LFC, CNV)}
