"""Writes docs/accuracy.md: what every study measured, and what the models that ship reach.

python -m benchmark.accuracy.page [--out docs/accuracy.md] [--records benchmark/accuracy]
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bnn_perception.cli.inspect_ import layer_rows, totals
from bnn_perception.cli.markdown import table
from bnn_perception.net.folder import load_model
from bnn_perception.resources import resource_folder

RECORDS = Path("benchmark") / "accuracy"
DOCUMENT = Path("docs") / "accuracy.md"

INTRODUCTION = """
# Accuracy

Written by `python -m benchmark.accuracy.page` from the records of the runs in `benchmark/accuracy` and the
descriptions of the models in `models`. Accuracies are those of the exported model, measured by the binary CPU engine
and, for the float twin, by ONNX Runtime. A float twin has the topology of its binary net, real weights, ReLU and the
same training data; it is chosen by the same rule. *Lost* is float less binary, in percentage points.
"""


def models() -> list[str]:
    """The table of the models that ship."""
    rows = []
    commands = []
    for path in sorted(resource_folder("models").iterdir()):
        model = load_model(path)
        accuracy, sizes = model.info.get("accuracy"), totals(layer_rows(model))
        if not isinstance(accuracy, dict):
            continue
        rows.append(
            [
                f"`{model.name}`",
                f"{accuracy['images']:,}",
                _percent(accuracy["binary"]),
                _percent(accuracy["float"]),
                f"{100 * (accuracy['float'] - accuracy['binary']):.2f}",
                _kilobytes(sizes["packed_bytes"]),
                _kilobytes(sizes["float_bytes"]),
                _millions(sizes["macs"]),
            ]
        )
        commands.append(f"    {accuracy['command']}")
    header = ["model", "images", "binary", "float", "lost", "packed kB", "float kB", "million MACs"]
    text = "On images that training has not seen:"
    return ["", "## Models that ship", "", text, *table(header, rows), "", "Measured by", "", *commands]


def study(record: dict[str, Any]) -> list[str]:
    """The table of one study."""
    by_variant = {name: [r for r in record["results"] if r["variant"] == name] for name in record["variants"]}
    baseline = record.get("baseline")
    header = ["variant", "seeds", "float", "binary", "lost", "packed kB", "million 1-bit MACs", "8-bit MACs"]
    if baseline:
        header.insert(4, f"against *{baseline}*, points")
    rows = []
    for name, results in by_variant.items():
        if not results:
            continue
        row = [
            name,
            str(len(results)),
            _spread(results, lambda r: 100 * r["float"]),
            _spread(results, lambda r: 100 * r["binary"]),
            _spread(results, lambda r: 100 * (r["float"] - r["binary"])),
            _kilobytes(results[0]["packed_bytes"]),
            _millions(results[0]["macs"] - results[0]["input_macs"]),
            _millions(results[0]["input_macs"]),
        ]
        if baseline:
            row.insert(4, "" if name == baseline else f"{_against(results, by_variant[baseline]):+.2f}")
        rows.append(row)
    images = " or ".join(f"{n:,}" for n in sorted({r["images"] for r in record["results"]}, reverse=True))
    facts = f"{images} images. "
    if len(record["seeds"]) > 1:
        facts += "Mean of the seeds, and in brackets the smallest and the largest. "
    facts += (
        f"Trained on {record['machine']} with PyTorch {record['versions']['torch']} by `{record['command']}`."
    )
    lines = ["", f"## {record['title']}"]
    for paragraph in (*record["text"].strip().split("\n\n"), facts):
        lines += ["", *textwrap.wrap(" ".join(paragraph.split()), 118, break_on_hyphens=False)]
    return lines + table(header, rows)


def document(records: Sequence[dict[str, Any]]) -> str:
    """The page."""
    lines = INTRODUCTION.strip().split("\n") + models()
    for record in records:
        lines += study(record)
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="benchmark.accuracy.page", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DOCUMENT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.records.glob("*.json"))]
    if not records:
        print(f"{args.records}: holds no record of a study", file=sys.stderr)
        return 1
    args.out.write_text(document(records), encoding="utf-8")
    print(args.out)
    return 0


def _spread(results: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
    values = [value(result) for result in results]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _against(results: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> float:
    """Mean difference of the binary accuracies over the seeds that both have, points."""
    base = {result["seed"]: result["binary"] for result in baseline}
    return mean(100 * (r["binary"] - base[r["seed"]]) for r in results if r["seed"] in base)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _kilobytes(count: int) -> str:
    return f"{count / 1000:.1f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}"


if __name__ == "__main__":
    sys.exit(main())
