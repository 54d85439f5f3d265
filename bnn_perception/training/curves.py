"""Draws the records of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnn_perception.files import replacing


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a picture of loss and accuracy by epoch, the stages side by side.

    Args:
        records: as :func:`bnn_perception.training.run.read_records` gives them; 1 or more.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        stages.setdefault(record["stage"], []).append(record)
    figure = Figure(figsize=(4.5 * len(stages), 6), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col", sharey="row")
    for column, (stage, rows) in enumerate(stages.items()):
        epochs = [row["epoch"] for row in rows]
        marker = "o" if len(rows) == 1 else ""  # one epoch makes no line
        upper, lower = axes[0][column], axes[1][column]
        upper.plot(epochs, [row["loss"] for row in rows], marker=marker, color="tab:red")
        for key, label, colour in (
            ("train_accuracy", "training, augmented", "tab:gray"),
            ("validation_accuracy", "validation", "tab:blue"),
        ):
            lower.plot(epochs, [100 * row[key] for row in rows], marker=marker, label=label, color=colour)
        upper.set_title(stage.replace("_", " "))
        lower.set_xlabel("epoch")
        lower.xaxis.get_major_locator().set_params(integer=True)
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    middle = sum(axes[1][0].get_ylim()) / 2
    for axis, rows in zip(axes[1], stages.values()):
        best = max(rows, key=lambda record: record["validation_accuracy"])
        height, place = 100 * best["validation_accuracy"], best["epoch"] / rows[-1]["epoch"]
        axis.annotate(
            f"{best['validation_accuracy']:.2%}",
            (best["epoch"], height),
            xytext=(0, -22 if height > middle else 14),  # towards the middle, clear of the frame
            textcoords="offset points",
            ha="left" if place < 0.1 else "right" if place > 0.9 else "center",
            arrowprops={"arrowstyle": "-", "color": "tab:blue"},
        )
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("accuracy, %")
    axes[1][0].legend(loc="lower right")
    figure.suptitle(title.replace("$", r"\$"))  # between two of them matplotlib expects a formula
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial), metadata={"Software": None})
