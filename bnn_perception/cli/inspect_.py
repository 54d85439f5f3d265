"""``inspect``: what a model is made of."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bnn_perception.net.folder import load_model
from bnn_perception.net.model import Model, iter_layers
from bnn_perception.resources import find_model

FLOAT_BYTES = 4


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("inspect")
    parser.add_argument(
        "model", nargs="?", default="road_signs", help="model folder or name (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def layer_rows(model: Model) -> list[dict[str, Any]]:
    """One row a layer: kind, shapes, precision, packed and float bytes, multiply-accumulates."""
    rows = []
    for place in iter_layers(model):
        layer, before, after = place.layer, place.before, place.after
        # The float layer has a weight for each product and a bias for each output.
        floats = (layer.fan_in + 1) * layer.outputs * FLOAT_BYTES if layer.has_weights else 0
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "detail": layer.detail,
                "input": list(before),
                "output": list(after),
                "precision": layer.precision,
                "packed_bytes": layer.parameter_bytes,
                "float_bytes": floats,
                "macs": layer.macs(*place.before_all),
            }
        )
    return rows


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sums over the rows of :func:`layer_rows`: packed and float bytes, multiply-accumulates."""
    return {key: sum(row[key] for row in rows) for key in ("packed_bytes", "float_bytes", "macs")}


def run(args: argparse.Namespace) -> int:
    model = load_model(find_model(args.model))
    rows = layer_rows(model)
    total = totals(rows)
    if args.json:
        report = {"name": model.name, "labels": list(model.labels), "layers": rows, **total, **model.info}
        print(json.dumps(report))
        return 0
    print(
        f"{model.name}: {len(model.labels)} classes, input {'x'.join(map(str, model.input.shape))} ({model.input.fit})"
    )
    print_table(rows, total)
    accuracy = model.info.get("accuracy")
    if isinstance(accuracy, dict):
        print("accuracy: " + ", ".join(f"{name} {value}" for name, value in accuracy.items()))
    print("float twin: " + (str(model.float_twin) if model.float_twin else "none"))
    return 0


def print_table(rows: list[dict[str, Any]], total: dict[str, int]) -> None:
    """Print the rows of :func:`layer_rows`, aligned, with their sums."""
    head = ["layer", "kind", "", "output", "bits", "packed", "float", "ratio", "MMAC"]
    lines = [head]
    for row in rows:
        lines.append(
            [
                row["name"],
                row["kind"],
                row["detail"],
                "x".join(map(str, row["output"])),
                row["precision"],
                *_sizes(row),
            ]
        )
    lines.append(["total", "", "", "", "", *_sizes(total)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        if number in (1, len(lines) - 1):
            print("  ".join("-" * width for width in widths))
        cells = [cell.ljust(w) if i < 5 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip())


def _sizes(row: dict[str, Any]) -> list[str]:
    packed, floats = row["packed_bytes"], row["float_bytes"]
    ratio = f"{floats / packed:.1f}x" if floats else ""
    return [
        f"{packed / 1000:.1f} kB",
        f"{floats / 1000:.1f} kB" if floats else "",
        ratio,
        f"{row['macs'] / 1e6:.2f}",
    ]
