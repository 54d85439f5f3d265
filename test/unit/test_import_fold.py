"""The arithmetic of the importers, which knows no file format."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.importers import fold
from bnn_perception.importers.fold.products import weighted_sums

#: Floats of nets, among them some whose common denominator is far beyond int64, and fractions that are no floats.
RATIONALS = st.one_of(
    st.floats(-1e3, 1e3).map(Fraction),
    st.integers(-2, 2).map(Fraction),
    st.fractions(-10, 10, max_denominator=1000),
)


@given(data=st.data())
def test_weighted_sums_are_those_of_the_fractions(data: st.DataObject) -> None:
    inputs = data.draw(st.integers(1, 6), "inputs")
    row = st.lists(st.integers(-(2**31), 2**31), min_size=inputs, max_size=inputs)
    taps = data.draw(st.lists(row, min_size=1, max_size=4), "taps")
    values = data.draw(st.lists(RATIONALS, min_size=inputs, max_size=inputs), "values")

    sums = weighted_sums(np.array(taps, dtype=np.int64), np.array(values, dtype=object))

    assert sums.tolist() == [sum(tap * value for tap, value in zip(row, values)) for row in taps]


def test_the_folder_knows_no_file_format() -> None:
    """A reader of another format must be able to use it."""
    for path in Path(fold.__file__).parent.glob("*.py"):
        assert "import onnx" not in path.read_text(encoding="utf-8"), path
        assert "importers.onnx" not in path.read_text(encoding="utf-8"), path


def test_weighted_sums_beyond_int64() -> None:
    """Each term fits int64, the sum of the two does not."""
    sums = weighted_sums(
        np.array([[2, 2], [1, -1]], dtype=np.int64), np.array([Fraction(2**61)] * 2, dtype=object)
    )
    assert sums.tolist() == [2**63, 0]
