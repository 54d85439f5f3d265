"""The faults that ``make mutants`` puts into the package, and its table of modules and tests."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "mutants"
sys.path.insert(0, str(TOOL))

import mutate  # noqa: E402
import run  # noqa: E402


def changes(source: str) -> set[str]:
    return {mutant.after for mutant in mutate.mutants(source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"(a <= b)", "(a >= b)"}),
        ("0 <= a", {"(0 < a)", "(0 > a)", "1 <= a", "(-1) <= a"}),
        ("x = a is None", {"x = (a is not None)"}),
        ("a + b", {"(a - b)"}),
        ("'text' + b", set()),
        ("a and b", {"(a or b)", "(a)", "(b)"}),
        ("x = not a", {"x = (a)"}),
        ("x = -a", {"x = (a)"}),
        ("x = True", {"x = False"}),
        ("x = 0.5", {"x = 1.0"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = f(a, key=b)", {"x = f(a)"}),
        ("x = a[:n]", {"x = a[:]"}),
        ("x = a if b else c", {"x = a if (not (b)) else c"}),
        ("x = [a for a in b if a.c]", {"x = [a for a in b if True]"}),
        ("x += a", {"x -= a", "x = a"}),
        ("f(a)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("del a[b]", {"pass"}),
        ("while a:\n    break", {"while (not (a)):", "continue"}),
        ("raise ValueError(f'{a + 1}')", {"pass"}),
        ("try:\n    x = a\nexcept (B, C):\n    pass", {"except (B,):", "except (C,):"}),
        ("def f(a: int = 1) -> int | None:\n    '''Doc 1.'''", {"def f(a: int = 2) -> int | None:"}),
        ("if TYPE_CHECKING:\n    f(1)", set()),
        ("@d(1)\ndef f(): ...", set()),
    ],
)
def test_faults(source: str, expected: set[str]) -> None:
    found = changes(source)
    assert expected <= found
    if not expected:
        assert found == set()


def test_a_fault_changes_its_lines_alone_and_names_its_place() -> None:
    source = (
        "# ä\nclass A:\n    def f(self):\n        return ('ä', 1 <\n                self.b)  # why\n\nx = 3\n"
    )
    mutant = next(m for m in mutate.mutants(source) if ">=" in m.after)
    assert (mutant.where, mutant.line) == ("A.f", 4)
    assert mutant.before == "return ('ä', 1 < self.b) # why"
    assert mutant.after == "return ('ä', (1 >= self.b)) # why"
    before, after = source.splitlines(), mutant.source.splitlines()
    assert len(before) == len(after)
    assert (before[:3], before[5:]) == (after[:3], after[5:])
    moved = mutate.mutants("\n\n" + source)
    assert mutant.key in {other.key for other in moved}


def test_every_fault_can_be_compiled_and_differs() -> None:
    source = (run.ROOT / run.PACKAGE / "frames" / "sources.py").read_text(encoding="utf-8")
    found = mutate.mutants(source)
    whole = ast.dump(ast.parse(source))
    assert len(found) > 100
    assert all(ast.dump(ast.parse(mutant.source)) != whole for mutant in found[::7])


def test_a_sample_is_drawn_by_its_seed() -> None:
    faults = [(Path("a.py"), mutant) for mutant in mutate.mutants("x = [1, 2, 3, 4, 5, 6, 7, 8, 9]")]
    first = run.draw(faults, 5, "0 a")
    assert first == run.draw(faults, 5, "0 a") != run.draw(faults, 5, "1 a")
    assert first == sorted(first, key=faults.index)
    assert run.draw(faults, 100, "0") == faults


def test_the_table_names_files_that_exist_each_once() -> None:
    files = [file for target in run.TARGETS.values() for file in run.files_of(target)]
    assert len(files) == len(set(files))
    tests = {test for target in run.TARGETS.values() for test in (*target.tests, *target.without)}
    for file, _, name in (test.partition("::") for test in tests):
        text = (run.ROOT / "test" / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text or not name, f"{file}::{name}"


def test_faults_that_are_told_to_change_nothing_exist() -> None:
    """A line that has changed since is judged anew."""
    known = run.known_equivalents()
    files = [run.ROOT / file for target in run.TARGETS.values() for file in run.files_of(target)]
    found = {mutant.key for file in files for mutant in mutate.mutants(file.read_text(encoding="utf-8"))}
    assert [key for key in known if key not in found] == []
    assert all(why.strip() for why in known.values())
