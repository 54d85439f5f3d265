"""Figures that stand in texts are those of the models, records and pages that they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmark.accuracy import page as accuracy
from bnn_perception.cli.inspect_ import layer_rows, totals
from bnn_perception.net.folder import load_model
from bnn_perception.training.study import load_study

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "benchmark" / "accuracy").glob("*.json"))
MODELS = sorted(path for path in (ROOT / "models").iterdir() if path.is_dir())


def text(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def test_the_page_on_accuracy_is_what_its_program_writes(tmp_path: Path) -> None:
    assert accuracy.main(["--out", str(tmp_path / "page.md")]) == 0
    assert text("docs", "accuracy.md") == (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", STUDIES, ids=lambda path: path.stem)
def test_a_record_holds_the_text_of_its_configuration(record: Path) -> None:
    stored = json.loads(record.read_text(encoding="utf-8"))
    study = load_study(ROOT / "config" / "train" / f"{stored['study']}.yaml")
    assert stored["text"] == study.text
    # A time is a machine's. The record of a study holds none, so that none may stand beside it.
    assert not re.search(r"\b(seconds|minutes|hours)\b", study.text)


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_accuracy_and_size_of_a_model_are_those_of_its_folder(folder: Path) -> None:
    model = load_model(folder)
    stated = model.info["accuracy"]
    row = next(
        line for line in text("docs", "performance-cpu.md").splitlines() if f"| `{folder.name}` |" in line
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    binary, twin = 100 * stated["binary"], 100 * stated["float"]
    size = totals(layer_rows(model))["packed_bytes"] / 1e6
    assert cells[2:] == [f"{binary:.2f} %", f"{twin:.2f} %", f"{twin - binary:.2f}", f"{size:.2f} MB"]


def test_the_weights_of_the_vehicles_are_as_large_as_the_page_on_training_says() -> None:
    size = totals(layer_rows(load_model(ROOT / "models" / "vehicles")))["packed_bytes"]
    (row,) = (
        line for line in text("docs", "training.md").splitlines() if "`config/train/vehicles.yaml`" in line
    )
    assert f" {size / 1e3:.0f} kB of weights" in row


def test_the_net_that_the_vehicles_are_compared_with_is_as_large_as_its_record_says() -> None:
    (record,) = (path for path in STUDIES if path.stem == "vehicles_khan2018")
    results = json.loads(record.read_text(encoding="utf-8"))["results"]
    papers = [result for result in results if result["variant"] == "one threshold a channel"]
    head = " ".join(line.lstrip("# ") for line in text("config", "train", "vehicles.yaml").splitlines()[:3])
    size, macs = re.findall(r"\((\d+) (?:kB|million multiply-accumulates)\)", head)
    assert {round(result["packed_bytes"] / 1e3) for result in papers} == {int(size)}
    assert {round(result["macs"] / 1e6) for result in papers} == {int(macs)}


def test_memory_of_backend_and_node_is_told_apart() -> None:
    """The benchmark measures the backend alone, the soak the node; each page says which, and where the other is."""
    said = " ".join(text("docs", "performance-cpu.md").split())
    assert "The backend's memory alone" in said
    assert "the node's over an hour is in [reliability.md](reliability.md)" in said
    assert "| MB resident |" in text("docs", "reliability.md")
