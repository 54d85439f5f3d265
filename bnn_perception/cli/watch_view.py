"""What ``watch`` shows: for each node its engine, a row for each camera, and in words what is wrong.

It fits 80 columns; a wider terminal gives its columns to names and bars. Without Unicode, bars are of ASCII and labels
are spelled in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from bnn_perception.errors import printable
from bnn_perception.frames.annotate import ascii_text
from bnn_perception.ros.diagnostics import ERROR, FAILED, LOST, OK, REFUSED, STALE, WARN, CameraState
from bnn_perception.ros.latency import Percentiles
from bnn_perception.ros.watched import Watched, WatchedCamera, WatchedNode

#: What diagnostics call their levels, and how each is shown. A stale status (3) comes from aggregators alone.
LEVELS = {OK: ("OK", "green"), WARN: ("WARN", "bold yellow"), ERROR: ("ERROR", "bold red")}

#: Characters of a camera's name that are shown, its end; what tells cameras apart stands there.
CAMERA_WIDTH = 16


class Signs(NamedTuple):
    """What bars are made of, up to p50, from there to p95, and from there to p99; and what stands for a cut."""

    p50: str
    p95: str
    p99: str
    cut: str


UNICODE = Signs("█", "▓", "░", "…")
ASCII = Signs("#", "=", "-", "..")


def view(watched: Watched, now: float, plain: bool = False) -> RenderableType:
    """A view of all nodes.

    Args:
        watched: what is known of them.
        now: time.monotonic().
        plain: whether it is made of ASCII alone.
    """
    worst = max((c.state.latency.p99 for c in watched.cameras if c.state.latency), default=0.0)
    parts: list[RenderableType] = []
    for node in watched.nodes.values():
        parts += [Text()] if parts else []
        parts += _of_node(node, now, plain, worst)
    return Group(*parts)


def _of_node(node: WatchedNode, now: float, plain: bool, worst: float) -> list[RenderableType]:
    """Lines of a node; ``worst`` in milliseconds is what a whole bar stands for."""
    spell = ascii_text if plain else printable
    word, style = LEVELS.get(node.level, LEVELS[ERROR])
    state = node.state
    head = Text.assemble((spell(node.name), "bold"), "  ", state.lifecycle, "  ", (word, style))
    answers = (
        f"{state.model} on {state.backend}, {state.device}" if state.answers else f"{state.model}: no engine"
    )
    lines: list[RenderableType] = [head, Text(spell(answers))]
    if silence := node.silent_for(now):
        lines.append(_finding(ERROR, f"no diagnostics for {silence:.0f} s: has the node ended?", spell))
    if node.cameras:
        lines.append(_cameras(list(node.cameras.values()), now, plain, worst))
    if node.message not in ("", "OK"):
        lines.append(_finding(node.level, node.message, spell))
    for camera in node.cameras.values():
        if camera.message not in ("", "OK"):
            lines.append(_finding(camera.level, f"{camera.topic}: {camera.message}", spell))
    return lines


def _finding(level: int, message: str, spell: Callable[[str], str]) -> RenderableType:
    """What diagnostics say, its level before it and its lines below one another."""
    word, style = LEVELS.get(level, LEVELS[ERROR])
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(width=5)
    row.add_column(overflow="fold")  # paths and commands are there to be copied
    row.add_row(Text(word, style), Text(spell(message)))
    return row


def _cameras(cameras: list[WatchedCamera], now: float, plain: bool, worst: float) -> RenderableType:
    spell = ascii_text if plain else printable
    signs = ASCII if plain else UNICODE
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("camera", no_wrap=True)
    table.add_column("label", ratio=3, no_wrap=True, overflow="crop")
    for name in ("score", "Hz", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"to {worst:.3g} ms", ratio=2, min_width=11, no_wrap=True, overflow="crop")
    for name in ("p50", "p95", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("drops", justify="right", no_wrap=True)
    names = short_names([camera.topic for camera in cameras])
    for camera, name in zip(cameras, names):
        latency = camera.state.latency
        numbers = [_milliseconds(value) for value in latency[:3]] if latency else ["-"] * 3
        table.add_row(
            Text(_tail(spell(name), CAMERA_WIDTH, signs.cut)),
            _label(camera, spell),
            _score(camera),
            f"{camera.state.rate_out:.1f}",
            _age(camera, now),
            _Bar(latency, worst, signs) if latency else "",
            *numbers,
            _drops(camera.state),
        )
    return table


def short_names(topics: Sequence[str]) -> list[str]:
    """Names of topics without the parts that all begin with and all end with."""
    parts = [topic.split("/") for topic in topics]
    if len(parts) < 2:
        return list(topics)
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    while all(len(part) > 1 and part[-1] == parts[0][-1] for part in parts):
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


def _tail(text: str, width: int, cut: str) -> str:
    """The end of a name, which tells cameras apart."""
    return text if len(text) <= width else cut + text[len(text) - width + len(cut) :]


def _label(camera: WatchedCamera, spell: Callable[[str], str]) -> Text:
    if camera.answered_at is None:
        return Text("-", "dim")
    if camera.boxes == 0:
        return Text("no boxes", "dim")
    label = Text(spell(camera.label), "bold") if camera.label else Text("no label", "dim")
    if camera.boxes is not None and camera.boxes > 1:
        label = Text.assemble((f"{camera.boxes} boxes: ", "dim"), label)
    return label


def _score(camera: WatchedCamera) -> Text:
    if not camera.label:
        return Text("-", "dim")
    style = "red" if camera.score < 1 / 3 else "yellow" if camera.score < 2 / 3 else "green"
    return Text(f"{camera.score:.2f}", style)


def _age(camera: WatchedCamera, now: float) -> Text:
    """Seconds since the newest answer came."""
    if camera.answered_at is None:
        return Text("-", "dim")
    seconds = max(0.0, now - camera.answered_at)
    text = f"{seconds:.1f}s" if seconds < 100 else f"{seconds / 60:.0f}min"
    return Text(text, "bold red" if seconds > 2 else "")


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _drops(state: CameraState) -> Text:
    """Frames that got no answer since the start of the node."""
    count = sum(state.frames.get(kind, 0) for kind in (STALE, LOST, FAILED, REFUSED))
    return Text(str(count), "yellow" if count else "")


class _Bar:
    """A bar of the latency, as wide as its column."""

    def __init__(self, latency: Percentiles, worst: float, signs: Signs) -> None:
        self._latency, self._worst, self._signs = latency, worst, signs

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(bar(self._latency, self._worst, options.max_width, self._signs), Style(color="cyan"))


def bar(latency: Percentiles, worst: float, width: int, signs: Signs) -> str:
    """A bar of characters: up to p50, p95 and p99, ``worst`` milliseconds being the whole width."""
    text = ""
    for value, sign in zip(latency[:3], signs):
        end = max(1, round(width * min(value / worst, 1.0))) if worst > 0 else 0
        text += sign * (end - len(text))
    return text
