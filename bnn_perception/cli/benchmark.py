"""``benchmark``: times the backends against each other, in one run on this machine.

What is compared on the CPU is the same for all: a ready input, pixels or tensor, to scores, batch 1, the same number
of threads. ONNX Runtime's threads may spin here, which is its fastest setting for nets of this size; the node lets
them sleep, because they would keep cores busy between frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnn_perception.backends import BackendError
from bnn_perception.backends.cpu.binary import CpuBinaryBackend
from bnn_perception.backends.cpu.float import open_session, to_tensor
from bnn_perception.backends.cpu.processor import device_name
from bnn_perception.backends.cpu.threads import Workers
from bnn_perception.cli import node_load, onnx_runs
from bnn_perception.cli.timing import CallTimes, compare
from bnn_perception.errors import printable
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare
from bnn_perception.net.folder import load_model
from bnn_perception.net.model import Model, iter_layers
from bnn_perception.resources import find_model
from bnn_perception.ros import node_cost

BINARY, FLOAT, INT8 = "cpu_binary", "float32", "int8"
#: Frames after which resident memory is read, and again after so many times as many more.
MEMORY_FRAMES, MEMORY_FACTOR = 500, 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("benchmark")
    parser.add_argument("--model", default="road_signs", help="model folder or name (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1, 2],
        help="numbers of threads to measure with (default: 1 2)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="find the tiles that suit this GPU for the model, for the node to use",
    )
    parser.add_argument(
        "--table", type=Path, help="file that --tune writes (default: the one that the node reads)"
    )
    node_load.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    folder = find_model(args.model)
    if args.node:
        return node_load.run(args, folder)
    model = load_model(folder)
    if args.tune:
        from bnn_perception.backends.cuda.tiles import user_table
        from bnn_perception.backends.cuda.tune import tune

        tune([model], args.table or user_table())
        return 0
    frame = Frame(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    results: dict[str, Any] = {
        "model": model.name,
        "processor": device_name(max(args.threads)),
        "macs": model.macs,
        "threads": {},
    }
    print(
        f"{printable(model.name)}: {results['macs'] / 1e6:.1f} M multiply-accumulates; {results['processor']}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        nets, notes = _float_nets(model, Path(scratch))
        for threads in args.threads:
            measured = measure(model, frame, nets, threads, Path(scratch))
            results["threads"][str(threads)] = measured
            print("\n".join(["", *tables(measured, threads)]))
    results["memory"] = _memory(model, frame, min(args.threads))
    print(_memory_line(results["memory"]))
    try:
        results["node"] = node_cost.measure(folder, min(args.threads), frame.pixels)
        print("\n".join(_node_lines(results["node"])))
    except ImportError as error:
        notes.append(f"the node's own cost is left out, for it needs ROS 2 ({error})")
    results["notes"] = notes
    for note in notes:
        print(f"note: {note}")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _float_nets(model: Model, scratch: Path) -> tuple[dict[str, Path], list[str]]:
    """The float net and its int8 form, and what had to be left out."""
    if model.float_twin is None:
        return {}, [f"the float nets are left out, for model '{model.name}' has no float twin"]
    height, width, channels = model.input.shape
    try:
        int8 = onnx_runs.quantize(model.float_twin, scratch, (channels, height, width))
    except onnx_runs.MissingPackageError as missing:
        return {FLOAT: model.float_twin}, [str(missing)]
    return {FLOAT: model.float_twin, INT8: int8}, []


def measure(
    model: Model,
    frame: Frame,
    nets: dict[str, Path],
    threads: int,
    scratch: Path,
    rounds: int = 0,
    calls: int = 0,
) -> dict[str, Any]:
    """Everything that is measured at one number of threads; times in milliseconds.

    Args:
        nets: the float nets to compare with, by their names.
        scratch: a folder for ONNX Runtime's profiles.
        rounds, calls: see :func:`bnn_perception.cli.timing.compare`.
    """
    backend = CpuBinaryBackend(model, threads)
    pixels = prepare(frame, model.input)
    tensor = to_tensor(pixels[None])
    backend.program.pixels[...] = pixels
    layer_workers = {
        layer.name: Workers(backend.program, backend.program.layer_steps(layer.name), threads)
        for layer in model.layers
    }
    whole: dict[str, Callable[[], object]] = {BINARY: backend.workers.evaluate}
    for name, path in nets.items():
        whole[name] = _runner(path, threads, tensor)
    try:
        net = compare(whole, rounds, calls)
        layers = compare({name: workers.evaluate for name, workers in layer_workers.items()}, rounds, calls)
        frames = compare({"640x480 rgb8 to input": lambda: prepare(frame, model.input, pixels)})
    finally:
        for workers in layer_workers.values():
            workers.stop()
        backend.close()
    profiles = {name: onnx_runs.layer_times(path, threads, tensor, scratch) for name, path in nets.items()}
    rows = []
    weighted = 0
    matching = {name: times for name, times in profiles.items() if len(times) == _weighted_layers(model)}
    for layer, shape, *_ in iter_layers(model):
        if len(backend.program.layer_steps(layer.name)) == 0:  # it runs within the step of a layer before it
            weighted += layer.has_weights
            continue
        row: dict[str, Any] = {
            "name": layer.name,
            "macs": layer.macs(shape),
            BINARY: _figures(layers[layer.name]),
        }
        if layer.has_weights:
            row.update({name: {"median": times[weighted]} for name, times in matching.items()})
            weighted += 1
        rows.append(row)
    return {
        "net": {name: _figures(timing, net[BINARY]) for name, timing in net.items()},
        "layers": rows,
        "preprocess": _figures(frames["640x480 rgb8 to input"]),
    }


def _runner(path: Path, threads: int, tensor: Any) -> Callable[[], object]:
    session = open_session(path, threads, spinning=True)
    feed = {session.get_inputs()[0].name: tensor}
    return lambda: session.run(None, feed)


def _weighted_layers(model: Model) -> int:
    return sum(layer.has_weights for layer in model.layers)


def _figures(timing: CallTimes, base: CallTimes | None = None) -> dict[str, Any]:
    figures: dict[str, Any] = {"median": timing.median, "p95": timing.p95}
    if base is not None and base is not timing:
        figures["ratio"], figures["ratio_p10"], figures["ratio_p90"] = timing.ratio_to(base)
    return figures


def _memory(model: Model, frame: Frame, threads: int) -> dict[str, int]:
    """Resident memory of this process, kB, after some frames and after many."""
    backend = CpuBinaryBackend(model, threads)
    memory: dict[str, int] = {}
    done = 0
    for frames in (MEMORY_FRAMES, MEMORY_FRAMES * MEMORY_FACTOR):
        for _ in range(frames):
            backend.logits([frame])
        done += frames
        memory[str(done)] = _resident()
    backend.close()
    return memory


def _resident() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise BackendError("/proc/self/status has no VmRSS")


def tables(measured: dict[str, Any], threads: int) -> list[str]:
    """The figures at one number of threads, as lines."""
    net, layers = measured["net"], measured["layers"]
    plural = "s" if threads > 1 else ""
    rows = [
        [f"{threads} thread{plural}, whole net", "median ms", "p95 ms", "times cpu_binary", "(10 % to 90 %)"]
    ]
    for name, figures in net.items():
        row = [name, f"{figures['median']:.3f}", f"{figures['p95']:.3f}"]
        if "ratio" in figures:
            row += [f"{figures['ratio']:.1f}", f"({figures['ratio_p10']:.1f} to {figures['ratio_p90']:.1f})"]
        rows.append(row)
    lines = _aligned(rows)
    names = list(net)
    rows = [["layer", "M MAC", *(f"{name} ms" for name in names), *(f"{name} x" for name in names[1:])]]
    for layer in layers:
        medians = [layer.get(name, {}).get("median") for name in names]
        rows.append(
            [
                layer["name"],
                f"{layer['macs'] / 1e6:.2f}",
                *("" if median is None else f"{median:.4f}" for median in medians),
                *("" if median is None else f"{median / medians[0]:.1f}" for median in medians[1:]),
            ]
        )
    lines += ["", *_aligned(rows)]
    if len(names) > 1:
        lines.append(
            "(layers: cpu_binary by the clock, each called by itself; the others by ONNX Runtime's profiler, which may "
            "run two branches in the other order)"
        )
    figures = measured["preprocess"]
    lines += [
        "",
        f"640x480 rgb8 to the net's input: {figures['median']:.3f} ms, p95 {figures['p95']:.3f} (1 thread)",
    ]
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, all but the first flushed right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


def _memory_line(memory: dict[str, int]) -> str:
    (first, before), (last, after) = memory.items()
    return f"\nresident memory: {before} kB after {first} frames, {after} kB after {last} ({after - before:+} kB)"


def _node_lines(stages: dict[str, dict[str, float]]) -> list[str]:
    shown = [
        stage for stage in ("wait", "decode", "preprocess", "inference", "publish", "own") if stage in stages
    ]
    rows = [["node, 640x480 rgb8", "median ms", "p95 ms"]]
    rows += [[stage, f"{stages[stage]['median']:.3f}", f"{stages[stage]['p95']:.3f}"] for stage in shown]
    return [
        "",
        *_aligned(rows),
        "(own: from the entry of the callback to the published label, without inference)",
    ]
