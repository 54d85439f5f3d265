"""The records of the ONNX operators: their table, and that each is as good as its word."""

from __future__ import annotations

import pytest

from bnn_perception.importers.onnx import operators
from bnn_perception.importers.onnx.operators import OPERATORS, STANDARD, Operator

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")


def test_the_docstring_holds_the_table_of_the_records() -> None:
    assert operators.__doc__ is not None
    lines = operators.__doc__.splitlines()
    rules = [index for index, line in enumerate(lines) if line.startswith("=")]
    assert lines[rules[0] : rules[-1] + 1] == operators.table()


def test_every_name_has_one_record() -> None:
    assert len(operators.RECORDS) == len(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_a_record_is_of_an_operator_that_there_is(operator: Operator) -> None:
    """A misspelt name would never be met. The quantizers are QONNX's, which the package onnx does not know."""
    assert onnx.defs.has(operator.name) == (operator.domains == STANDARD)
    assert operator.apply is not None or operator.tail is not None


@pytest.mark.parametrize(
    "operator",
    [op for op in OPERATORS.values() if op.tail and op.tail.axis is not None],
    ids=lambda op: op.name,
)
def test_operators_behind_the_logits_have_the_axis_of_the_standard(operator: Operator) -> None:
    assert operator.tail is not None
    for opset, axis in ((12, operator.tail.axis_before_13), (13, operator.tail.axis)):
        default = onnx.defs.get_schema(operator.name, opset).attributes["axis"].default_value
        assert onnx.helper.get_attribute_value(default) == axis
