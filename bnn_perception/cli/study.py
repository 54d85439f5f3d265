"""``study``: train every variant of a configuration with every seed, and write down what came of each."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_perception.cli.inspect_ import layer_rows, totals
from bnn_perception.cli.train import find_config, resumable, train, train_float_twin
from bnn_perception.errors import CommandError
from bnn_perception.files import replacing
from bnn_perception.net.folder import load_model
from bnn_perception.training.progress import Reporter, short_warnings

if TYPE_CHECKING:
    from bnn_perception.training.study import Run, Study

#: Results of one run, in its folder; its presence says that the run is finished.
RESULT = "result.json"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "study",
        help="train the variants of a configuration and compare them",
        description="Trains every variant of a configuration with every seed and writes a record of the results. "
        "A study that was interrupted goes on where it was when the same command is given again.",
    )
    parser.add_argument("config", help="configuration file with a study, or the name of one that ships")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="where the configuration's data paths start (default: $BNN_DATA)",
    )
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="checkpoints of all runs (default: runs/NAME)"
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="what is written (default: benchmark/accuracy/NAME.json)",
    )
    parser.add_argument(
        "--only", action="append", metavar="VARIANT", help="this variant; may be given more than once"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time, with one thread each where there are several (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise CommandError(f"--jobs {args.jobs}: it takes 1 or more")
    try:
        with resumable("epochs"):
            _train_all(args)
    except BrokenProcessPool:
        raise CommandError(
            "a process that trained was ended from outside, perhaps for want of memory; the same command goes on "
            "after the last whole epochs"
        ) from None
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on after the last whole epochs")
        return 130
    return 0


def _train_all(args: argparse.Namespace) -> None:
    from bnn_perception.training.study import float_key, load_study

    path = find_config(args.config)
    folder = args.run or Path("runs") / path.stem
    record = args.record or Path("benchmark") / "accuracy" / f"{path.stem}.json"
    study = load_study(path)
    chosen = [each for each in study.runs if not args.only or each.variant in args.only]
    unknown = set(args.only or ()) - {each.variant for each in study.runs}
    if unknown:
        raise CommandError(f"{path}: has no variant '{unknown.pop()}'")
    for place in (folder, record.parent):  # an error there must not wait for hours of training
        place.mkdir(parents=True, exist_ok=True)
    owners: dict[str, Run] = {}
    for each in chosen:
        owners.setdefault(float_key(each.config), each)
    # Float twins first: the binary nets of several variants learn from the same one.
    with _pool(args.jobs) as (pool, threads):
        twins = {
            pool.submit(_train_twin, owner, args.data, folder, threads): owner for owner in owners.values()
        }
        for each in _finished(twins):
            print(f"{each.variant}, seed {each.config.seed}: float twin trained", flush=True)
        nets = {
            pool.submit(_train, each, owners[float_key(each.config)], args.data, folder, threads): each
            for each in chosen
        }
        for each in _finished(nets):
            result = json.loads((folder / each.folder / RESULT).read_text(encoding="utf-8"))
            print(
                f"{each.variant}, seed {each.config.seed}: binary {result['binary']:.2%}, "
                f"float {result['float']:.2%} of {result['images']} images",
                flush=True,
            )
            write_record(study, folder, record)
    print(f"record: {record}")


@contextmanager
def _pool(jobs: int) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """Processes to train in, and how many threads each takes (0: one a core).

    They end with this process, whatever ends it, and at Ctrl-C: each waits for the end of a pipe, whose other end no
    process but this one holds.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, _end_with, (theirs,))
    try:
        yield pool, 1 if jobs > 1 else 0
    except KeyboardInterrupt:
        ours.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ours.close()
        theirs.close()


def _end_with(pipe: Connection) -> None:
    """End this process, at once, when nobody can write to ``pipe`` any more; files are whole at any moment."""

    def watch() -> None:
        wait([pipe])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all processes; the first one ends the others
    threading.Thread(target=watch, name="end with the study", daemon=True).start()


def _finished(jobs: dict[Future[None], Run]) -> Iterator[Run]:
    for job in as_completed(jobs):
        job.result()
        yield jobs[job]


def _train_twin(run: Run, data: str | None, folder: Path, threads: int) -> None:
    with _log(folder / run.folder):
        train_float_twin(replace(run.config, threads=threads), data, folder / run.folder, Reporter())


def _train(run: Run, owner: Run, data: str | None, folder: Path, threads: int) -> None:
    """Train the binary net of one run with the float twin of ``owner``, and write its result."""
    own = folder / run.folder
    if (own / RESULT).exists():
        return
    with _log(own):
        twin = "float_twin_final.pt"
        if not (own / twin).exists():
            for name in ("data.sha256", twin):  # the images that it was trained on belong to it
                with replacing(own / name) as partial:
                    shutil.copyfile(folder / owner.folder / name, partial)
        config = replace(run.config, threads=threads)
        accuracy = train(config, data, own, own / "model", Reporter(), command="study")
    model = load_model(own / "model")
    rows = layer_rows(model)
    result = {
        "variant": run.variant,
        "seed": run.config.seed,
        **{key: accuracy[key] for key in ("binary", "float", "images", "part")},
        **totals(rows),
        "input_macs": sum(row["macs"] for row in rows if row["kind"].startswith("input_")),
        "machine": model.info["training"]["machine"],
    }
    with replacing(own / RESULT) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _log(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as stream,
        redirect_stdout(stream),
        short_warnings(f"study, {folder.name}"),
    ):
        yield


def write_record(study: Study, folder: Path, record: Path) -> None:
    """Gather the results of all finished runs of a study in one JSON file."""
    results = []
    for each in study.runs:
        result = folder / each.folder / RESULT
        if result.exists():
            results.append(json.loads(result.read_text(encoding="utf-8")))
    config = study.runs[0].config
    content = {
        "study": study.name,
        "title": study.title,
        "text": study.text,
        "baseline": study.baseline,
        "command": f"python -m bnn_perception study {study.name} --data DATA",
        "data": {"train": config.data.train, "test": config.data.test},
        "machine": "; ".join(sorted({result["machine"] for result in results})),
        "versions": {package: version(package) for package in ("torch", "numpy")},
        "variants": list(dict.fromkeys(each.variant for each in study.runs)),
        "seeds": sorted({each.config.seed for each in study.runs}),
        "results": results,
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
