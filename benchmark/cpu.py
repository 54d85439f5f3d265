"""Nets of the literature at full width against ONNX Runtime, on the CPU, in one run.

``python -m benchmark.cpu bireal18`` makes the net from random weights (time does not depend on their values), imports
it as any user's, and measures it as ``python -m bnn_perception benchmark`` does: against the float net of the same
layers and shapes, ReLU in place of each sign and batch norms folded, in float32 and in int8.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cpu.processor import device_name
from bnn_perception.cli import onnx_runs
from bnn_perception.cli.benchmark import FLOAT, INT8, measure, tables
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import read
from bnn_perception.importers.fold.builder import UNIT

SIDE, CLASSES = 224, 1000


class Graph:
    """An ONNX graph that grows by one operator at a time.

    Args:
        binary: whether the convolutions that can be are binary; otherwise it is the float net.
    """

    def __init__(self, binary: bool) -> None:
        self._binary, self._rng = binary, np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self.channels = {"image": 3}

    def add(self, op: str, *inputs: str, channels: int = 0, **attributes: Any) -> str:
        from onnx import helper

        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        self.channels[name] = channels or self.channels[inputs[0]]
        return name

    def constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(
        self, x: str, channels: int, kernel: int, stride: int = 1, group: int = 1, padding: int | None = None
    ) -> str:
        """A convolution of real weights and its batch norm."""
        shape = channels, self.channels[x] // group, kernel, kernel
        weights = self._rng.normal(0, 1, shape).astype(np.float32)
        return self._normalized(x, weights, stride, kernel // 2 if padding is None else padding, group)

    def binary_conv(self, x: str, channels: int, stride: int = 1, relu: bool = False) -> str:
        """A sign, a 3x3 convolution of signs and its batch norm; in the float net ReLU and real weights."""
        shape = channels, self.channels[x], 3, 3
        if not self._binary:
            weights = self._rng.normal(0, 1, shape).astype(np.float32)
            return self._normalized(self.add("Relu", x), weights, stride, 1, 1)
        holds = self.add("GreaterOrEqual", x, self.constant(np.float32(0)))
        ones = (self.constant(np.float32(value)) for value in (1, -1))
        weights = self._rng.choice([-1, 1], shape).astype(np.float32)
        return self._normalized(self.add("Where", holds, *ones), weights, stride, 1, 1, relu)

    def _normalized(
        self, x: str, weights: NDArray[np.float32], stride: int, padding: int, group: int, relu: bool = False
    ) -> str:
        count = len(weights)
        window = {"kernel_shape": weights.shape[2:], "strides": [stride] * 2, "pads": [padding] * 4}
        y = self.add("Conv", x, self.constant(weights), channels=count, group=group, **window)
        y = self.add("Relu", y) if relu else y
        gamma, beta, mean = (self._rng.normal(m, 0.1, count).astype(np.float32) for m in (1, 0, 0))
        variance = np.full(count, math.prod(weights.shape[1:]), np.float32)
        constants = [self.constant(values) for values in (gamma, beta, mean, variance)]
        return self.add("BatchNormalization", y, *constants)

    def pool(self, op: str, x: str, kernel: int, stride: int, padding: int = 0) -> str:
        return self.add(op, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)

    def classes(self, x: str) -> str:
        """Global average pooling and a real matrix."""
        flat = self.add("Flatten", self.add("GlobalAveragePool", x))
        matrix = self._rng.normal(0, 0.05, (CLASSES, self.channels[x])).astype(np.float32)
        bias = self.constant(np.zeros(CLASSES, np.float32))
        return self.add("Gemm", flat, self.constant(matrix), bias, channels=CLASSES, transB=1)

    def save(self, path: Path, logits: str) -> Path:
        import onnx
        from onnx import TensorProto, helper

        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
        output = helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, CLASSES])
        graph = helper.make_graph(self._nodes, path.stem, [image], [output], initializer=self._constants)
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def bireal18(graph: Graph) -> str:
    """Bi-Real Net of 18 layers (arXiv 1808.00278): 7x7 stem, a shortcut around each of 16 binary convolutions."""
    x = graph.pool("MaxPool", graph.conv("image", 64, 7, 2), 3, 2, 1)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(4):
            stride = 2 if stage and not block else 1
            y = graph.binary_conv(x, channels, stride)
            shortcut = graph.conv(graph.pool("AveragePool", x, 2, 2), channels, 1) if stride == 2 else x
            x = graph.add("Add", y, shortcut)
    return graph.classes(x)


def quicknet(graph: Graph) -> str:
    """QuickNet (arXiv 2011.09398): 16 binary convolutions with ReLU; depthwise and 1x1 ones in the stem and between."""
    x = graph.add("Relu", graph.conv("image", 16, 3, 2))
    x = graph.conv(graph.conv(x, 16, 3, 2, group=16), 64, 1)
    for stage, channels in enumerate((64, 128, 256, 512)):
        if stage:
            x = graph.add("Relu", x)
            x = graph.conv(graph.conv(x, graph.channels[x], 3, 2, group=graph.channels[x]), channels, 1)
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
        graphs = Graph(binary=True), Graph(binary=False)
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
