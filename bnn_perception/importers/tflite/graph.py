"""Makes the ONNX graph of a ``.tflite`` file, operator by operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.tflite.file import Operator, Tensor

if TYPE_CHECKING:
    import onnx

#: The opset of the graph that is made: axes of ReduceMean are an attribute in it.
OPSET = 17
#: The orders of (N, H, W, C) as (N, C, H, W), and back.
CHW, HWC = [0, 3, 1, 2], [0, 2, 3, 1]
#: Numbers of all constants together: each bit of a weight becomes a float32 on the way.
MAX_NUMBERS = 1 << 28


class GraphBuilder:
    """The nodes and constants of an ONNX graph.

    Attributes:
        shapes: of the tensors of the file, by their names, where they are no signs in words.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._named: dict[str, str] = {}
        self._numbers = 0
        self._operator: Operator | None = None
        self._parts = 0
        self.shapes: dict[str, tuple[int, ...]] = {}

    def begin(self, operator: Operator) -> None:
        """Name the nodes to come by this operator."""
        self._operator = operator

    def of(self, tensor: Tensor) -> str:
        """The name of a tensor of the file in the graph."""
        if tensor.name not in self._named:
            if tensor.dtype == object:
                raise RefusalError(f"takes '{tensor.name}', whose type of numbers is not known")
            if tensor.data is None:
                raise RefusalError(f"takes '{tensor.name}', which nothing before it gives")
            self._named[tensor.name] = self.constant(tensor.data)
        return self._named[tensor.name]

    def input(self, tensor: Tensor) -> None:
        """Let a tensor be the image."""
        self._named[tensor.name] = tensor.name

    def constant(self, values: NDArray[Any] | np.float32) -> str:
        """The name of a new constant."""
        from onnx import numpy_helper

        name = f"constant {len(self._constants)}"
        array = np.asarray(values)
        self.check_room(array.size)
        self._numbers += array.size
        native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
        self._constants.append(numpy_helper.from_array(native.reshape(array.shape), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The name of what a new node gives."""
        from onnx import helper

        assert self._operator is not None
        self._parts += 1
        name = f"{self._operator.outputs[0].name} / {self._parts}"
        title = f"{self._operator.op} {self._operator.outputs[0].name}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=title, **attributes))
        return name

    def clip(self, name: str, low: float | None, high: float | None) -> str:
        """A tensor between limits, as far as there are any."""
        if low is None and high is None:
            return name
        limits = ["" if limit is None else self.constant(np.float32(limit)) for limit in (low, high)]
        return self.add("Clip", name, *limits)

    def name(self, name: str, operator: Operator, result: Tensor | None = None) -> None:
        """Let ``name`` be what an operator gives.

        Args:
            result: which of its outputs; None: the first.
        """
        tensor = operator.outputs[0] if result is None else result
        if tensor.name in self._named or tensor.data is not None:
            raise RefusalError(f"gives '{tensor.name}', which is there already")
        self._named[tensor.name] = name
        # Signs are 32 to a word in the file, and so is its last axis.
        if tensor.dtype != np.int32:
            self.shapes[name] = tensor.shape

    def check_room(self, numbers: int) -> None:
        """Check that a constant of so many numbers can still be made.

        Raises:
            RefusalError: where there would be too many.
        """
        if self._numbers + numbers > MAX_NUMBERS:
            raise RefusalError(f"{self._numbers + numbers} weights so far; at most {MAX_NUMBERS} are read")

    @staticmethod
    def type_of(dtype: np.dtype[Any]) -> int:
        """The code of a type in ONNX."""
        from onnx import helper

        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def model(self, image: Tensor, logits: Tensor, source: str) -> onnx.ModelProto:
        """The whole graph."""
        from onnx import helper

        first = helper.make_tensor_value_info(image.name, self.type_of(image.dtype), list(image.shape))
        last = helper.make_empty_tensor_value_info(self.of(logits))
        graph = helper.make_graph(self._nodes, source, [first], [last], initializer=self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
