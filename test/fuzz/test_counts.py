"""`make fuzz` runs as many cases as the pages say, and `make test` a share of them."""

from __future__ import annotations

import re
from pathlib import Path

import fuzzing
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each case draws first, in order."""
    monkeypatch.delenv("FUZZ", raising=False)
    monkeypatch.delenv("FUZZ_CASE", raising=False)
    return []


@pytest.mark.parametrize("kind", ["onnx", "bnn_pynq", "float twins"])
def test_a_whole_run_has_all_cases_and_each_another_seed(
    monkeypatch: pytest.MonkeyPatch, ran: list[int], kind: str
) -> None:
    def case(rng: fuzzing.Generator) -> None:
        ran.append(int(rng.integers(1 << 62)))

    fuzzing.run(kind, case)
    share = list(ran)
    assert len(share) == int(fuzzing.CASES[kind] * fuzzing.SHARE[kind])
    ran.clear()
    monkeypatch.setenv("FUZZ", "1")
    fuzzing.run(kind, case)
    assert len(ran) == len(set(ran)) == fuzzing.CASES[kind] == 5000
    assert ran[: len(share)] == share
    ran.clear()
    monkeypatch.setenv("FUZZ_CASE", "7")
    fuzzing.run(kind, case)
    assert ran == share[7:8]


def test_the_pages_count_the_cases() -> None:
    assert (fuzzing.CASES["messages"], fuzzing.CASES["model folders"]) == (100_000, 20_000)
    total = f"{sum(fuzzing.CASES.values()):,}"
    for page in ("CONTRIBUTING.md", "Makefile"):
        assert re.search(rf"\b{total}\b", (ROOT / page).read_text(encoding="utf-8")), page
