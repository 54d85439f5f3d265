"""The public face: every name resolves, importing it costs nothing, and a classifier is one call away."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import bnn_perception
from bnn_perception import Classifier, Frame, find_model, load_model, make_backend
from bnn_perception.__main__ import COMMANDS
from bnn_perception.cli import execute

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", bnn_perception.__all__)
def test_names_resolve(name):
    value = getattr(bnn_perception, name)
    assert value is not None
    assert getattr(bnn_perception, name) is value  # found again, not made again
    assert name in dir(bnn_perception)


def test_names_are_those_of_the_modules():
    assert bnn_perception.Classifier.__module__ == "bnn_perception.classifier"
    assert bnn_perception.load_model.__module__.startswith("bnn_perception.net.")
    assert issubclass(bnn_perception.ModelError, bnn_perception.Error)
    assert issubclass(bnn_perception.BackendError, bnn_perception.Error)
    assert issubclass(bnn_perception.ImageError, bnn_perception.Error)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'Clasifier'"):
        _ = bnn_perception.Clasifier


def test_version_is_that_of_the_manifest():
    assert bnn_perception.__version__ == ET.parse(ROOT / "package.xml").getroot().findtext("version")
    assert re.fullmatch(r"\d+\.\d+\.\d+", bnn_perception.__version__)


@pytest.mark.parametrize(
    ("statement", "own"),
    [
        ("import bnn_perception", {"bnn_perception"}),
        (
            "from bnn_perception.__main__ import main; main(['--help'])",
            {"bnn_perception", "bnn_perception.__main__"},
        ),
    ],
)
def test_importing_it_imports_nothing_heavy(statement, own):
    """Only modules of the standard library, and of these none that reads files or starts threads."""
    program = (
        f"import sys; before = set(sys.modules); {statement}; print('#', *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = set(done.stdout.splitlines()[-1].split()[1:])
    assert own <= names
    assert {name.split(".")[0] for name in names - own} <= set(sys.stdlib_module_names)
    assert not names & {"asyncio", "logging", "multiprocessing", "subprocess", "threading", "xml.etree"}
    assert own == {name for name in names if name.startswith("bnn_perception")}


def test_from_a_name_to_answers():
    image = np.random.default_rng(1).integers(0, 256, (50, 60, 3)).astype(np.uint8)
    with bnn_perception.load_classifier("road_signs", backend="reference") as classifier:
        assert classifier.model.name == "road_signs"
        predictions = classifier.predict(image, top_k=3)
    model = load_model(find_model("road_signs"))
    assert [predictions] == Classifier(model, make_backend(model, "reference")).classify([Frame(image)], 3)
    assert [p.score for p in predictions] == sorted((p.score for p in predictions), reverse=True)
    assert all(p.label == model.labels[p.class_id] for p in predictions)


def test_grey_images_and_frames_are_taken():
    grey = np.random.default_rng(2).integers(0, 256, (40, 32)).astype(np.uint8)
    classifier = bnn_perception.load_classifier(backend="reference")
    as_rgb = classifier.predict(np.repeat(grey[..., None], 3, axis=2))
    assert classifier.predict(grey) == as_rgb
    assert classifier.predict(Frame(grey[..., None], "mono8")) == as_rgb
    with pytest.raises(ValueError, match="not uint8"):
        classifier.predict(grey.astype(np.float32))


class _ClosedBackend:
    """Counts how often it is closed."""

    closed = 0

    def close(self):
        self.closed += 1


def test_with_closes_the_backend():
    backend = _ClosedBackend()
    with Classifier(load_model(find_model("road_signs")), backend) as classifier:
        assert backend.closed == 0
    assert classifier.backend is backend
    assert backend.closed == 1


def test_wrong_choices_are_refused_by_the_error_of_the_face():
    with pytest.raises(bnn_perception.Error, match="no such file; a model is a folder"):
        bnn_perception.load_classifier("no_such_model")
    with pytest.raises(bnn_perception.Error, match="backend 'quick' is not one of"):
        bnn_perception.load_classifier(backend="quick")


class _Command:
    """A command that takes nothing."""

    @staticmethod
    def add_parser(subparsers):
        subparsers.add_parser("nothing", description="Costs no time.")

    @staticmethod
    def run(args):
        return 0


def test_the_summary_of_a_command_stands_in_its_help(capsys):
    with pytest.raises(SystemExit):
        execute(_Command, "nothing", ["--help"], "do nothing")
    assert "Do nothing. Costs no time." in capsys.readouterr().out


def test_summaries_are_stated_once():
    """In the list of commands, and not as the help of a command's own parser."""
    for name, command in COMMANDS.items():
        assert command.summary, name
        if not command.module.startswith("cli."):
            continue
        path = ROOT / "bnn_perception" / (command.module.replace(".", "/") + ".py")
        text = " ".join(path.read_text(encoding="utf-8").split())
        for call in re.findall(r"subparsers\.add_parser\(.*?\)", text):
            assert "help=" not in call, name
