"""Write docs/api.md from the docstrings of the public face: python scripts/api_page.py"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

#: The sections of the page, in order, and the names of the face in each.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Classify": ("load_classifier", "Classifier", "Prediction"),
    "Images": ("read_image", "find_images", "Frame"),
    "Models": ("load_model", "save_model", "find_model", "Model", "InputSpec"),
    "Backends": ("make_backend", "Backend"),
    "Errors": ("Error", "ModelError", "BackendError", "ImageError"),
    "Version": ("__version__",),
}

HEAD = """# The Python interface

Written by `python scripts/api_page.py` from the docstrings; a test fails where it is stale.

{summary}

The layers of a model, `bnn_perception.net`, are described with the [model folder](model-folder.md). Three scripts in
[examples](../examples) use what stands here.
"""


def page() -> str:
    """The text of the page."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import bnn_perception

    parts = [HEAD.format(summary="\n".join(markdown(inspect.getdoc(bnn_perception) or "")))]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += entry(name, getattr(bnn_perception, name))
    return "\n".join(parts).rstrip() + "\n"


def entry(name: str, value: Any) -> Iterator[str]:
    """One name of the face as Markdown, the methods and properties of a class included."""
    if isinstance(value, str):
        yield f"### `{name}`\n"
        yield "The version of the package, as `package.xml` states it.\n"
        return
    yield from described(f"### `{name}{signature(value)}`", inspect.getdoc(value))
    if not inspect.isclass(value):
        return
    for member, method in vars(value).items():
        if member.startswith("_") or not getattr(method, "__doc__", None):
            continue
        if isinstance(method, property):
            yield from described(f"#### `{name}.{member}`", inspect.getdoc(method))
        elif inspect.isfunction(method):
            yield from described(f"#### `{name}.{member}{signature(method)}`", inspect.getdoc(method))


def described(heading: str, docstring: str | None) -> Iterator[str]:
    """A heading and its docstring, each with an empty line after it."""
    yield f"{heading}\n"
    yield "\n".join(markdown(docstring or "")) + "\n"


def signature(value: Any) -> str:
    """The arguments of a function or class on one line; empty for protocols and exceptions."""
    if inspect.isclass(value) and (issubclass(value, Exception) or getattr(value, "_is_protocol", False)):
        return ""
    parameters = [
        parameter for name, parameter in inspect.signature(value).parameters.items() if name != "self"
    ]
    parts, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        text = parameter.name
        if parameter.default is not parameter.empty:
            default = repr(parameter.default)
            text += f"={'...' if default.startswith('<') else default}"
        parts.append(text)
    return f"({', '.join(parts)})"


def markdown(docstring: str) -> Iterator[str]:
    """The lines of a docstring in Google's style as Markdown."""
    lines = docstring.splitlines()
    section = code = began = False
    for index, line in enumerate(lines):
        if code:
            if line.strip() and not line.startswith("    "):
                yield from ("```", "")
                code = False
            else:
                # The empty line before the end of the block belongs to what follows it.
                rest = [later for later in lines[index:] if later.strip()]
                if line.strip() or (began and rest and rest[0].startswith("    ")):
                    began = True
                    yield line[4:]
                continue
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line):
            section = True
            yield from (f"**{line[:-1]}**", "")
        elif section and line.startswith("    "):
            item = re.match(r" {4}([\w, .*]+): (.*)", line)
            if item:
                names = ", ".join(f"`{name.strip()}`" for name in item[1].split(","))
                yield f"- {names}: {plain(item[2])}"
            else:
                first = section and not lines[index - 1].startswith("    ")
                yield f"{'- ' if first else '  '}{plain(line.strip())}"
        elif line.endswith("::"):
            text = plain(line[:-2].rstrip())
            if text:
                yield f"{text}:"
            yield from ("", "```python")
            code, began = True, False
        else:
            section = section and not line.strip()
            yield plain(line)
    if code:
        yield "```"


def plain(line: str) -> str:
    """A line without the roles of Sphinx and its double backticks."""
    line = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", line)
    return line.replace("``", "`")


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
