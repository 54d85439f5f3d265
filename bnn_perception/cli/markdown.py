"""Tables of the pages that commands write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; every column but the first is flushed right."""
    return [
        "",
        f"| {' | '.join(header)} |",
        f"|{'|'.join('---' if index == 0 else '---:' for index in range(len(header)))}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
