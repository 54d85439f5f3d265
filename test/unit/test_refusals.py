"""Requests that could not be met: which of them still stands, in whatever order the threads come."""

from __future__ import annotations

from bnn_perception.ros.engine import EngineSpec
from bnn_perception.ros.parameters import EngineSettings
from bnn_perception.ros.refusals import Refusals


def spec(model):
    return EngineSpec(EngineSettings(model), None)


A, B, C = spec("a"), spec("b"), spec("c")

KEPT = "kept model a with backend binary on device auto, for model b with backend binary on device auto was refused: no"


def test_a_refusal_stands_until_a_newer_request_is_met():
    refusals = Refusals()
    refusals.note(B, "no", A)
    assert refusals.newest == KEPT
    refusals.engine_started(C)
    assert refusals.newest == ""


def test_the_engine_that_was_kept_may_start_after_the_refusal():
    """The loading thread has delivered it and gone on, before the inference thread took it."""
    refusals = Refusals()
    refusals.note(B, "no", A)
    refusals.engine_started(A)
    assert refusals.newest == KEPT


def test_each_refusal_is_judged_once_and_in_order():
    refusals = Refusals()
    refusals.note(B, "no", A)
    refusals.note(C, "neither", A)
    first, second = refusals.take()
    assert first == (B, KEPT)
    assert second[0] is C
    assert second[1].endswith("was refused: neither")
    assert refusals.take() == []
    assert refusals.newest == second[1]  # it has been judged, and stands


def test_a_first_request_that_is_refused_ends_the_node_and_stands_nowhere():
    refusals = Refusals()
    refusals.note(A, "no", None)
    assert refusals.take() == [(A, "no")]
    assert refusals.newest == ""
