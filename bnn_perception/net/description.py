"""Reads and writes ``model.yaml``: YAML of plain values (texts, numbers, true and false, lists, mappings).

What is read is untrusted. Its size is bounded before it is parsed, and the number and depth of its values before any is
made, references counted as what they stand for: so neither time nor memory is more than a model of the largest size
takes, and nothing in it contains itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import yaml

from bnn_perception.net.checks import ModelError

#: The most values, nested so deep, each so many characters long; a model of the most layers has half as many.
MAX_VALUES, MAX_DEPTH, MAX_CHARACTERS = 1 << 17, 32, 1 << 16


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes dates for texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [entry for entry in resolvers if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse(text: str) -> Any:
    """The value that a text in YAML stands for.

    Raises:
        ModelError: where it is no YAML of plain values, or over a limit; with a line and no part of the text.
    """
    try:
        _check(text)
        return yaml.load(text, Loader=_Loader)
    except ModelError:
        raise
    # Of PyYAML, or of Python where PyYAML converts a number. The text may be of a file that is none of the reader's
    # business, and their messages quote it.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise ModelError(f"is not YAML{where}") from None


def _check(text: str) -> None:
    """Refuse a text whose values are too many, too deep or too long, or that holds more than plain values."""
    closed: dict[str, int] = {}  # how many values an anchor stands for
    anchors: list[str | None] = []
    starts: list[int] = []
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        anchor = getattr(event, "anchor", None)
        line = event.start_mark.line + 1 if event.start_mark else 0
        if getattr(event, "tag", None) is not None:
            raise ModelError(f"line {line}: has a tag (!); a model is described by plain values")
        if isinstance(event, yaml.AliasEvent):
            # One that is not closed yet stands for something that would contain itself.
            if anchor not in closed:
                raise ModelError(f"line {line}: refers (*) to what does not end before it")
            count += closed[anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if len(event.value) > MAX_CHARACTERS:
                raise ModelError(
                    f"line {line}: a value of {len(event.value)} characters; it has at most {MAX_CHARACTERS}"
                )
            if anchor is not None:
                closed[anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            starts.append(count)
            anchors.append(anchor)
            count += 1
            if len(starts) > MAX_DEPTH:
                raise ModelError(f"line {line}: values are nested over {MAX_DEPTH} deep")
            if anchor is not None:
                closed.pop(anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            start, anchor = starts.pop(), anchors.pop()
            if anchor is not None:
                closed[anchor] = count - start
        if count > MAX_VALUES:
            raise ModelError(
                f"line {line}: over {MAX_VALUES} values, references (*) counted as what they stand for"
            )


class _Dumper(yaml.SafeDumper):
    """Block style for mappings, one line for lists of numbers."""


def _represent_list(dumper: yaml.SafeDumper, data: Sequence[Any]) -> yaml.Node:
    flat = all(isinstance(item, (int, float)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)


def to_yaml(description: Mapping[str, Any]) -> str:
    """The text that :func:`parse` reads."""
    return yaml.dump(dict(description), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
