"""Pictures of an evaluation: the confusion matrix and a contact sheet of mistakes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import CommandError
from bnn_perception.frames.dataset import LabelledImages

if TYPE_CHECKING:
    from bnn_perception.evaluation.evaluate import Evaluation

INK = "#1b2733"
ACCENT = "#7a0c08"
ACCENT_ON_DARK = "#ffe9e6"

#: Longest side of a confusion matrix, inches: a thousand classes would otherwise take gigabytes.
MAX_SIDE = 50.0

#: Extensions of the files that matplotlib writes without further programs.
FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff")


def check_path(path: Path) -> None:
    """Refuse a picture that could not be written once everything is evaluated.

    Raises:
        CommandError: naming the file and the remedy.
    """
    if path.suffix.lower() not in FORMATS:
        raise CommandError(
            f"{path}: the ending says which picture it is to be; it can be {', '.join(FORMATS)}"
        )
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no folder {path.parent}")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise CommandError("pictures need matplotlib; install it with: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CommandError(f"{path}: cannot be written: {reason}") from None
    finally:
        pyplot.close(figure)
    if any("missing from" in str(warning.message) for warning in caught):
        print(
            f"{path}: boxes stand for letters that matplotlib's font lacks; name another in its font.family",
            file=sys.stderr,
        )


def confusion_matrices(
    confusions: Sequence[NDArray[np.int64]], titles: Sequence[str], labels: Sequence[str], path: Path
) -> None:
    """Draw confusion matrices of the same images next to each other.

    Args:
        confusions: (classes, classes) counts each, rows the truth. They are drawn in percent of the row, the
            diagonal included.
        titles: what stands above each, before the number of correct answers.
        labels: the names of the classes.
        path: the picture's file; its extension says the format.

    Raises:
        CommandError: where matplotlib is missing or the file cannot be written.
    """
    pyplot = _pyplot()
    labels = [shorten(label, 40) for label in labels]
    side = min(max(3.0, 0.28 * len(labels)), MAX_SIDE)
    points = min(7.5, 54 * side / len(labels))  # of a label: three quarters of the height of a row
    beside, below = (0.075 * max(map(len, labels)) + extra for extra in (1.0, 0.8))  # inches of the labels
    figure, grid = pyplot.subplots(
        1,
        len(confusions),
        figsize=((side + 0.3) * len(confusions) + beside, side + below),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, confusion, title in zip(grid.flat, confusions, titles):
        _draw_confusion(axes, confusion, title, labels, points)
    images = confusions[0].sum(axis=1)
    grid.flat[0].set_yticks(
        range(len(labels)), [f"{literal(label)}  ({n})" for label, n in zip(labels, images)], fontsize=points
    )
    grid.flat[0].set_ylabel("truth (images)", color=INK)
    _save(pyplot, figure, path)


def cell_colour(percent: float, right: bool) -> str:
    """The colour of a cell's figure, legible on the cell: the more percent, the darker it is."""
    if percent > 40:
        return "white" if right else ACCENT_ON_DARK
    return INK if right else ACCENT


def _draw_confusion(
    axes: Any, confusion: NDArray[np.int64], title: str, labels: Sequence[str], points: float
) -> None:
    percent = 100.0 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # Square root of the share, so that a mistake of one percent can be seen beside 99 on the diagonal.
    axes.imshow(np.sqrt(percent), cmap="Blues", vmin=0, vmax=10)
    for truth, answer in zip(*np.nonzero(confusion)):
        if len(labels) <= 20 or (truth != answer and percent[truth, answer] >= 1):
            axes.text(
                answer,
                truth,
                _percent(percent[truth, answer]),
                ha="center",
                va="center",
                fontsize=points * 6.5 / 7.5,
                color=cell_colour(percent[truth, answer], truth == answer),
            )
    axes.set_xticks(range(len(labels)), [literal(label) for label in labels], rotation=90, fontsize=points)
    axes.set_xlabel("answer (cells in % of the row)", color=INK)
    correct, total = int(np.trace(confusion)), int(confusion.sum())
    axes.set_title(
        f"{title}{correct} of {total} correct, {correct / max(total, 1):.2%}",
        fontsize=10,
        color=INK,
    )
    axes.set_xticks(np.arange(-0.5, len(labels)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(labels)), minor=True)
    axes.grid(which="minor", color="#e6e9ec", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def mistakes(
    result: Evaluation,
    chosen: NDArray[np.intp],
    dataset: LabelledImages,
    labels: Sequence[str],
    path: Path,
    most: int = 40,
) -> int:
    """Draw the mistakes with the highest scores, surest first; without any, no file is written.

    Args:
        chosen: which images of ``result`` are mistakes to choose from.
        most: how many are drawn at most.

    Returns:
        How many there are on the sheet.

    Raises:
        CommandError: where matplotlib is missing or the file cannot be written.
    """
    if not len(chosen):
        return 0
    pyplot = _pyplot()
    order = chosen[np.argsort(-result.score[chosen], kind="stable")][:most]
    columns = min(8, max(4, len(order)))  # the heading needs four
    rows = -(-len(order) // columns)
    size = (columns * 1.75, rows * 2.1 + 0.4)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    images = dataset.read_some([int(result.index[place]) for place in order])
    for axes, place in zip(grid.flat, order):
        axes.imshow(images[int(result.index[place])], interpolation="nearest")
        answer, truth = (
            literal(shorten(labels[index], 22)) for index in (result.answer[place], result.truth[place])
        )
        axes.set_title(f"{answer} {result.score[place]:.2f}\nis {truth}", fontsize=7, color=INK)
    heading = (
        f"{len(order)} of {len(chosen)} mistakes, surest first: the answer and its score, and what it is"
    )
    figure.suptitle(heading, fontsize=10, color=INK)
    _save(pyplot, figure, path)
    return len(order)


def _percent(value: float) -> str:
    """A percentage in whole numbers; 0 and 100 stand for nothing but themselves."""
    if value < 1:
        return "<1"
    return ">99" if 99.5 <= value < 100 else f"{value:.0f}"


def shorten(label: str, most: int) -> str:
    """A label in at most ``most`` characters, its middle left out: beginnings and ends tell labels apart."""
    end = (most - 1) // 3
    return label if len(label) <= most else f"{label[: most - 1 - end]}…{label[-end:]}"


def literal(text: str) -> str:
    """A text as matplotlib shows it literally: what stands between two dollar signs would be a formula."""
    return text.replace("$", r"\$")
