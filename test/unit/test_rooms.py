"""Which room of the package may import which; ARCHITECTURE.md shows the same table.

A room is a module or folder right below ``bnn_perception``. Imports count wherever they stand, those inside a function
too; ``from a import b`` is an import of ``a.b`` where that is a module.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: The rooms that the modules of each room may import, from the ground up.
ROOMS = {
    "errors": "",
    "native": "",
    "files": "",
    "resources": "",
    "net": "errors files",
    "scenes": "",
    "frames": "net native scenes errors",
    "importers": "net frames errors files",
    "backends": "net frames importers native errors resources",
    "classifier": "backends frames net errors",
    "collection": "frames net files errors",
    "evaluation": "classifier backends frames net errors",
    "training": "evaluation importers backends scenes frames net files errors",
    "ros": "classifier backends collection frames scenes net resources files errors",
    "cli": "ros training evaluation classifier backends importers collection frames scenes net resources files native "
    "errors",
    "__init__": "classifier backends frames net resources errors",
    "__main__": "cli",
}


def find_modules():
    """The path of each module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "bnn_perception").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = find_modules()


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(source, known):
    """The modules among ``known`` that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & set(known)


EDGES = {name: imported(path.read_text(encoding="utf-8"), MODULES) - {name} for name, path in MODULES.items()}


def circles(edges):
    """Groups of modules that import one another around, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = set()
            while name not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(group)

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\nfrom a import c, other\ndef f():\n    from a.d import thing\nimport numpy\n"
    assert imported(source, {"a", "a.b", "a.c", "a.d"}) == {"a", "a.b", "a.c", "a.d"}
    assert "bnn_perception.backends.choose" in EDGES["bnn_perception.backends"]
    assert "bnn_perception.backends.cuda.binary" in EDGES["bnn_perception.backends.choose"]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_room_is_in_the_table():
    assert {room(name) for name in MODULES} == set(ROOMS)


def test_the_table_leads_one_way():
    assert not circles({name: set(others.split()) for name, others in ROOMS.items()})


def test_no_room_imports_what_the_table_does_not_allow():
    wrong = [
        f"{name} imports {other}"
        for name, others in EDGES.items()
        for other in sorted(others)
        if room(other) not in (room(name), *ROOMS[room(name)].split())
    ]
    assert not wrong


def test_backends_import_the_protocol_and_not_their_entrance():
    """Whoever makes backends is above all of them."""
    inside = [name for name in MODULES if name.startswith("bnn_perception.backends.")]
    assert len(inside) > 20
    assert not [name for name in inside if "bnn_perception.backends" in EDGES[name]]


def test_no_two_files_form_a_circle():
    assert not circles(EDGES)


def test_the_architecture_page_shows_the_same_table():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    shown = {name: set(re.findall(r"`(\w+)`", others)) for name, _, others in rows}
    assert shown == {name: set(others.split()) for name, others in ROOMS.items()}


def test_the_drawing_has_every_room_above_what_it_imports():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawing = text.split("## The rooms")[1].split("```")[1]
    # The rooms of a line stand left, their explanations behind them in a column of their own.
    lines = [re.findall(r"\w+", line[:41]) for line in drawing.strip("\n").splitlines()]
    height = {name: number for number, names in enumerate(lines) for name in names}
    assert set(height) == {name for name in ROOMS if not name.startswith("__")}
    for name, own in height.items():
        for other in ROOMS[name].split():
            assert height[other] >= own, f"{name} stands below {other}, which it imports"
