"""Pictures of an evaluation: the confusion matrix and a contact sheet of mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.images import Dataset
from bnn_perception.tools import ToolError

if TYPE_CHECKING:
    from bnn_perception.tools.evaluate import Evaluation

INK = "#1b2733"
ACCENT = "#b3261e"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ToolError("pictures need matplotlib; install it with: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    except (OSError, ValueError) as error:
        raise ToolError(f"{path}: cannot be written: {error}") from None
    finally:
        pyplot.close(figure)


def confusion_matrix(confusion: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Draw (classes, classes) counts, rows the truth: each row in percent of its images, the diagonal included.

    Raises:
        ToolError: where matplotlib is missing or the file cannot be written.
    """
    pyplot = _pyplot()
    images = confusion.sum(axis=1, keepdims=True)
    percent = 100.0 * confusion / np.maximum(images, 1)
    side = max(4.0, 0.28 * len(labels) + 1.5)
    figure, axes = pyplot.subplots(figsize=(side + 1.5, side))
    # Square root of the share, so that a mistake of one percent can be seen beside 99 on the diagonal.
    axes.imshow(np.sqrt(percent), cmap="Blues", vmin=0, vmax=10)
    for truth, answer in zip(*np.nonzero(confusion)):
        if len(labels) <= 20 or (truth != answer and percent[truth, answer] >= 1):
            colour = ACCENT if truth != answer else ("white" if percent[truth, answer] > 40 else INK)
            text = f"{percent[truth, answer]:.0f}" if percent[truth, answer] >= 1 else "<1"
            axes.text(answer, truth, text, ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7.5)
    axes.set_yticks(
        range(len(labels)), [f"{label}  ({n})" for label, n in zip(labels, images[:, 0])], fontsize=7.5
    )
    axes.set_xlabel("answer", color=INK)
    axes.set_ylabel("truth (images)", color=INK)
    correct, total = int(np.trace(confusion)), int(confusion.sum())
    axes.set_title(
        f"{correct} of {total} correct, {correct / max(total, 1):.2%}; cells in % of the row",
        fontsize=10,
        color=INK,
    )
    axes.set_xticks(np.arange(-0.5, len(labels)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(labels)), minor=True)
    axes.grid(which="minor", color="#e6e9ec", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    _save(pyplot, figure, path)


def mistakes(result: Evaluation, dataset: Dataset, labels: Sequence[str], path: Path, most: int = 40) -> int:
    """Draw the mistakes with the highest scores, surest first.

    Returns:
        How many there are on the sheet.

    Raises:
        ToolError: where matplotlib is missing or the file cannot be written.
    """
    pyplot = _pyplot()
    wrong = np.flatnonzero(result.truth != result.answer)
    order = wrong[np.argsort(-result.score[wrong], kind="stable")][:most]
    columns = 8
    rows = max(1, -(-len(order) // columns))
    figure, grid = pyplot.subplots(rows, columns, figsize=(columns * 1.5, rows * 1.95), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, place in zip(grid.flat, order):
        axes.imshow(dataset.read(int(result.index[place])), interpolation="nearest")
        answer, truth = labels[result.answer[place]], labels[result.truth[place]]
        axes.set_title(
            f"{_short(answer)} {result.score[place]:.2f}\nis {_short(truth)}", fontsize=6.5, color=INK
        )
    if not len(order):
        grid.flat[0].text(0, 0.5, "no mistakes", fontsize=12, color=INK)
    _save(pyplot, figure, path)
    return len(order)


def _short(label: str) -> str:
    return label if len(label) <= 22 else label[:21] + "…"
