"""One record an operator: all that the readers of this folder know of it.

To add an operator, write the function that applies it and its record below. The table shows what can be expressed in a
binary net; a test holds it to the records.

=============================  ========================================================================================
Conv                           of signs with weights of one magnitude in each output channel, padded by the value of
                               -1, 0 or +1; of pixels with any weights; of real values with any weights, padded by 0,
                               in groups up to depthwise
Gemm, MatMul                   of signs with weights of one magnitude in each output; of pixels and real values with
                               any weights
BipolarQuant, MultiThreshold   one threshold a channel
Sign                           one threshold a channel, which no value may meet
Quant, IntQuant                of 1 bit: one threshold a channel; of at most 8 bits on the image: a table of levels
Greater, GreaterOrEqual,       one threshold a channel, strict or not; the constant on either side
Less, LessOrEqual
Not                            of truth values
Where                          of truth values that choose between two constants
BatchNormalization             of the channels, with fixed statistics
Add                            with one constant, or one a channel; of two real values (a shortcut); of what was taken
                               off before, which cancels
Sum                            as Add, of two
Sub                            with one constant, or one a channel; of two real values; of what an Add adds again; on
                               the image, with thresholds along a new axis: a thermometer code
Mul, Div                       with one constant, or one a channel
Neg                            everywhere
Relu, LeakyRelu, Abs           of sums and real values
PRelu                          of sums and real values: one slope a channel
Clip                           of sums and real values (Hardtanh); of pixels and signs where it changes nothing
Max, Min                       of sums and real values, with one constant, or one a channel
MaxPool                        of sums, signs and real values, with any window, stride and padding
Pad                            of height and width, with 0 or as a Conv or MaxPool behind it can; of channels with 0,
                               of real values
AveragePool                    of sums and real values, with any window, stride and padding
GlobalAveragePool              of sums and real values
ReduceMean, ReduceSum          of sums and real values, over height, width or both
GlobalMaxPool                  of sums, signs and real values
ReduceMax                      of sums, signs and real values, over height, width or both
Slice                          of channels, rows and columns, at any step
Gather, GatherND               of channels, rows and columns, by constant numbers
Expand                         to its own shape
Split                          of the channels of sums and real values
Concat                         of sums and real values, along the channels
Tile                           of the channels of sums and real values
Unsqueeze                      of (N, features) to a map of one pixel; of the image, by the axis of a thermometer's
                               levels behind channels
Transpose                      no arithmetic
Flatten                        to (N, features)
Reshape                        to (N, features), and of one pixel back; a thermometer's levels to channels; to any
                               shape that becomes a map again: a channel shuffle, pixels to channels
Squeeze, Identity              everywhere
Dropout                        in evaluation mode, where it changes nothing
Cast                           to floats; to integers where these hold all values
Shape                          everywhere; it becomes a constant
Softmax, LogSoftmax, Sigmoid,  behind the logits, where it is left out
ArgMax, TopK
=============================  ========================================================================================
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LayerBuilder
from bnn_perception.importers.fold.signal import Signal, is_float
from bnn_perception.importers.fold.thresholds import Quantization, Threshold
from bnn_perception.importers.onnx import affine, products, quantizers, shapes, signs, stages
from bnn_perception.importers.onnx.node import Node

if TYPE_CHECKING:
    import onnx

#: Names of the standard's domain.
STANDARD = ("", "ai.onnx")
#: Domains in which exporters put the quantizers; an operator means the same in all of them.
QUANT_DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")


class Activations(enum.Enum):
    """Which inputs of a node may depend on the image; all others must be constants."""

    FIRST = enum.auto()
    ANY_ONE = enum.auto()
    SEVERAL = enum.auto()


class Numbers(enum.Flag):
    """Types of numbers with which an operator computes the same as with rational numbers; truth values are 0 and 1."""

    NONE = 0
    FLOATS = enum.auto()
    INTEGERS = enum.auto()
    BOOLEANS = enum.auto()
    EXACT = FLOATS | INTEGERS
    ANY = FLOATS | INTEGERS | BOOLEANS


class Tail(NamedTuple):
    """How an operator behind the logits (N, classes) finds the classes, whose order it keeps.

    Attributes:
        axis: the default of its attribute axis; None where it works on any.
        axis_before_13: the same before opset 13.
    """

    axis: int | None
    axis_before_13: int | None


#: How an operator changes the signal, and the layers of a binary net; it may give several, or a constant instead.
Change = Callable[[Node[Signal], LayerBuilder], "Signal | list[Signal] | NDArray[np.int64]"]
#: How an operator changes the stages of a float twin.
StageChange = Callable[[Node[stages.Tensor], stages.Chain], None]


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        name: its op_type.
        expressed: which of its nodes the model format can express, for the table.
        apply: gives the signal behind a node, or a constant; None where it can only follow the logits.
        domains: where it is defined.
        activations: which inputs may depend on the image.
        numbers: what its inputs may hold; :attr:`Numbers.NONE` where only their shape counts.
        takes_pad: whether it takes the padding of a Pad before it.
        moves: whether it takes numbers in any order, before a layer has picked them.
        tail: how it may follow the logits; None where it changes the arg max.
        stage: what it does in a float twin; None where none may hold it.
        run: evaluates it for constants; None where ``onnx.reference`` does.
    """

    name: str
    expressed: str
    apply: Change | None
    domains: tuple[str, ...] = STANDARD
    activations: Activations = Activations.FIRST
    numbers: Numbers = Numbers.FLOATS
    takes_pad: bool = False
    moves: bool = False
    tail: Tail | None = None
    stage: StageChange | None = None
    run: Callable[..., Any] | None = None

    def check(self, node: Node[Signal]) -> None:
        """Check that the operator may take what a node's inputs are.

        Raises:
            RefusalError: naming the reason.
        """
        if self.numbers == Numbers.NONE:
            return
        if len(node.taken) > 1 and self.activations != Activations.SEVERAL:
            raise RefusalError("combines two activations; only Add, Sub and Concat can")
        if node.place != 0 and self.activations == Activations.FIRST:
            raise RefusalError(f"takes the activation as its input {node.place + 1}")
        self._check_numbers(node.signal.dtype)

    def _check_numbers(self, dtype: np.dtype[Any]) -> None:
        takes_integers = bool(self.numbers & Numbers.INTEGERS)
        if dtype.kind == "b":
            if not self.numbers & Numbers.BOOLEANS:
                raise RefusalError("takes truth values; a Cast or a Where must stand before it")
        elif self.numbers == Numbers.BOOLEANS:
            raise RefusalError(f"takes {dtype.name}; only truth values can be chosen by")
        elif not is_float(dtype) and not takes_integers:
            raise RefusalError(f"takes {dtype.name}; a Cast to floats must stand before it")


def _signal(change: Callable[[Node[Signal]], Signal | NDArray[np.int64]]) -> Change:
    """An operator that changes the signal and no layer."""
    return lambda node, _: change(node)


def _sign(ask: Callable[[Node[Signal]], Threshold]) -> Change:
    """An operator that closes a layer."""
    return lambda node, layers: layers.sign(ask(node), node.source)


def _quantizer(ask: Callable[[Node[Signal]], Threshold | Quantization]) -> Change:
    """An operator that closes a layer, or gives the image fewer levels."""

    def change(node: Node[Signal], layers: LayerBuilder) -> Signal:
        asked = ask(node)
        return layers.sign(asked, node.source) if isinstance(asked, Threshold) else layers.quantize(asked)

    return change


def _chain(change: StageChange) -> StageChange:
    """An operator of the chain of a float twin."""
    return lambda node, chain: chain.follow(node, change)


def _branch(change: Callable[[Node[stages.Tensor]], stages.Tensor]) -> StageChange:
    """An operator of a shortcut in a float twin."""
    return lambda node, chain: chain.branch(node, change)


_COMPARED = "one threshold a channel, strict or not; the constant on either side"
_CONSTANTS = "with one constant, or one a channel"
_MATRIX = "of signs with weights of one magnitude in each output; of pixels and real values with any weights"
_PROBABILITIES = "behind the logits, where it is left out"

#: All records, in the order of the table.
RECORDS = (
    Operator(
        "Conv",
        "of signs with weights of one magnitude in each output channel, padded by the value of -1, 0 or +1; of pixels "
        "with any weights; of real values with any weights, padded by 0, in groups up to depthwise",
        products.conv,
        takes_pad=True,
        stage=_chain(stages.conv),
    ),
    Operator("Gemm", _MATRIX, products.gemm, stage=_chain(stages.gemm)),
    Operator("MatMul", _MATRIX, products.matmul, stage=_chain(stages.matmul)),
    Operator(
        "BipolarQuant",
        "one threshold a channel",
        _sign(signs.bipolar),
        domains=QUANT_DOMAINS,
        run=quantizers.run_bipolar_quant,
    ),
    Operator(
        "MultiThreshold",
        "one threshold a channel",
        _sign(signs.multi_threshold),
        domains=QUANT_DOMAINS,
        run=quantizers.run_multi_threshold,
    ),
    Operator("Sign", "one threshold a channel, which no value may meet", _sign(signs.sign)),
    *(
        Operator(
            name,
            "of 1 bit: one threshold a channel; of at most 8 bits on the image: a table of levels",
            _quantizer(signs.quant),
            domains=QUANT_DOMAINS,
            run=quantizers.run_quant,
        )
        for name in ("Quant", "IntQuant")
    ),
    *(
        Operator(
            name,
            _COMPARED,
            _sign(signs.comparison),
            activations=Activations.ANY_ONE,
            numbers=Numbers.EXACT,
        )
        for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    Operator("Not", "of truth values", _signal(affine.negation), numbers=Numbers.BOOLEANS),
    Operator(
        "Where",
        "of truth values that choose between two constants",
        _signal(affine.where),
        activations=Activations.ANY_ONE,
        numbers=Numbers.BOOLEANS,
    ),
    Operator(
        "BatchNormalization",
        "of the channels, with fixed statistics",
        _signal(affine.batch_norm),
        stage=_chain(stages.batch_norm),
        run=quantizers.run_batch_norm,
    ),
    Operator(
        "Add",
        "with one constant, or one a channel; of two real values (a shortcut); of what was taken off before, which "
        "cancels",
        affine.add,
        activations=Activations.SEVERAL,
        numbers=Numbers.EXACT,
        stage=_chain(stages.add),
    ),
    Operator("Sum", "as Add, of two", affine.add, activations=Activations.SEVERAL),
    Operator(
        "Sub",
        "with one constant, or one a channel; of two real values; of what an Add adds again; on the image, with "
        "thresholds along a new axis: a thermometer code",
        affine.sub,
        activations=Activations.SEVERAL,
        numbers=Numbers.EXACT,
    ),
    Operator(
        "Mul",
        _CONSTANTS,
        _signal(affine.mul),
        activations=Activations.ANY_ONE,
        numbers=Numbers.EXACT,
    ),
    Operator("Div", _CONSTANTS, _signal(affine.div), activations=Activations.ANY_ONE),
    Operator("Neg", "everywhere", _signal(affine.negate), numbers=Numbers.EXACT),
    Operator("Relu", "of sums and real values", affine.relu, stage=_chain(stages.relu)),
    Operator("LeakyRelu", "of sums and real values", affine.leaky_relu),
    Operator("Abs", "of sums and real values", affine.absolute),
    Operator(
        "PRelu",
        "of sums and real values: one slope a channel",
        affine.prelu,
        activations=Activations.ANY_ONE,
    ),
    Operator(
        "Clip",
        "of sums and real values (Hardtanh); of pixels and signs where it changes nothing",
        affine.clip,
        stage=_chain(stages.clip),
    ),
    Operator(
        "Max",
        "of sums and real values, with one constant, or one a channel",
        affine.bounded,
        activations=Activations.ANY_ONE,
    ),
    Operator(
        "Min",
        "of sums and real values, with one constant, or one a channel",
        affine.bounded,
        activations=Activations.ANY_ONE,
    ),
    Operator(
        "MaxPool",
        "of sums, signs and real values, with any window, stride and padding",
        products.max_pool,
        takes_pad=True,
        stage=_chain(stages.max_pool),
    ),
    Operator(
        "Pad",
        "of height and width, with 0 or as a Conv or MaxPool behind it can; of channels with 0, of real values",
        shapes.pad,
    ),
    Operator(
        "AveragePool",
        "of sums and real values, with any window, stride and padding",
        products.average_pool,
        takes_pad=True,
        stage=_branch(stages.average_pool),
    ),
    Operator("GlobalAveragePool", "of sums and real values", products.global_average),
    Operator(
        "ReduceMean", "of sums and real values, over height, width or both", products.reduce_mean, moves=True
    ),
    Operator(
        "ReduceSum", "of sums and real values, over height, width or both", products.reduce_sum, moves=True
    ),
    Operator("GlobalMaxPool", "of sums, signs and real values", products.global_max),
    Operator(
        "ReduceMax",
        "of sums, signs and real values, over height, width or both",
        products.reduce_max,
        moves=True,
    ),
    Operator("Slice", "of channels, rows and columns, at any step", shapes.strided, moves=True),
    Operator("Gather", "of channels, rows and columns, by constant numbers", shapes.gather, moves=True),
    Operator("GatherND", "of channels, rows and columns, by constant numbers", shapes.gather, moves=True),
    Operator("Expand", "to its own shape", _signal(shapes.expand), numbers=Numbers.ANY, moves=True),
    Operator("Split", "of the channels of sums and real values", shapes.split),
    Operator(
        "Concat",
        "of sums and real values, along the channels",
        shapes.concat,
        activations=Activations.SEVERAL,
        stage=_branch(stages.concat),
    ),
    Operator("Tile", "of the channels of sums and real values", shapes.tile),
    Operator(
        "Unsqueeze",
        "of (N, features) to a map of one pixel; of the image, by the axis of a thermometer's levels behind channels",
        _signal(shapes.unsqueeze),
        numbers=Numbers.ANY,
    ),
    Operator("Transpose", "no arithmetic", shapes.transpose, numbers=Numbers.ANY, takes_pad=True, moves=True),
    Operator(
        "Flatten",
        "to (N, features)",
        shapes.flatten,
        numbers=Numbers.ANY,
        moves=True,
        stage=_chain(stages.flatten),
    ),
    Operator(
        "Reshape",
        "to (N, features), and of one pixel back; a thermometer's levels to channels; "
        "to any shape that becomes a map again: a channel shuffle, pixels to channels",
        shapes.reshape,
        numbers=Numbers.ANY,
        moves=True,
        stage=_chain(stages.reshape),
    ),
    Operator("Squeeze", "everywhere", shapes.squeeze, numbers=Numbers.ANY, moves=True),
    Operator(
        "Identity",
        "everywhere",
        _signal(shapes.keep),
        numbers=Numbers.ANY,
        moves=True,
        tail=Tail(None, None),
        stage=_chain(stages.keep),
    ),
    Operator(
        "Dropout",
        "in evaluation mode, where it changes nothing",
        _signal(shapes.dropout),
        stage=_chain(stages.keep),
    ),
    Operator(
        "Cast",
        "to floats; to integers where these hold all values",
        _signal(shapes.cast),
        numbers=Numbers.ANY,
    ),
    Operator(
        "Shape", "everywhere; it becomes a constant", _signal(shapes.shape), numbers=Numbers.NONE, moves=True
    ),
    Operator("Softmax", _PROBABILITIES, None, tail=Tail(-1, 1)),
    Operator("LogSoftmax", _PROBABILITIES, None, tail=Tail(-1, 1)),
    Operator("Sigmoid", _PROBABILITIES, None, tail=Tail(None, None)),
    Operator("ArgMax", _PROBABILITIES, None, tail=Tail(0, 0)),
    Operator("TopK", _PROBABILITIES, None, tail=Tail(-1, -1)),
)

#: The operators that the readers know, by their names.
OPERATORS = {operator.name: operator for operator in RECORDS}


def find(proto: onnx.NodeProto) -> Operator | None:
    """The record of a node's operator; None where there is none in the node's domain."""
    operator = OPERATORS.get(proto.op_type)
    return operator if operator is not None and proto.domain in operator.domains else None


def table() -> list[str]:
    """The lines of the table in this module's docstring: neighbours of which the same can be expressed share a row."""
    rows: list[tuple[list[str], str]] = []
    for operator in RECORDS:
        if rows and rows[-1][1] == operator.expressed:
            rows[-1][0].append(operator.name)
        else:
            rows.append(([operator.name], operator.expressed))
    left, right = 29, 88
    rule = f"{'=' * left}  {'=' * right}"
    lines = [rule]
    for names, expressed in rows:
        cells = textwrap.wrap(", ".join(names), left), textwrap.wrap(expressed, right)
        for index in range(max(map(len, cells))):
            first, second = (cell[index] if index < len(cell) else "" for cell in cells)
            lines.append(f"{first:{left}}  {second}".rstrip())
    return [*lines, rule]
