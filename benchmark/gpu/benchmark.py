"""The binary nets on the GPU against everything else that could run there, in one run::

    python -m benchmark.gpu.benchmark [--tests test/gpu] [--results benchmark/results] [--minutes 7.5]

Every part runs in a process of its own and may fail by itself: the failure is part of the results, the others go on,
and the exit code tells. Results go to ``<gpu>.json`` and, as tables, to ``<gpu>.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmark.gpu import parts, pytorch, report
from benchmark.gpu.nets import PAPER, ROAD_SIGNS, random_net
from bnn_perception.errors import CommandError, Error
from bnn_perception.resources import find_model

#: Where results are kept, in a checkout.
RESULTS = Path("benchmark") / "results"
#: Minutes after which no part may go on.
MINUTES = 7.5
FORMAT = 1
#: The part that runs pytest.
TESTS = "tests"

RunPart = Callable[[str, Path, "Path | None", float], "str | None"]


def run_benchmark(folder: Path, minutes: float, run_part: RunPart, tests: Path | None = None) -> int:
    """The whole benchmark.

    Args:
        folder: of the results; made where it does not exist.
        minutes: parts that have not ended then are cut off.
        run_part: runs a part, given its name, the file of its result, the folder of its model, and the seconds it may
            take; returns what went wrong, None where nothing did.
        tests: folder of pytest's, run as a part of its own.

    Raises:
        CommandError: where there is no usable GPU: then there is nothing to write.
    """
    from bnn_perception.backends.cuda.device import why_unusable

    reason = why_unusable()
    if reason is not None:
        raise CommandError(f"the GPU benchmark needs a GPU: {reason}")
    end = time.monotonic() + 60 * minutes
    done: list[dict[str, Any]] = []
    without_torch = pytorch.why_not()

    def part(name: str, net: str | None, model: Path | None, scratch: Path) -> Any:
        title = name if net is None else f"{net}: {name}"
        file = scratch / "result.json"
        file.unlink(missing_ok=True)
        print(f"{title} ... ", end="", flush=True)
        start = time.monotonic()
        left = end - start
        error = (
            run_part(name, file, model, left) if left > 0 else f"left out: the {minutes:g} minutes were over"
        )
        seconds = time.monotonic() - start
        done.append({"part": title, "ok": error is None, "seconds": round(seconds, 1), "error": error})
        print(f"{seconds:.1f} s" if error is None else f"FAILED: {error}", flush=True)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    results: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "parts": done,
        "left_out": [without_torch] if without_torch else [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if tests is not None:
            results["tests"] = part(TESTS, None, tests, scratch)
        for name in parts.GPU_PARTS:
            results[name] = part(name, None, None, scratch)
        nets, results["nets"] = _nets(scratch), {}
        names = [name for name in parts.NET_PARTS if not (without_torch and name in pytorch.VARIANTS)]
        for name in names:
            for net, (model, origin) in nets.items():
                entry = results["nets"].setdefault(net, {"origin": origin, "entries": {}})
                entry["entries"][name] = part(name, net, model, scratch)
    gpu = (results.get("environment") or {}).get("gpu") or "unknown GPU"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    _save_tiles(results, file.with_suffix(".tiles.yaml"))
    text = report.markdown(results)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nresults: {file}, {file.with_suffix('.md')}")
    return 0 if all(item["ok"] for item in done) else 1


def _nets(scratch: Path) -> dict[str, tuple[Path, str]]:
    """Folder and origin of each net: the one that ships where it does, else its topology with random weights."""
    nets = {}
    for topology in (PAPER, ROAD_SIGNS):
        folder, origin = find_model(topology.name), "the model that ships"
        if not (folder / "model.yaml").is_file():
            folder, origin = scratch / topology.name, "random, in its topology"
            random_net(topology, folder)
        nets[topology.name] = (folder, origin)
    return nets


def _save_tiles(results: dict[str, Any], path: Path) -> None:
    """Keep the tiles that were found to be the fastest, as a table that may become config/cuda_tiles.yaml."""
    tables: dict[int, dict[str, Any]] = {}
    for net in results["nets"].values():
        tuned = net["entries"].get("cuda_binary tuned") or {}
        for sm, tiles in tuned.get("tiles", {}).items():
            tables.setdefault(int(sm), {}).update(tiles)
    if tables:
        text = yaml.safe_dump(tables, sort_keys=False, default_flow_style=None, width=160)
        path.write_text(text, encoding="utf-8")


def _commit() -> str | None:
    """The commit of the checkout, marked where files of it were changed; None outside of one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).resolve().parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def run_in_process(name: str, file: Path, model: Path | None, seconds: float) -> str | None:
    """Run a part in a process of its own; what went wrong, None where nothing did."""
    if name == TESTS:
        command = [sys.executable, "-m", "pytest", "-q", "-rs", str(model)]
    else:
        command = [sys.executable, "-m", "benchmark.gpu.parts", name, str(file)]
        command += [str(model)] if model else []
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE} if name == TESTS else {"stderr": subprocess.PIPE}
    try:
        done = subprocess.run(command, **pipes, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "cut off: the time was over"
    lines = [line.strip() for line in (done.stdout or done.stderr or "").splitlines() if line.strip()]
    last = lines[-1] if lines else f"ended with exit code {done.returncode}"
    if name == TESTS:
        file.write_text(json.dumps({"summary": last}), encoding="utf-8")
    return None if done.returncode == 0 else last


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, as ``make gpu-check`` does; 0 where every part succeeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.gpu.benchmark", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--tests", type=Path, help="folder of tests to run first, as a part of the results")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="end all of it then (default: %(default)g)"
    )
    args = parser.parse_args(argv)
    try:
        return run_benchmark(args.results, args.minutes, run_in_process, args.tests)
    except Error as error:
        print(f"benchmark.gpu: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
