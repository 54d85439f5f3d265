"""Writes docs/performance.md: what every kernel does, what it should cost on a board, and what it cost where one ran.

    python -m benchmark.gpu.performance [--out docs/performance.md] [--results benchmark/results]

Needs NVRTC and nvdisasm, no GPU: ``pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvdisasm``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.gpu import nvrtc, sass
from benchmark.gpu.benchmark import RESULTS
from benchmark.gpu.model import BOARDS, CARRY_SAVE_GAIN, Board, Code, floor, predict, take_apart
from benchmark.gpu.nets import PAPER, ROAD_SIGNS, Topology, benchmark_model
from benchmark.gpu.report import TENSOR_KERNEL, TENSOR_PEAK
from benchmark.gpu.work import Work, binary_work
from bnn_perception.backends.cuda.network import network
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.specs import KernelSpec, Target, mma_tiles
from bnn_perception.backends.cuda.tiles import SHIPPED, TileTable
from bnn_perception.cli.markdown import table
from bnn_perception.errors import CommandError
from bnn_perception.net.layers import Conv2d
from bnn_perception.net.model import Model, iter_layers
from bnn_perception.resources import resource_folder

DOCUMENT = Path("docs") / "performance.md"


@dataclass(frozen=True)
class Kernel:
    """One kernel of a net on a board, for a batch of one frame."""

    work: Work
    spec: KernelSpec
    code: Code
    floor: float
    prediction: float


def kernels(model: Model, board: Board, tiles: TileTable) -> list[Kernel]:
    """Compile a net's kernels for a board and take them apart."""
    steps = network(model, Target(board.sm, board.multiprocessors), tiles)
    found = []
    for step, work in zip(steps, binary_work(model, 1, int(np.prod(model.input.shape))), strict=True):
        spec = step.spec(1)
        text = nvrtc.disassemble(nvrtc.compile_cubin(kernel_source(spec.kernel), spec.options, board.sm))
        code = take_apart(spec, sass.kernels(text)[spec.kernel])
        lowest = floor(work, board, spec.kernel == TENSOR_KERNEL)
        found.append(Kernel(work, spec, code, lowest, predict(spec, code, work, board)))
    return found


def tensor_tiles(model: Model, board: Board) -> TileTable:
    """Tiles on tensor cores, the best guesses, for every layer and board that can use them."""
    target = Target(board.sm, board.multiprocessors)
    table = TileTable()
    for place in iter_layers(model):
        if isinstance(place.layer, Conv2d):
            for tile in mma_tiles(place.layer, place.before, target)[:1]:
                table.set(place.layer, place.before, target, tile)
    return table


def measured_board(results: dict[str, Any]) -> Board | None:
    """The board of a run, from what the run measured; None where it lacks the figures."""
    environment, peaks = results.get("environment"), results.get("peaks")
    if not environment or not peaks or not environment.get("clock_mhz") or environment["sm"] < 75:
        return None
    clock = environment["clock_mhz"] * 1e6
    cycles = clock * environment["multiprocessors"]
    known = min(
        BOARDS,
        key=lambda board: (board.sm != environment["sm"], environment["integrated"] != (board.sm == 87)),
    )
    return Board(
        environment["gpu"],
        environment["sm"],
        environment["multiprocessors"],
        clock,
        peaks["copy"],
        peaks["popc"] / cycles,
        peaks["binary_mma"].get(TENSOR_PEAK, 0.0) / cycles or known.binary_mma,
        known.node,
        known.graph,
    )


def document(runs: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """The whole text."""
    major, minor = nvrtc.version()
    lines = ["# Performance on the GPU", ""]
    if runs:
        names = ", ".join(str((run.get("environment") or {}).get("gpu", path.stem)) for path, run in runs)
        lines += _text(
            f"Measured on: {names} (the sections *Measured*). Everything else on this page is computed."
        )
    else:
        lines += _text(
            "**Nothing on this page has been measured: no GPU has run this code yet.** Counts come from the nets, the "
            "kernels' geometry and their machine code. Times are computed from those and from the boards' figures, and "
            "show where time should go, not what it is."
        )
    lines += _text(
        f"Written by `python -m benchmark.gpu.performance`, machine code by NVRTC {major}.{minor}, tiles as "
        "they are guessed where nothing was measured: the node then takes POPC, and tensor cores only where `benchmark "
        "--tune` has found them to be faster. All figures are for one frame of the net's own size."
    )
    lines += _boards()
    for topology in (PAPER, ROAD_SIGNS):
        lines += _net(topology, runs)
    for path, _ in runs:
        lines += _notes(path)
    lines += _method()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _boards() -> list[str]:
    rows = [
        (
            board.name,
            f"{board.sm / 10:.1f}",
            str(board.multiprocessors),
            f"{board.clock / 1e9:.2f} GHz",
            f"{board.bandwidth / 1e9:.0f} GB/s",
            f"{2 * 32 * board.popc * cycles / 1e12:.1f}",
            f"{2 * board.binary_mma * cycles / 1e12:.0f}",
            f"{board.node * 1e6:.0f} µs",
            f"{board.graph * 1e6:.0f} µs",
        )
        for board in BOARDS
        for cycles in (board.clock * board.multiprocessors,)
    ]
    binary = ("POPC, binary TOPS", "tensor cores, binary TOPS")
    header = ("", "SM", "SMs", "clock", "memory", *binary, "kernel in a graph", "graph")
    return [
        "## Boards",
        *table(header, rows),
        "",
        *_text(
            "Clock (the highest), SMs and memory bandwidth: as NVIDIA publishes them, not read off a device. 16 POPC "
            "a clock and SM: the CUDA programming guide, from memory; `make gpu-check` measures it. Binary TOPS: "
            "derived, one POPC for 32 multiply-accumulates of two operations. Tensor cores: derived, 16,384 binary "
            "multiply-accumulates a clock and SM as published for the A100, measured neither on an Orin nor on a "
            "Hopper. The two launch times are estimates."
        ),
    ]


def _net(topology: Topology, runs: Sequence[tuple[Path, dict[str, Any]]]) -> list[str]:
    model = benchmark_model(topology, np.random.default_rng(0))
    # By board: every kernel by POPC, and for the layers that can, the kernel on tensor cores.
    found = {}
    for board in BOARDS:
        by_popc = kernels(model, board, TileTable())
        by_tensor = kernels(model, board, tensor_tiles(model, board))
        found[board] = [
            [first] if first.spec.kernel == second.spec.kernel else [first, second]
            for first, second in zip(by_popc, by_tensor, strict=True)
        ]
    sm87 = next(layers for board, layers in found.items() if board.sm == 87)
    lines = [
        "",
        f"## {topology.name}",
        "",
        "What there is to do, and the main loop's machine code for SM 8.7:",
    ]
    header = (
        *("kernel", "million binary operations", "million 8-bit MACs", "kB"),
        *("instructions for 32 binary MACs", "of them POPC", "of them LOP3", "of them BMMA"),
        "instructions for one 8-bit MAC",
    )
    lines += table(header, [_code_row(kernel) for layer in sm87 for kernel in layer])
    lines += ["", "Floor and prediction, microseconds:"]
    rows = []
    for layer in range(len(sm87)):
        for variant, kernel in enumerate(sm87[layer]):
            cells = []
            for layers in found.values():
                timed = layers[layer][variant]
                cells += [f"{timed.floor * 1e6:.1f}", f"{timed.prediction * 1e6:.1f}"]
            rows.append((_title(kernel), *cells))
    for title, choose in (("whole net by POPC", 0), ("whole net, tensor cores where they can", -1)):
        cells = []
        for board, layers in found.items():
            chosen = [layer[choose] for layer in layers]
            cells.append(f"{(board.graph + sum(kernel.floor for kernel in chosen)) * 1e6:.1f}")
            cells.append(f"{(board.graph + sum(kernel.prediction for kernel in chosen)) * 1e6:.1f}")
        rows.append((title, *cells))
    lines += table(
        ("", *(f"{board.name}: {what}" for board in BOARDS for what in ("floor", "predicted"))), rows
    )
    for path, run in runs:
        lines += _measured(topology, model, path, run)
    return lines


def _title(kernel: Kernel) -> str:
    return f"{kernel.work.layer} `{kernel.spec.kernel}`"


def _code_row(kernel: Kernel) -> tuple[str, ...]:
    work, loop = kernel.work, kernel.code.loop
    cells = [_title(kernel)]
    cells.append(f"{2 * work.binary_macs / 1e6:.2f}" if work.binary_macs else "")
    cells.append(f"{work.byte_macs / 1e6:.2f}" if work.byte_macs else "")
    cells.append(f"{work.bytes / 1e3:.1f}")
    if loop is None:
        return (*cells, "", "", "", "", "")
    if work.byte_macs:
        return (*cells, "", "", "", "", f"{loop.per_word / 4:.2f}")
    parts = (loop.instructions[name] / loop.words for name in ("POPC", "LOP3", "BMMA"))
    return (*cells, f"{loop.per_word:.2f}", *(f"{part:.2f}" if part else "" for part in parts), "")


def _measured(topology: Topology, model: Model, path: Path, run: dict[str, Any]) -> list[str]:
    """Prediction and measurement side by side."""
    lines = ["", f"### Measured: {path.stem}, {run['date'][:10]}, commit {run['commit'] or 'unknown'}"]
    board = measured_board(run)
    entries = (run.get("nets") or {}).get(topology.name, {}).get("entries", {})
    tables = {"cuda_binary": TileTable.load(resource_folder("config") / SHIPPED)}
    tables["cuda_binary tuned"] = TileTable.load(path.with_suffix(".tiles.yaml"))
    for name, tiles in tables.items():
        batch = ((entries.get(name) or {}).get("batches") or {}).get("1")
        if board is None or batch is None:
            lines += ["", f"No times of {name}."]
            continue
        rows = []
        for kernel, measured in zip(kernels(model, board, tiles), batch["kernels"], strict=True):
            prediction, found = kernel.prediction * 1e6, measured["microseconds"]
            times = (
                f"{kernel.floor * 1e6:.1f}",
                f"{prediction:.1f}",
                f"{found:.1f}",
                f"{found / prediction:.2f}",
            )
            rows.append((_title(kernel), *times))
        lines += [
            "",
            f"{name}; whole net, frames on the GPU to logits there: {batch['gpu']['median']:.1f} µs.",
        ]
        lines += table(("", "floor, µs", "predicted, µs", "measured, µs", "measured / predicted"), rows)
    return lines


def _notes(path: Path) -> list[str]:
    """What somebody wrote about the measurements on one GPU."""
    notes = path.with_suffix(".notes.md")
    if not notes.is_file():
        return []
    return ["", f"## Notes: {path.stem}", "", notes.read_text(encoding="utf-8").strip()]


def _method() -> list[str]:
    points = (
        "*Binary operations*: two (XOR, count) for each multiply-accumulate of a bit with a bit. *Bytes*: every input, "
        "weight and output once.",
        "*Instructions for 32 binary MACs*: all instructions of the innermost loop that counts, over the words that it "
        "counts. The number of words follows from its POPC: the carry-save tree of `kernels/bits.cuh` takes a known "
        "number of POPC for a number of words. A BMMA of a warp is 32 words for each lane; one of five counts the ones "
        "of the input and no products.",
        "*Floor*: the larger of operations over peak and bytes over bandwidth, plus one kernel's place in a graph. The "
        f"peak by POPC is {CARRY_SAVE_GAIN} words a POPC, what carry-save adders allow where LOP3 is the limit "
        "(derived, not measured); that of the 8-bit layer is 64 DP4A a clock and SM.",
        "*Predicted*: the main loop as often as the geometry says, staging, and the rest of the code once. The busiest "
        "SM issues at most four instructions a clock, POPC and BMMA at their peaks, 64 integer operations, 64 "
        "multiplications and 32 accesses to memory; a single warp one instruction in two clocks. Two trips to memory "
        "of 500 clocks are hidden by nothing. The preprocessing is overstated: its loops depend on the frame and are "
        "left out, but all other code counts, of which a frame of the net's own size skips about half.",
    )
    lines = ["", "## How it is computed", ""]
    for point in points:
        lines += textwrap.wrap(point, 115, initial_indent="- ", subsequent_indent="  ")
    return lines


def _text(paragraph: str) -> list[str]:
    """A paragraph and the empty line after it."""
    return [*textwrap.wrap(paragraph, 115), ""]


def load_runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The results in a folder, by name."""
    return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.gpu.performance", description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCUMENT, help="file to write (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of measurements (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        text = document(load_runs(args.results))
    except CommandError as error:
        print(f"performance: {error}", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
