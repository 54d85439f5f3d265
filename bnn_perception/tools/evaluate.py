"""``evaluate``: accuracy and confusion matrix on labelled images."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import Backend, make_backend
from bnn_perception.classifier import Classifier
from bnn_perception.images import Dataset, ImageError, read_dataset
from bnn_perception.model import Model, load_model
from bnn_perception.preprocess import Frame
from bnn_perception.resources import find_model
from bnn_perception.tools import add_backend_arguments

BATCH = 16  # the most that a GPU backend takes at once


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on labelled images.

    Attributes:
        index: (n,) place of each image in its dataset; the images that could not be read are missing.
        truth, answer: (n,) class of each image.
        score: (n,) float32 score of the answer.
        classes: number of classes.
    """

    index: NDArray[np.int64]
    truth: NDArray[np.int64]
    answer: NDArray[np.int64]
    score: NDArray[np.float32]
    classes: int

    @property
    def correct(self) -> int:
        return int((self.truth == self.answer).sum())

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.truth)

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) counts; rows are the truth, columns the answer."""
        table = np.zeros((self.classes, self.classes), dtype=np.int64)
        np.add.at(table, (self.truth, self.answer), 1)
        return table


def evaluate(model: Model, backend: Backend, dataset: Dataset) -> Evaluation:
    """Classify every image of ``dataset`` that can be read.

    Raises:
        ImageError: where none of them can.
    """
    classifier = Classifier(model, backend)
    indices: list[int] = []
    rows: list[NDArray[np.float32]] = []
    pending: list[Frame] = []

    def flush() -> None:
        if pending:
            rows.append(classifier.scores(pending))
            pending.clear()

    for index, image in dataset:
        indices.append(index)
        pending.append(Frame(image))
        if len(pending) == BATCH:
            flush()
    flush()
    if not indices:
        raise ImageError(f"none of the {len(dataset)} images could be read; the first: {dataset.refused[0]}")
    scores = np.concatenate(rows)
    answer = scores.argmax(axis=1)
    read = np.asarray(indices, dtype=np.int64)
    return Evaluation(
        read, dataset.labels[read], answer, scores[np.arange(len(answer)), answer], len(model.labels)
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("evaluate", help="accuracy and confusion matrix on labelled images")
    parser.add_argument(
        "data", help="folder with a folder for each class, or .npz with x (N, H, W, 3) uint8 and y"
    )
    add_backend_arguments(parser)
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write the confusion matrix as a picture"
    )
    parser.add_argument(
        "--mistakes", type=Path, metavar="FILE", help="write the surest mistakes as a contact sheet"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    model = load_model(find_model(args.model))
    dataset = read_dataset(args.data, model.labels)
    backend = make_backend(model, args.backend, args.device, args.threads)
    result = evaluate(model, backend, dataset)
    backend.close()
    for line in dataset.refused:
        print(f"bnn_perception evaluate: left out: {line}", file=sys.stderr)
    print_report(model, backend, result, len(dataset.refused))
    if args.picture or args.mistakes:
        from bnn_perception.tools import pictures

        if args.picture:
            pictures.confusion_matrix(result.confusion(), model.labels, args.picture)
            print(f"confusion matrix: {args.picture}")
        if args.mistakes:
            shown = pictures.mistakes(result, dataset, model.labels, args.mistakes)
            print(f"{shown} mistakes: {args.mistakes}")
    if args.json:
        report = {
            "accuracy": result.accuracy,
            "n": len(result.truth),
            "correct": result.correct,
            "confusion": result.confusion().tolist(),
            "labels": list(model.labels),
            "model": model.name,
            "backend": backend.name,
            "left_out": len(dataset.refused),
        }
        print(json.dumps(report, ensure_ascii=False))
    return 0


def print_report(model: Model, backend: Backend, result: Evaluation, left_out: int) -> None:
    """The per-class table, the commonest confusions and the total."""
    confusion = result.confusion()
    width = max(len(label) for label in model.labels)
    print(f"{'class':{width}}  images  recall  precision")
    for index, label in enumerate(model.labels):
        images, answers, hits = confusion[index].sum(), confusion[:, index].sum(), confusion[index, index]
        recall = f"{hits / images:6.1%}" if images else "     -"
        precision = f"{hits / answers:6.1%}" if answers else "     -"
        print(f"{label:{width}}  {images:6d}  {recall}     {precision}")
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:5]
    pairs = [
        (truth, answer)
        for truth, answer in zip(*np.unravel_index(worst, wrong.shape))
        if wrong[truth, answer]
    ]
    if pairs:
        print("commonest mistakes:")
        for truth, answer in pairs:
            print(f"  {wrong[truth, answer]:5d}  {model.labels[truth]} taken for {model.labels[answer]}")
    left = f", {left_out} left out" if left_out else ""
    print(
        f"{model.name}, {backend.name} on {backend.device_name}: accuracy {result.accuracy:.4%} "
        f"({result.correct} of {len(result.truth)}{left})"
    )
