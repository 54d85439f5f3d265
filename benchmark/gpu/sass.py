"""Reads the loops out of a kernel's machine code (SASS) as nvdisasm prints it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_FUNCTION = re.compile(r"\.text\.(\w+):")
_LABEL = re.compile(r"(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_BRANCH = re.compile(r"`\((\.L_x_\d+)\)")
# Fills the code up to whole lines after the last branch.
_FILLER = "NOP"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel.

    Attributes:
        address: in the kernel's code, bytes.
        opcode: with its modifiers, ``LOP3.LUT`` say.
        target: address that a branch goes to, None for everything else.
    """

    address: int
    opcode: str
    target: int | None = None

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


def kernels(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel in nvdisasm's output."""
    found: dict[str, list[Instruction]] = {}
    for name, lines in _functions(text.splitlines()):
        labels: dict[str, int] = {}
        raw: list[tuple[int, str, str]] = []
        waiting: list[str] = []
        for line in lines:
            label, instruction = _LABEL.match(line.strip()), _INSTRUCTION.search(line)
            if label:
                waiting.append(label[1])
            elif instruction and instruction[2] != _FILLER:
                address = int(instruction[1], 16)
                labels.update(dict.fromkeys(waiting, address))
                waiting.clear()
                raw.append((address, instruction[2], instruction[3]))
        found[name] = []
        for address, opcode, rest in raw:
            branch = _BRANCH.search(rest)
            found[name].append(Instruction(address, opcode, labels.get(branch[1]) if branch else None))
    return found


def _functions(lines: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    name: str | None = None
    body: list[str] = []
    for line in lines:
        begins = _FUNCTION.match(line.strip())
        if begins or line.lstrip().startswith("//-----"):
            if name is not None:
                yield name, body
            name, body = (begins[1] if begins else None), []
        elif name is not None:
            body.append(line)
    if name is not None:
        yield name, body


def innermost_loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The bodies of the loops that hold no other loop, in order; a branch back to itself at the end is no loop."""
    spans = sorted({(i.target, i.address) for i in code if i.target is not None and i.target < i.address})
    inner = [
        (first, last)
        for first, last in spans
        if not any(other != (first, last) and first <= other[0] and other[1] <= last for other in spans)
    ]
    return [[i for i in code if first <= i.address <= last] for first, last in inner]


def count(code: Iterable[Instruction]) -> Counter[str]:
    """How many instructions of each name."""
    return Counter(instruction.name for instruction in code)
