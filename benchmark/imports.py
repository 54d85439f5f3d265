"""How long import takes: ``python -m benchmark.imports`` writes large nets of random weights as ONNX and reads them.

It prints a row a net: its weights, the size of its file, the seconds of the quickest of some readings. The nets: CNV of
FINN in QONNX, a plain and a residual one of more than 10 million weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.importers.onnx.read import read

QONNX = "qonnx.custom_op.general"


class Writer:
    """Writes a graph of random weights, node after node; ``at`` is the tensor that the next node takes."""

    def __init__(self, side: int) -> None:
        self.rng, self.side, self.at, self.channels = np.random.default_rng(1), side, "image", 3
        self.weights = 0
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> Writer:
        from onnx import helper

        name = f"{op}{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(op, inputs or [self.at], [name], name, domain=domain, **attributes)
        )
        self.at = name
        return self

    def random(self, *shape: int) -> Any:
        self.weights += int(np.prod(shape))
        return self.rng.standard_normal(shape)

    def binary(self, *shape: int, quantizer: bool = False) -> str:
        """Weights of ±c; where a quantizer is asked for, the latent ones with it, as Brevitas writes them."""
        values = self.random(*shape)
        if not quantizer:
            scale = np.abs(values).reshape(len(values), -1).mean(axis=1)
            return self.constant(np.where(values >= 0, 1, -1) * scale.reshape(-1, *[1] * (len(shape) - 1)))
        before = self.at
        self.node("BipolarQuant", self.constant(values), self.constant(0.1), domain=QONNX)
        name, self.at = self.at, before
        return name

    def conv(self, weights: str, after: int, kernel: int, stride: int = 1, pad: int = 0) -> Writer:
        self.node("Conv", self.at, weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        self.side, self.channels = (self.side + 2 * pad - kernel) // stride + 1, after
        return self

    def norm(self) -> Writer:
        count = self.channels
        values = (self.rng.uniform(0.5, 1.5, count), *self.rng.standard_normal((2, count)))
        names = [self.constant(v) for v in (*values, self.rng.uniform(0.5, 1.5, count))]
        return self.node("BatchNormalization", self.at, *names)

    def sign(self) -> Writer:
        self.node("Less", self.at, self.constant(0))
        return self.node("Where", self.at, self.constant(-1), self.constant(1))

    def quantizer(self) -> Writer:
        return self.node("BipolarQuant", self.at, self.constant(1), domain=QONNX)

    def matrix(self, weights: str, after: int) -> Writer:
        self.channels = after
        return self.node("Gemm", self.at, weights, transB=1)

    def save(self, path: Path, side: int) -> None:
        import onnx
        from onnx import helper

        image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, side, side])
        logits = helper.make_tensor_value_info(self.at, onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "net", [image], [logits], self._constants)
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid(QONNX, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets), path)


def cnv() -> Writer:
    """FINN's CNV W1A1, as Brevitas exports it."""
    w = Writer(32)
    for index, (after, pool) in enumerate([(64, 0), (64, 1), (128, 0), (128, 1), (256, 0), (256, 0)]):
        if index == 0:
            w.node("Mul", w.at, w.constant(2)).node("Sub", w.at, w.constant(1))
            quant = [w.constant(v) for v in (1 / 128, 0, 8)]
            w.node("Quant", w.at, *quant, domain=QONNX, signed=1, narrow=0, rounding_mode="ROUND")
        w.conv(w.binary(after, w.channels, 3, 3, quantizer=True), after, 3).norm().quantizer()
        if pool:
            w.node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
            w.side //= 2
    w.node("Flatten")
    for after in (512, 512, 10):
        w.matrix(w.binary(after, w.channels, quantizer=True), after).norm()
        if after > 10:
            w.quantizer()
    return w


def plain() -> Writer:
    """Convolutions, batch norms and signs, 10 million weights."""
    w = Writer(32)
    for after, stride in ((128, 1), (256, 2), (512, 2), (512, 1), (512, 1), (512, 1)):
        w.conv(w.binary(after, w.channels, 3, 3), after, 3, stride, 1).norm().sign()
    w.node("Flatten")
    w.channels *= w.side**2
    return w.matrix(w.binary(100, w.channels), 100)


def residual() -> Writer:
    """Bi-Real-18 at full width, 11 million weights, the first and the last of them and the shortcuts real."""
    w = Writer(64)
    w.conv(w.constant(w.random(64, 3, 7, 7)), 64, 7, 2, 3).norm()
    for after, stride in ((64, 1),) * 4 + sum((((c, 2), *((c, 1),) * 3) for c in (128, 256, 512)), ()):
        start, before, side = w.at, w.channels, w.side
        w.sign().conv(w.binary(after, before, 3, 3), after, 3, stride, 1).norm()
        body, after_side = w.at, w.side
        w.at, w.channels, w.side = start, before, side
        if stride == 2:
            w.node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
            w.conv(w.constant(w.random(after, before, 1, 1)), after, 1).norm()
        w.node("Add", body, w.at)
        w.channels, w.side = after, after_side
    w.node("GlobalAveragePool").node("Flatten")
    return w.node("Gemm", w.at, w.constant(w.random(1000, 512)), transB=1)


NETS: dict[str, tuple[Callable[[], Writer], int]] = {
    "CNV, QONNX": (cnv, 32),
    "plain": (plain, 32),
    "Bi-Real-18": (residual, 64),
}


def seconds(path: Path, times: int) -> float:
    """Of the quickest of some readings of a file."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        read(path, PixelRange())
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="readings of each net")
    times = parser.parse_args().times
    print(f"{'net':12} {'weights':>12} {'MB':>7} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, side) in NETS.items():
            path, writer = Path(folder) / "net.onnx", make()
            writer.save(path, side)
            megabytes = path.stat().st_size / 1e6
            print(f"{name:12} {writer.weights:12,} {megabytes:7.1f} {seconds(path, times):8.2f}")


if __name__ == "__main__":
    main()
