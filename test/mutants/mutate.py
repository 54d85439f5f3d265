"""Small faults in a Python source: what a hand might type wrong, one at a time.

A fault is text for a stretch of the source, so that every other line, comments included, stays as it is. Annotations,
decorators, docstrings and what messages say are left alone: a fault there changes nothing that a program does.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
#: Functions that are taken for one another.
TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        where: the function or class that holds it, dotted; "" at the module's own level.
        line: number of the first line that it changes.
        before, after: those lines without and with it, white space made single.
        source: the whole module with it.
    """

    where: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Names the fault as long as its lines stay as they are, wherever they move."""
        return self.where, self.before, self.after


def mutants(source: str) -> list[Mutant]:
    """Every fault that the operators of this module make of a source that can be compiled, in order of place."""
    found = {}
    for where, node, text in _Faults(source).all():
        mutant = _apply(source, where, node, text)
        found[mutant.source] = mutant
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.after))


def _apply(source: str, where: str, node: ast.AST, text: str) -> Mutant:
    lines = source.splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno - 1  # type: ignore[attr-defined]
    # Columns of a syntax tree count bytes.
    head = lines[first].encode()[: node.col_offset].decode()  # type: ignore[attr-defined]
    tail = lines[last].encode()[node.end_col_offset :].decode()  # type: ignore[attr-defined]
    changed = head + text + tail
    before = " ".join("".join(lines[first : last + 1]).split())
    # The lines that follow keep their numbers, which logs and warnings may state.
    padding = "\n" * (last - first - text.count("\n"))
    rest = "".join(lines[last + 1 :])
    return Mutant(
        where, first + 1, before, " ".join(changed.split()), "".join(lines[:first]) + changed + padding + rest
    )


class _Faults:
    """Walks a module. Each fault is the place, the node to replace and the text to put there."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._scope: list[str] = []

    def all(self) -> Iterator[tuple[str, ast.AST, str]]:
        yield from self._visit(ast.parse(self._source))

    def _visit(self, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
        if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)) or _is_for_type_checkers(node):
            return
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named:
            self._scope.append(node.name)  # type: ignore[attr-defined]
        for text in self._texts(node):
            yield ".".join(self._scope), node, text
        for place, text in self._parts(node):
            yield ".".join(self._scope), place, text
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self._visit(child)
        if named:
            self._scope.pop()

    def _texts(self, node: ast.AST) -> Iterator[str]:
        """What may stand in a node's own place."""
        if isinstance(node, ast.Compare):
            for index, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    changed = copy.deepcopy(node)
                    changed.ops[index] = other()
                    yield f"({ast.unparse(changed)})"
        elif isinstance(node, ast.BinOp) and not _is_text(node.left) and not _is_text(node.right):
            if type(node.op) in ARITHMETIC:
                changed_op = copy.deepcopy(node)
                changed_op.op = ARITHMETIC[type(node.op)]()
                yield f"({ast.unparse(changed_op)})"
        elif isinstance(node, ast.BoolOp):
            other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield f"({ast.unparse(ast.BoolOp(other_op, node.values))})"
            for index in range(len(node.values)):
                rest = node.values[:index] + node.values[index + 1 :]
                kept = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                yield f"({ast.unparse(kept)})"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
            yield f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, bool):
                yield str(not node.value)
            elif isinstance(node.value, int):
                yield str(node.value + 1)
                yield f"({node.value - 1})"
            elif isinstance(node.value, float):
                yield repr(node.value * 2 or 1.0)
        elif isinstance(node, ast.Call):
            yield from _call_texts(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            for bound in ("lower", "upper"):
                if getattr(node.slice, bound) is not None:
                    without = copy.deepcopy(node)
                    setattr(without.slice, bound, None)
                    yield ast.unparse(without)
        elif isinstance(node, ast.Continue):
            yield "break"
        elif isinstance(node, ast.Break):
            yield "continue"
        elif isinstance(node, ast.Raise) or _is_work(node):
            yield "pass"
        elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
            other_assign = copy.deepcopy(node)
            other_assign.op = ARITHMETIC[type(node.op)]()
            yield ast.unparse(other_assign)
            yield f"{ast.unparse(node.target)} = {ast.unparse(node.value)}"

    def _parts(self, node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        """What may stand in the place of a part of a node."""
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            if not isinstance(node.test, (ast.Compare, ast.Constant)):
                yield node.test, f"(not ({ast.unparse(node.test)}))"
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield test, "True"
        elif isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple):
            for index in range(len(node.type.elts)):
                rest = node.type.elts[:index] + node.type.elts[index + 1 :]
                yield node.type, f"({', '.join(ast.unparse(item) for item in rest)},)"


def _call_texts(node: ast.Call) -> Iterator[str]:
    if isinstance(node.func, ast.Name) and node.func.id in TWINS:
        twin = copy.deepcopy(node)
        twin.func = ast.Name(TWINS[node.func.id], ast.Load())
        yield ast.unparse(twin)
    for index, keyword in enumerate(node.keywords):
        # Without a default of its own a missing argument is a TypeError, which any test notices.
        if keyword.arg is not None:
            without = copy.deepcopy(node)
            del without.keywords[index]
            yield ast.unparse(without)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    )


def _is_work(node: ast.AST) -> bool:
    """Whether a statement does something that the statements after it do not name: a call, a change of an object."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.Call, ast.Await))
    if isinstance(node, ast.Assign):
        return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
    return isinstance(node, ast.Delete)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
