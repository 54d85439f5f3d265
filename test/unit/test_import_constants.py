"""What a graph computes of constants: a file of some bytes must not take gigabytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnn_perception.importers import ImporterError, read
from bnn_perception.importers.errors import RefusalError

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")

from bnn_perception.importers.onnx.evaluate import evaluate_node  # noqa: E402
from bnn_perception.importers.onnx.operators import QUANT_DOMAINS  # noqa: E402

OPSET = 17
X, HUGE = np.zeros((3, 4), np.float32), 10**12
COLUMN, ROW = np.zeros((1 << 14, 1), np.float32), np.zeros((1, 1 << 14), np.float32)
ONE = np.ones((), np.float32)


def whole(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("op", "values", "attributes"),
    [
        ("Pad", [X, whole(0, 0, 0, HUGE), ONE], {}),
        ("Expand", [X, whole(HUGE, 3, 4)], {}),
        ("Tile", [X, whole(HUGE, 1)], {}),
        ("ConstantOfShape", [whole(HUGE, 2)], {}),
        ("Range", [*(np.array(value, np.int64) for value in (0, HUGE, 1))], {}),
        ("OneHot", [whole(1, 2), whole(HUGE), np.array([0.0, 1.0], np.float32)], {}),
        ("Add", [COLUMN, ROW], {}),
        ("MatMul", [COLUMN, ROW], {}),
        ("BipolarQuant", [COLUMN, ROW], {"domain": QUANT_DOMAINS[0]}),
        ("Quant", [COLUMN, ROW, ONE, ONE], {"domain": QUANT_DOMAINS[0]}),
        (
            "ConvTranspose",
            [np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 3, 3), np.float32)],
            {"strides": [1 << 20, 1 << 20]},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_large_results_are_refused_before_they_are_made(
    op: str, values: Sequence[NDArray[Any]], attributes: dict[str, Any]
) -> None:
    names = [f"input{index}" for index in range(len(values))]
    node = onnx.helper.make_node(op, names, ["result"], **attributes)
    with pytest.raises(RefusalError, match="gives [0-9]+ numbers; so large a constant is not evaluated"):
        evaluate_node(node, values, OPSET, 1 << 26)


def test_results_of_many_nodes_count_together(tmp_path: Path) -> None:
    """Each node doubles what the one before it gives, from three numbers on."""
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    doubled = [make("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=1, name=f"n{i}") for i in range(40)]
    graph = onnx.helper.make_graph(
        [*doubled, make("Add", ["image", "c40"], ["logits"])],
        "bomb",
        [info("image", 1, [1, 3, 8, 8])],
        [info("logits", 1, None)],
        [onnx.numpy_helper.from_array(np.ones((1, 3), np.float32), "c0")],
    )
    path = tmp_path / "bomb.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)]), path)
    with pytest.raises(ImporterError, match=r"node 'n2\d' \(Concat\): gives \d+ numbers; so large"):
        read(path)


def test_what_the_numbers_choose_is_evaluated() -> None:
    """Its size is known afterwards only, and is no larger than what it takes."""
    node = onnx.helper.make_node("NonZero", ["x"], ["result"])
    (result,) = evaluate_node(node, [np.array([[0.0, 2.0], [3.0, 0.0]], np.float32)], OPSET, 8)
    np.testing.assert_array_equal(result, [[0, 1], [1, 0]])
