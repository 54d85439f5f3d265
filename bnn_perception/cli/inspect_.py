"""``inspect``: what a model is made of."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bnn_perception.cli.json_text import to_json
from bnn_perception.errors import printable
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
    """One row a layer: kind, inputs, shapes, precision, bytes, multiply-accumulates.

    Of a layer's parameters ``bit_bytes`` hold packed weights and ``real_bytes`` the others (thresholds, scales, weights
    of more than a bit); ``packed_bytes`` are both, ``float_bytes`` what a float layer has in its place.
    """
    rows = []
    before_it = ""
    for place in iter_layers(model):
        layer, before, after = place.layer, place.before, place.after
        # The float layer has a weight for each product and a bias for each output.
        floats = (layer.fan_in + 1) * layer.outputs * FLOAT_BYTES if layer.has_weights else 0
        packed = sum(
            values.nbytes for name, values in layer.array_values().items() if values.dtype == np.uint32
        )
        inputs = [before_it if source is None else source.name for source in place.sources]
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "detail": layer.detail,
                "inputs": inputs if inputs != [before_it] else [],
                "input": list(before),
                "output": list(after),
                "precision": layer.precision,
                "bit_bytes": packed,
                "real_bytes": layer.parameter_bytes - packed,
                "packed_bytes": layer.parameter_bytes,
                "float_bytes": floats,
                "macs": layer.macs(*place.before_all),
                "binary_macs": layer.macs(*place.before_all) if layer.operands == "bits" else 0,
            }
        )
        before_it = layer.name
    return rows


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sums over the rows of :func:`layer_rows`: bytes and multiply-accumulates."""
    keys = ("bit_bytes", "real_bytes", "packed_bytes", "float_bytes", "macs", "binary_macs")
    return {key: sum(row[key] for row in rows) for key in keys}


def run(args: argparse.Namespace) -> int:
    model = load_model(find_model(args.model))
    rows = layer_rows(model)
    total = totals(rows)
    if args.json:
        # A model's own fields come first: they must not stand for what was counted.
        print(
            to_json({**model.info, "name": model.name, "labels": list(model.labels), "layers": rows, **total})
        )
        return 0
    size = "x".join(map(str, model.input.shape))
    print(f"{printable(model.name)}: {len(model.labels)} classes, input {size} ({model.input.fit})")
    if isinstance(description := model.info.get("description"), str):
        print(printable(" ".join(description.split())))
    print_table(rows, total)
    for line in stated_range(model):
        print(line)
    accuracy = model.info.get("accuracy")
    if isinstance(accuracy, dict):
        print(printable("accuracy: " + ", ".join(f"{name} {value}" for name, value in accuracy.items())))
    print("float twin: " + (printable(str(model.float_twin)) if model.float_twin else "none"))
    return 0


def print_table(rows: list[dict[str, Any]], total: dict[str, int]) -> None:
    """Print the rows of :func:`layer_rows`, aligned, with their sums."""
    head = ["layer", "kind", "", "output", "bits", "1-bit", "other", "float", "ratio", "MMAC"]
    lines = [head]
    for row in rows:
        lines.append(
            [
                row["name"],
                row["kind"],
                " ".join(filter(None, [row["detail"], " + ".join(_short_names(row["inputs"]))])),
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
    if total["macs"]:
        print(f"binary: {total['binary_macs'] / total['macs']:.1%} of the multiply-accumulates")


def _short_names(names: Sequence[str]) -> list[str]:
    """Names, one that stands several times once: ``a x3``."""
    counted = {name: names.count(name) for name in names}
    return [name if count == 1 else f"{name} x{count}" for name, count in counted.items()]


def stated_range(model: Model) -> Iterator[str]:
    """A line about what the net takes for pixels, where that is not 0 to 1 or was assumed."""
    assumed = model.info.get("source", {}).get("pixel_range") == "assumed"
    how = "; assumed, for neither the graph nor --pixel-range or --mean and --std say otherwise"
    if model.input.std:
        low, high = ([(p - m) / s for m, s in zip(model.input.mean, model.input.std)] for p in (0, 1))
        ends = sorted({(round(a, 6), round(b, 6)) for a, b in zip(low, high)})
        yield "pixels: the net takes " + ", ".join(f"{a:g} to {b:g}" for a, b in ends)
    elif assumed:
        yield f"pixels: the net takes p / 255, 0 to 1{how}"


def _sizes(row: dict[str, Any]) -> list[str]:
    packed, floats = row["packed_bytes"], row["float_bytes"]
    ratio = f"{floats / packed:.1f}x" if floats else ""
    return [
        f"{row['bit_bytes'] / 1000:.1f} kB" if row["bit_bytes"] else "",
        f"{row['real_bytes'] / 1000:.1f} kB" if row["real_bytes"] else "",
        f"{floats / 1000:.1f} kB" if floats else "",
        ratio,
        f"{row['macs'] / 1e6:.2f}",
    ]
