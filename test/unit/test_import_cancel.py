"""Signs whose gradient is another one's: what a graph takes off and adds again is left out, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_import_qonnx import Graph, check, with_constant

from bnn_perception.importers import ImporterError
from bnn_perception.importers.onnx.cancel import shorten
from bnn_perception.importers.onnx.read import read
from bnn_perception.net.layers import BinaryConv2d, InputConv2d, OutputDense

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")


def normed() -> Graph:
    return Graph().conv(3, 5, pads=1).norm(5)


def of(g: Graph, tensor: str, op: str, *inputs: str) -> str:
    """The name of what a node gives of a tensor; the graph goes on from there."""
    g.tensor = tensor
    return g.node(op, *inputs).tensor


def sign(g: Graph, x: str) -> str:
    return of(g, of(g, x, "GreaterOrEqual", g.constant(0)), "Where", g.constant(1), g.constant(-1))


def polynomial(g: Graph, x: str) -> str:
    """Parabolas between -1 and 1, whose slope is Bi-Real Net's gradient of a sign; products of activations."""
    square, twice = of(g, x, "Mul", x), of(g, x, "Mul", g.constant(2))
    rising, falling = of(g, square, "Add", twice), of(g, of(g, square, "Neg"), "Add", twice)
    parts = [g.constant(-1), rising, falling, g.constant(1)]
    result = parts[0]
    for below, (value, at) in zip(parts, zip(parts[1:], (-1, 0, 1))):
        mask = of(g, of(g, x, "Less", g.constant(at)), "Cast")
        g.nodes[-1].attribute.append(onnx.helper.make_attribute("to", 1))
        kept = of(g, result if below is not parts[0] else below, "Mul", mask)
        other = of(g, value, "Mul", of(g, g.constant(1), "Sub", mask))
        result = of(g, kept, "Add", other)
    return result


def clip(g: Graph, x: str) -> str:
    return of(g, x, "Clip", g.constant(-1), g.constant(1))


SURROGATES: dict[str, Callable[[Graph, str], str]] = {
    "x": lambda g, x: x,
    "clip": clip,
    "tanh": lambda g, x: of(g, of(g, x, "Mul", g.constant(np.ones((5, 1, 1)))), "Tanh"),
    "polynomial": polynomial,
}
#: Sums of a sign s of which the surrogate c cancels.
FORMS: dict[str, Callable[[Graph, str, str], str]] = {
    "s - c + c": lambda g, s, c: of(g, of(g, s, "Sub", c), "Add", c),
    "c + (s - c)": lambda g, s, c: of(g, c, "Add", of(g, s, "Sub", c)),
    "c - c + s": lambda g, s, c: of(g, of(g, c, "Sub", c), "Add", s),
    "s + (c - c)": lambda g, s, c: of(g, s, "Add", of(g, c, "Sub", c)),
    "c - (c - s)": lambda g, s, c: of(g, c, "Sub", of(g, c, "Sub", s)),
    "s + c - c": lambda g, s, c: of(g, of(g, s, "Add", c), "Sub", of(g, c, "Identity")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_only_the_sign_is_left(tmp_path: Path, surrogate: str, form: str) -> None:
    """The layers are those of a plain stack; the graph itself, with all that cancels, gives the same classes."""
    g = normed()
    x = g.tensor
    s = sign(g, x)
    g.tensor = FORMS[form](g, s, SURROGATES[surrogate](g, x))
    model = check(g.conv(5, 6).norm(6).bipolar().node("Flatten").matmul(6 * 6 * 8, 3), tmp_path)
    assert [type(layer) for layer in model.layers] == [InputConv2d, BinaryConv2d, OutputDense]


def test_a_sign_that_is_a_sum_itself(tmp_path: Path) -> None:
    """2 * (x >= 0) - 1"""
    g = normed()
    x = g.tensor
    holds = of(g, of(g, x, "GreaterOrEqual", g.constant(0)), "Cast")
    g.nodes[-1].attribute.append(onnx.helper.make_attribute("to", 1))
    s = of(g, of(g, holds, "Mul", g.constant(2)), "Sub", g.constant(1))
    g.tensor = FORMS["s + (c - c)"](g, s, clip(g, x))
    check(g.node("Flatten").matmul(400, 3), tmp_path)


def test_shortcuts_stay(tmp_path: Path) -> None:
    """Sums of which nothing, or not all but one term, cancels are computed as they stand."""
    g = normed()
    x = g.tensor
    y = of(g, sign(g, x), "Conv", g.weights(5, 5, 1, 1))
    g.tensor = of(g, of(g, x, "Sub", y), "Add", of(g, y, "Add", y))
    model = check(g.bipolar().node("Flatten").matmul(400, 3), tmp_path)
    assert [layer.kind for layer in model.layers].count("add") == 3


@pytest.mark.parametrize("spread", [(5, 8, 1), (2, 1, 1, 1)])
def test_what_would_spread_the_sign_is_refused(tmp_path: Path, spread: tuple[int, ...]) -> None:
    """(s - c) + c has the shape of c where that is larger; the sign alone has not."""
    g = Graph().conv(3, 5, pads=1).node("GlobalAveragePool")
    x = g.tensor
    s = sign(g, x)
    g.tensor = FORMS["s - c + c"](g, s, of(g, x, "Mul", g.constant(np.ones(spread))))
    path = g.node("Flatten").matmul(5, 3).save(tmp_path / "net.onnx")
    with pytest.raises(
        ImporterError, match=r"\(Identity\): takes off 't\d+' and adds it again, which is not known"
    ):
        read(path)


def test_what_cancels_may_be_of_unknown_shape(tmp_path: Path) -> None:
    g = normed()
    x = g.tensor
    s = sign(g, x)
    g.tensor = FORMS["s - c + c"](g, s, of(g, x, "CumSum", g.constant(1, np.int64)))
    with pytest.raises(ImporterError, match="which is not known to have the shape of what is left"):
        read(with_constant(g, "Mul", 2.0).conv(5, 5).save(tmp_path / "net.onnx"))


def test_sums_of_sums_cost_little() -> None:
    """A chain in which each sum takes the one before twice has 2^n terms; few of them are opened."""
    make = onnx.helper.make_node
    nodes = [make("Add", [f"t{i}", f"t{i}"], [f"t{i + 1}"]) for i in range(2000)]
    shortened, cancelled = shorten([*nodes, make("Sub", ["t2000", "t2000"], ["end"])], "t0")
    assert cancelled == {}
    assert [node.op_type for node in shortened] == ["Add"] * 2000 + ["Sub"]
