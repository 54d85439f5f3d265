"""The pages of docs/ say what the code says: the API, the model folder, the messages, the files that a change needs."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import bnn_perception
import bnn_perception.net

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")]), ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


# The API.


def api_page():
    """The module scripts/api_page.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("api_page", ROOT / "scripts" / "api_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_page_is_what_the_docstrings_say():
    assert page("api.md") == api_page().page(), "run python scripts/api_page.py"


def test_the_api_page_has_every_public_name_once():
    names = [name for section in api_page().SECTIONS.values() for name in section]
    assert sorted(names) == sorted(bnn_perception.__all__)


# The model folder.

NET = [
    importlib.import_module(f"bnn_perception.net.{module.name}")
    for module in pkgutil.iter_modules(bnn_perception.net.__path__)
]

#: Scalar fields of layers with different numbers, so that a shape tells which of them it is made of.
SCALARS = {
    "channels": 3,
    "levels": 7,
    "in_channels": 65,
    "out_channels": 96,
    "kernel": (5, 2),
    "stride": (1, 1),
    "padding": (0, 0),
    "pool": None,
    "padding_value": -1,
    "groups": 1,
    "before": 1,
    "after": 1,
    "counts_padding": True,
    "in_shape": (4, 6, 33),
    "out_features": 11,
}
#: What the words of the page stand for in the shapes.
SIZES = {
    "kernel y": 5,
    "kernel x": 2,
    "words(in_channels)": 3,
    "in_channels / groups": 65,
    "height * width * words(channels)": 4 * 6 * 2,
    "256": 256,
    **{name: value for name, value in SCALARS.items() if isinstance(value, int) and value > 1},
}

(LAYER_KINDS,) = {
    id(module.LAYER_KINDS): module.LAYER_KINDS for module in NET if hasattr(module, "LAYER_KINDS")
}.values()


def described(kind):
    """The names of a kind's scalar fields, and its arrays with their shapes and types, as the page states them."""
    section = page("model-folder.md").split(f"### `{kind}`\n")[1].split("\n#")[0]
    (line,) = re.findall(r"^Fields: (.*)\.$", section, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \((.*)\) \|$", section, re.MULTILINE)
    arrays = {name: (tuple(SIZES[size] for size in shape.split(", ")), dtype) for name, dtype, shape in rows}
    return set(re.findall(r"`(\w+)`", line)), arrays


def make(kind):
    """A layer of a kind made of what the page says; its own validation checks every shape and type."""
    scalars, arrays = described(kind)
    values = {name: np.zeros(shape, dtype) for name, (shape, dtype) in arrays.items()}
    return LAYER_KINDS[kind](name="layer", **{name: SCALARS[name] for name in scalars}, **values)


def test_every_layer_kind_has_a_section():
    kinds = re.findall(r"^### `(\w+)`$", page("model-folder.md"), re.MULTILINE)
    assert sorted(kinds) == sorted(LAYER_KINDS)


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_fields_and_arrays_of_a_layer_are_those_of_the_page(kind):
    scalars, arrays = described(kind)
    assert {"name", "inputs", *scalars, *arrays} == {
        field.name for field in dataclasses.fields(LAYER_KINDS[kind])
    }
    assert make(kind).kind == kind


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_another_shape_or_type_would_be_refused(kind):
    layer = make(kind)
    for array in described(kind)[1]:
        value = getattr(layer, array)
        for wrong in (
            np.zeros((*value.shape[:-1], value.shape[-1] + 1), value.dtype),
            value.astype(np.float64),
        ):
            with pytest.raises(bnn_perception.ModelError, match=array):
                dataclasses.replace(layer, **{array: wrong})


def test_limits_are_those_of_the_code():
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| `(\w+)` \|$", page("model-folder.md"), re.MULTILINE)
    limits = {
        name: value
        for module in NET
        for name, value in vars(module).items()
        if name.startswith("MAX_") and module.__name__ != "bnn_perception.net.bits"
    }
    stated = {name: int(number) for number, name in rows}
    assert set(stated) <= set(limits)
    assert {name: stated.get(name) for name in limits} == limits


# The messages.


def sentences(folder, names=None):
    """The texts in the sources below a folder, each on one line and with … for what is filled in.

    Args:
        folder: of the package.
        names: of the functions and classes whose arguments are taken; None takes every text.
    """

    def text(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(text(value) for value in node.values)
        return "…" if isinstance(node, ast.FormattedValue) else ""

    found = []
    for path in sorted((ROOT / "bnn_perception" / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if names is None:
                found.append(text(node))
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                found += [text(argument) for argument in node.args if name in names]
    return [" ".join(sentence.split()) for sentence in found if sentence]


def pattern(quote):
    return re.compile(".*".join(map(re.escape, quote.split("…"))))


QUOTES = [
    quote
    for line in page("troubleshooting.md").split("## It runs, but")[0].splitlines()
    if line.startswith("| `")
    for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])
]


def test_there_are_quotes():
    assert len(QUOTES) > 100


def test_every_quoted_sentence_is_in_the_code():
    said = "\n".join(sentences("."))
    missing = [quote for quote in QUOTES if not pattern(quote).search(said)]
    assert not missing


def test_diagnostics_and_refused_frames_are_on_the_page():
    """What the node finds wrong has a row, or is quoted above the rows."""
    quotes = [
        pattern(quote)
        for quote in re.findall(r"`([^`\n]+)`", page("troubleshooting.md"))
        if len(quote.replace("…", "")) > 8  # shorter ones are in many sentences
    ]
    said = [text for text in sentences("ros", {"find", "RefusedFrame"}) if len(text.split()) > 2]
    assert len(said) > 10
    assert not [text for text in said if not any(quote.search(text) for quote in quotes)]


# The Jetson.


def test_every_command_for_a_jetson_says_whether_it_was_checked():
    blocks = re.findall(r"```bash\n(.*?)```", page("jetson.md"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) > 20
    assert not [line for line in lines if not re.search(r"  +# .*\bchecked\b", line)]


# What a change needs.


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_files_that_a_page_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w/.-]+/[\w.-]*|[\w-]+\.(?:py|md|yaml|xml))`", text))
    assert len(paths) > 10
    ours = {path for path in paths if not path.startswith("../") and "_msgs/" not in path}
    # Folders of a data set are the reader's.
    ours -= {path for path in ours if re.search(rf"^\| `{re.escape(path)}` \|", text, re.MULTILINE)}
    assert not [path for path in ours if not any((root / path).exists() for root in PLACES)]


def test_a_layer_kind_needs_at_most_seven_files():
    """Of the product: the record, the reference, a lowering and a kernel a backend, and what trains it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = text[text.index("**A layer kind.**") : text.index("**A backend.**")].split("\n1. ")[1]
    product = steps[: steps.index("\n6. ")]
    always = product.replace("`kernels/conv2d.cuh`", "").replace("a file in `kernels/`", "`kernels/new.cu`")
    files = set(re.findall(r"`([\w/]+\.(?:py|cu))`", always))
    assert {path for path in files if path.startswith("training/")} == {"training/kinds.py"}
    own_kernel, own_packing = {"kernels/new.cu"}, {"backends/cuda/packing.py"}
    assert files >= own_kernel | own_packing | {"native.py", "backends/cuda/specs.py"}
    for needless in (own_kernel, own_packing):
        assert len(files - needless - {"native.py"}) <= 7


#: Where paths of the pages begin; ``model.yaml`` is a file of every model.
PLACES = (ROOT, ROOT / "bnn_perception", ROOT / "models" / "road_signs")


def test_the_data_folder_is_the_one_that_the_tests_look_in():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    conftest = (ROOT / "test" / "conftest.py").read_text(encoding="utf-8")
    assert "`BNN_DATA`" in text
    assert '"BNN_DATA"' in conftest
    assert "`../shared/data`" in text
    assert 'ROOT.parent / "shared" / "data"' in conftest
    folders = set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE))
    used = set()
    for path in (ROOT / "test").rglob("*.py"):
        used |= {
            found.split("/")[0] for found in re.findall(r'\bdata\("([\w/.]+)"\)', path.read_text("utf-8"))
        }
    for path in (ROOT / "config" / "train").glob("*.yaml"):
        used |= set(re.findall(r"^ +(?:train|test|also): \[?(\w+)/", path.read_text("utf-8"), re.MULTILINE))
    assert used
    assert used <= folders
