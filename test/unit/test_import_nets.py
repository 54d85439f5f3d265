"""Stored nets of every kind and exporter (test/nets): the class of the original, and backends that agree bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("numba", reason="numba is not installed")

from nets.table import COLUMNS, alike, answers, cases, frames, imported, on_page, table

from bnn_perception.backends.reference import ReferenceBackend

CASES = [(exporter, kind) for exporter in COLUMNS for kind in cases(exporter)]


def _needs(exporter: str) -> None:
    if exporter == "tflite":
        pytest.importorskip("tflite", reason="tflite is not installed (extra [tflite])")


@pytest.mark.parametrize(("exporter", "kind"), CASES)
def test_the_class_of_the_original(exporter: str, kind: str) -> None:
    _needs(exporter)
    theirs = cases(exporter)[kind].logits
    assert len(set(theirs.argmax(axis=1))) > 5
    # A sign that lands on 0 to within float32 may go either way, in the original as well.
    assert alike(exporter, kind) >= len(theirs) - len(theirs) // 24
    reference = ReferenceBackend(imported(exporter, kind)).logits(frames(len(theirs))[:2])
    np.testing.assert_array_equal(answers(exporter, kind)[:2].view(np.uint32), reference.view(np.uint32))


def test_the_table_of_the_page() -> None:
    _needs("tflite")
    assert on_page() == table(), "PYTHONPATH=.:test python -m nets.table writes it"
