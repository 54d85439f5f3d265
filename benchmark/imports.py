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

from benchmark.cpu import Net, bireal18
from benchmark.graphs import QONNX, Graph
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.importers.onnx.read import read


def cnv(folder: Path) -> tuple[Path, int]:
    """FINN's CNV W1A1, as Brevitas exports it."""
    g = Graph(32)
    x = g.add("Sub", g.add("Mul", "image", g.constant(2)), g.constant(1))
    quant = [g.constant(value) for value in (1 / 128, 0, 8)]
    x = g.add("Quant", x, *quant, domain=QONNX, signed=1, narrow=0, rounding_mode="ROUND")

    def sign(x: str) -> str:
        return g.add("BipolarQuant", x, g.constant(1), domain=QONNX)

    for index, after in enumerate((64, 64, 128, 128, 256, 256)):
        weights = g.quantized(after, g.channels[x], 3, 3)
        x = sign(g.norm(g.conv(x, weights, after, 3)))
        if index in (1, 3):
            x = g.pool("MaxPool", x, 2, 2)
    x = g.add("Flatten", x)
    for after in (512, 512, 10):
        weights = g.quantized(after, g.channels[x])
        x = g.norm(g.add("Gemm", x, weights, channels=after, transB=1))
        x = sign(x) if after > 10 else x
    return g.save(folder / "cnv.onnx", x), g.weights


def plain(folder: Path) -> tuple[Path, int]:
    """Convolutions, batch norms and signs, 10 million weights."""
    g, x = Graph(32), "image"
    for after, stride in ((128, 1), (256, 2), (512, 2), (512, 1), (512, 1), (512, 1)):
        weights = g.binary(after, g.channels[x], 3, 3)
        x = g.sign(g.norm(g.conv(x, weights, after, 3, stride, 1)))
    x = g.add("Flatten", x)
    x = g.add("Gemm", x, g.binary(100, 512 * 8 * 8), channels=100, transB=1)
    return g.save(folder / "plain.onnx", x), g.weights


def residual(folder: Path) -> tuple[Path, int]:
    """Bi-Real-18 at full width, 11 million weights, the first and the last of them and the shortcuts real."""
    net = Net(binary=True)
    return net.save(folder / "bireal18.onnx", bireal18(net)), net.weights


NETS: dict[str, Callable[[Path], tuple[Path, int]]] = {
    "CNV, QONNX": cnv,
    "plain": plain,
    "Bi-Real-18": residual,
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
        for name, make in NETS.items():
            path, weights = make(Path(folder))
            megabytes = path.stat().st_size / 1e6
            print(f"{name:12} {weights:12,} {megabytes:7.1f} {seconds(path, times):8.2f}")


if __name__ == "__main__":
    main()
