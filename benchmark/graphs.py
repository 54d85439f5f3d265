"""Writes ONNX graphs of random weights, for the benchmarks that want large nets: time does not depend on the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

QONNX = "qonnx.custom_op.general"


class Graph:
    """An ONNX graph of one image that grows by one operator at a time.

    Args:
        side: of the image, pixels.

    Attributes:
        channels: of each tensor, by its name.
        weights: how many weights it has.
    """

    def __init__(self, side: int) -> None:
        self.rng, self.channels, self.weights = np.random.default_rng(0), {"image": 3}, 0
        self._side = side
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, op: str, *inputs: str, channels: int = 0, domain: str = "", **attributes: Any) -> str:
        """The name of what a new node gives, of as many channels as its first input unless it says otherwise."""
        from onnx import helper

        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name, domain=domain, **attributes))
        self.channels[name] = channels or self.channels.get(inputs[0], 0)
        return name

    def constant(self, values: Any) -> str:
        """The name of a new constant, in float32."""
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def real(self, *shape: int) -> str:
        """Real weights."""
        return self._weights(self.rng.normal(0, 1, shape))

    def binary(self, *shape: int) -> str:
        """Weights of ±1."""
        return self._weights(self.rng.choice([-1, 1], shape))

    def quantized(self, *shape: int) -> str:
        """Latent weights with their quantizer, as Brevitas writes them."""
        return self.add("BipolarQuant", self.real(*shape), self.constant(0.1), domain=QONNX)

    def _weights(self, values: NDArray[Any]) -> str:
        self.weights += values.size
        return self.constant(values)

    def conv(
        self,
        x: str,
        weights: str,
        channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        group: int = 1,
    ) -> str:
        window: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [padding] * 4,
        }
        return self.add("Conv", x, weights, channels=channels, group=group, **window)

    def norm(self, x: str, variance: float = 1.0) -> str:
        """A batch norm of sums that scatter so much."""
        count = self.channels[x]
        gamma, beta, mean = (self.rng.normal(m, 0.1, count) for m in (1, 0, 0))
        values = gamma, beta, mean * variance**0.5, np.full(count, variance)
        return self.add("BatchNormalization", x, *map(self.constant, values))

    def sign(self, x: str) -> str:
        """A comparison and a choice."""
        holds = self.add("GreaterOrEqual", x, self.constant(0))
        return self.add("Where", holds, self.constant(1), self.constant(-1), channels=self.channels[x])

    def pool(self, op: str, x: str, kernel: int, stride: int, padding: int = 0) -> str:
        return self.add(op, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)

    def save(self, path: Path, logits: str) -> Path:
        import onnx
        from onnx import TensorProto, helper

        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, self._side, self._side])
        output = helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, self.channels[logits]])
        graph = helper.make_graph(self._nodes, path.stem, [image], [output], initializer=self._constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(QONNX, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path
