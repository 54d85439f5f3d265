"""Nets of the literature at full width against ONNX Runtime, on the CPU, in one run.

``python -m benchmark.cpu bireal18`` makes the net from random weights (time does not depend on their values), imports
it as any user's, and measures it as ``python -m bnn_perception benchmark`` does: against the float net of the same
layers and shapes, ReLU in place of each sign and batch norms folded, in float32 and in int8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmark.graphs import Graph
from bnn_perception.backends.cpu.processor import device_name
from bnn_perception.cli import onnx_runs
from bnn_perception.cli.benchmark import FLOAT, INT8, measure, tables
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import read
from bnn_perception.importers.fold.builder import UNIT

SIDE, CLASSES = 224, 1000


class Net(Graph):
    """A net of 224x224 pixels.

    Args:
        binary: whether the convolutions that can be are binary; otherwise it is the float net.
    """

    def __init__(self, binary: bool) -> None:
        super().__init__(SIDE)
        self._binary = binary

    def real_conv(self, x: str, channels: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        """A convolution of real weights and its batch norm."""
        inputs = self.channels[x] // group
        weights = self.real(channels, inputs, kernel, kernel)
        y = self.conv(x, weights, channels, kernel, stride, kernel // 2, group)
        return self.norm(y, inputs * kernel**2)

    def binary_conv(self, x: str, channels: int, stride: int = 1, relu: bool = False) -> str:
        """A sign, a 3x3 convolution of signs, ReLU perhaps, a batch norm; in the float net ReLU and real weights."""
        shape = channels, self.channels[x], 3, 3
        if self._binary:
            y = self.conv(self.sign(x), self.binary(*shape), channels, 3, stride, 1)
            y = self.add("Relu", y) if relu else y
        else:
            y = self.conv(self.add("Relu", x), self.real(*shape), channels, 3, stride, 1)
        return self.norm(y, 9 * shape[1])

    def classes(self, x: str) -> str:
        """Global average pooling and a real matrix."""
        flat = self.add("Flatten", self.add("GlobalAveragePool", x))
        matrix, bias = self.real(CLASSES, self.channels[x]), self.constant(np.zeros(CLASSES))
        return self.add("Gemm", flat, matrix, bias, channels=CLASSES, transB=1)


def bireal18(graph: Net) -> str:
    """Bi-Real Net of 18 layers (arXiv 1808.00278): 7x7 stem, a shortcut around each of 16 binary convolutions."""
    x = graph.pool("MaxPool", graph.real_conv("image", 64, 7, 2), 3, 2, 1)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(4):
            stride = 2 if stage and not block else 1
            y = graph.binary_conv(x, channels, stride)
            shortcut = graph.real_conv(graph.pool("AveragePool", x, 2, 2), channels, 1) if stride == 2 else x
            x = graph.add("Add", y, shortcut)
    return graph.classes(x)


def quicknet(graph: Net) -> str:
    """QuickNet (arXiv 2011.09398): 16 binary convolutions with ReLU; depthwise and 1x1 ones in the stem and between."""
    x = graph.add("Relu", graph.real_conv("image", 16, 3, 2))
    x = graph.real_conv(graph.real_conv(x, 16, 3, 2, group=16), 64, 1)
    for stage, channels in enumerate((64, 128, 256, 512)):
        if stage:
            x = graph.add("Relu", x)
            x = graph.real_conv(
                graph.real_conv(x, graph.channels[x], 3, 2, group=graph.channels[x]), channels, 1
            )
        for _ in range(4):
            x = graph.add("Add", graph.binary_conv(x, channels, relu=True), x)
    return graph.classes(graph.add("Relu", x))


NETS = {"bireal18": bireal18, "quicknet": quicknet}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.cpu", description=__doc__)
    parser.add_argument("net", choices=sorted(NETS))
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        graphs = Net(binary=True), Net(binary=False)
        source, twin = (
            graph.save(scratch / f"{name}.onnx", NETS[args.net](graph))
            for graph, name in zip(graphs, ("binary", "float"))
        )
        model = read(source, UNIT)
        nets = {FLOAT: twin, INT8: onnx_runs.quantize(twin, scratch, (3, SIDE, SIDE))}
        frame = Frame(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
        print(f"{args.net}: {model.macs / 1e6:.0f} M multiply-accumulates; {device_name(max(args.threads))}")
        figures = {}
        for threads in args.threads:
            figures[threads] = measure(model, frame, nets, threads, scratch, rounds=args.rounds, calls=10)
            print("\n".join(["", *tables(figures[threads], threads)]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
