"""``evaluate``: accuracy and confusion matrix on labelled images."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_perception.backends import Backend, check_choice, make_backend
from bnn_perception.cli import add_backend_arguments
from bnn_perception.cli.json_text import to_json
from bnn_perception.cli.labelled_frames import open_labelled
from bnn_perception.errors import CommandError, printable
from bnn_perception.evaluation import pictures
from bnn_perception.evaluation.compare import Comparison
from bnn_perception.evaluation.evaluate import Evaluation, evaluate_all
from bnn_perception.net.folder import load_model
from bnn_perception.net.model import Model
from bnn_perception.resources import find_model

#: Width of a column of labels: what a terminal of 80 columns leaves beside the figures.
LABEL_WIDTH = 40

#: Width of a label in a sentence: two of them fit into 80 columns.
LABEL_IN_TEXT = 30


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("evaluate")
    parser.add_argument(
        "data",
        help="folder with a folder of images or of videos for each class; recording with a topic called truth; "
        ".npz with x (N, H, W, 3) uint8 and y",
    )
    parser.add_argument("--topic", help="of a recording's images (default: the one with the most)")
    parser.add_argument(
        "--truth",
        metavar="TOPIC",
        help="of a recording's right labels, vision_msgs/Classification (default: the one called truth)",
    )
    add_backend_arguments(parser)
    parser.add_argument(
        "--compare", action="store_true", help="the binary net and its float twin, side by side"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write the confusion matrix as a picture"
    )
    parser.add_argument(
        "--mistakes",
        type=Path,
        metavar="FILE",
        help="write the surest mistakes as a contact sheet; with --compare those that the float twin does not make",
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    if args.compare and args.backend == "float":
        raise CommandError(
            "--compare sets a binary backend against the float twin; leave --backend float out"
        )
    for path in filter(None, (args.picture, args.mistakes)):
        pictures.check_path(path)
    model = load_model(find_model(args.model))
    names = [args.backend, "float"] if args.compare else [args.backend]
    for name in names:
        check_choice(model, name, args.device)
    dataset = open_labelled(args.data, model.labels, args.topic, args.truth, say)
    # The reference runs on the CPU whatever the device; its float twin may have the GPU.
    backends = [make_backend(model, name, args.device, args.threads) for name in names]
    for backend in backends:
        print(printable(f"{model.name}, {backend.name} on {backend.device_name}"), file=sys.stderr)
    results = evaluate_all(model, backends, dataset)
    for backend in backends:
        backend.close()
    for line in dataset.refused:
        say(f"left out: {line}")
    wrong = ~results[0].hits
    report: dict[str, Any] = {"model": model.name, "labels": list(model.labels), "n": len(wrong)}
    report["left_out"] = len(dataset.refused)
    if args.compare:
        comparison = Comparison(*results)
        wrong &= comparison.second.hits
        print_comparison(model.labels, names, comparison)
        for name, backend, result in zip(names, backends, results):
            report[name] = as_json(backend, result)
        report["points"] = comparison.points
        report["only_right"] = [comparison.only_first, comparison.only_second]
        report["p_value"] = comparison.p_value
        report["disagreements"] = [d._asdict() for d in comparison.disagreements()]
    else:
        print_classes(model.labels, results[0])
        report.update(as_json(backends[0], results[0]))
    for backend, result in zip(backends, results):
        print_total(model, backend, result, len(dataset.refused))
    if args.picture:
        titles = [f"{name}: " for name in names] if args.compare else [""]
        pictures.confusion_matrices([r.confusion() for r in results], titles, model.labels, args.picture)
        print(f"confusion matrix: {args.picture}")
    if args.mistakes:
        shown = pictures.mistakes(results[0], np.flatnonzero(wrong), dataset, model.labels, args.mistakes)
        print(
            f"{shown} mistakes: {args.mistakes}" if shown else f"no mistakes: {args.mistakes} is not written"
        )
    if args.json:
        print(to_json(report))
    return 0


def say(line: str) -> None:
    print(f"bnn_perception evaluate: {printable(line)}", file=sys.stderr)


def as_json(backend: Backend, result: Evaluation) -> dict[str, Any]:
    """What ``--json`` says of one backend."""
    return {
        "backend": backend.name,
        "accuracy": result.accuracy,
        "correct": result.correct,
        "mean_score": float(result.score.mean(dtype=np.float64)),
        "expected_calibration_error": result.calibration_error,
        "negative_log_likelihood": result.likelihood,
        "confusion": result.confusion().tolist(),
    }


def print_classes(labels: Sequence[str], result: Evaluation) -> None:
    """The per-class table and the commonest confusions."""
    confusion = result.confusion()
    short = [pictures.shorten(label, LABEL_IN_TEXT) for label in labels]
    names = _column("class", labels)
    print(f"{names[0]}  images  recall  precision")
    for index, name in enumerate(names[1:]):
        images, answers, hits = confusion[index].sum(), confusion[:, index].sum(), confusion[index, index]
        recall = f"{hits / images:6.1%}" if images else "     -"
        precision = f"{hits / answers:6.1%}" if answers else "     -"
        print(f"{name}  {images:6d}  {recall}     {precision}")
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
            print(f"  {wrong[truth, answer]:5d}  {short[truth]} taken for {short[answer]}")


def print_comparison(labels: Sequence[str], names: Sequence[str], comparison: Comparison) -> None:
    """The per-class table of both, and where they differ."""
    first, second = names
    short = [pictures.shorten(label, LABEL_IN_TEXT) for label in labels]
    tables = comparison.first.confusion(), comparison.second.confusion()
    names_column = _column("class", labels)
    print(f"{names_column[0]}  images  {first:>9}  {second:>9}  points")
    for index, name in enumerate(names_column[1:]):
        images = tables[0][index].sum()
        if images:
            shares = [100 * table[index, index] / images for table in tables]
            columns = f"{shares[0]:8.1f}%  {shares[1]:8.1f}%  {shares[0] - shares[1]:+6.1f}"
        else:
            columns = f"{'-':>9}  {'-':>9}  {'-':>6}"
        print(f"{name}  {images:6d}  {columns}")
    found = comparison.disagreements()
    if found:
        print(f"{sum(d.images for d in found)} images are answered differently, most often:")
        for d in found[:5]:
            answers = f"{first} says {short[d.first]}, {second} {short[d.second]}"
            print(f"  {d.images:5d}  {short[d.truth]}: {answers}")
    print(
        f"only {first} is right on {comparison.only_first} images, only {second} on {comparison.only_second}: "
        f"{comparison.points:+.2f} points, exact McNemar p = {comparison.p_value:.2g}"
    )


def _column(head: str, labels: Sequence[str]) -> list[str]:
    """The head and the labels, filled up to one width on the terminal; a label too long for it lacks its middle."""

    def width(text: str) -> int:
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
        return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)

    rows = [pictures.shorten(label, LABEL_WIDTH) for label in labels]
    most = max(map(width, [head, *rows]))
    return [row + " " * (most - width(row)) for row in (head, *rows)]


def print_total(model: Model, backend: Backend, result: Evaluation, left_out: int) -> None:
    """Accuracy, and what the scores are worth."""
    left = f", {left_out} left out" if left_out else ""
    print(
        f"{model.name}, {backend.name} on {backend.device_name}: accuracy {result.accuracy:.4%} "
        f"({result.correct} of {len(result.truth)}{left}); mean score {result.score.mean(dtype=np.float64):.4f}, "
        f"expected calibration error {result.calibration_error:.4f}"
    )
