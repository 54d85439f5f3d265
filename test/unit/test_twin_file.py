"""What a float twin's file may hold: what its operators cost, and files that two readers could read differently."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_perception.backends.cpu.float import MAX_MEMORY
from bnn_perception.importers.onnx import twin_file
from bnn_perception.importers.onnx.twin_file import MAX_FAN_IN, TwinFileError, check
from bnn_perception.net.checks import MAX_INPUTS

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def twin(nodes: list[Any], **weights: tuple[int, ...]) -> bytes:
    """A file with nodes, and tensors of zeros of some shapes."""
    graph = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    return bytes(helper.make_model(graph).SerializeToString())


def conv(*inputs: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", inputs or ("image", "w"), ["logits"], name="c", **attributes)


def refused(content: bytes, reason: str) -> None:
    with pytest.raises(TwinFileError, match=reason):
        check(content)


@pytest.mark.parametrize(("shape", "numbers"), [((1, 256, 16, 16), 1 << 16), ((4, 1 << 16, 1, 1), 1 << 16)])
def test_a_convolution_makes_each_number_of_so_many_at_most(shape: tuple[int, ...], numbers: int) -> None:
    assert numbers == MAX_FAN_IN
    check(twin([conv()], w=shape))
    wider = (shape[0], shape[1] + 1, *shape[2:])
    refused(twin([conv()], w=wider), r"^node 'c' \(Conv\): makes each number of more than 65536 others$")


def test_a_shape_of_any_length_costs_little_and_is_told_in_one_line() -> None:
    weights = onnx.TensorProto(name="w", data_type=FLOAT, dims=[2**63 - 1] * 200_000)
    content = onnx.load_from_string(twin([conv()]))
    content.graph.initializer.append(weights)
    begin = time.process_time()
    refused(content.SerializeToString(), "makes each number of more than 65536 others")
    # A second; the exact product of the lengths, a number of 12 million bits, takes minutes.
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_a_pool_makes_each_number_of_so_many_at_most(operator: str) -> None:
    def pool(*kernel: int) -> bytes:
        return twin([helper.make_node(operator, ["image"], ["logits"], kernel_shape=kernel)])

    check(pool(256, 256))
    for kernel in ((256, 257), (1 << 40, 1), (-1, 1)):
        refused(pool(*kernel), rf"\({operator}\): makes each number of more than 65536 others")


def test_the_weights_of_a_convolution_stand_in_the_file() -> None:
    constant = helper.make_node(
        "Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.zeros((2, 3, 3, 3), np.float32))
    )
    check(twin([constant, conv("image", "k")]))
    check(twin([helper.make_node("Identity", ["w"], ["again"]), conv("image", "again")], w=(2, 3, 3, 3)))
    absent = r"\(Conv\): its weights do not stand in the file, as a float twin's do"
    refused(twin([conv("image", "image")], w=(2, 3, 3, 3)), absent)
    refused(twin([helper.make_node("Transpose", ["w"], ["t"]), conv("image", "t")], w=(2, 3, 3, 3)), absent)
    refused(twin([conv("image")]), absent)
    refused(
        twin([helper.make_node("Identity", ["w"], ["wide"]), conv("image", "wide")], w=(2, 1 << 17)),
        "more than 65536 others",
    )


def test_a_sum_has_so_many_inputs_at_most() -> None:
    for operator in ("Sum", "Max", "Concat"):
        check(twin([helper.make_node(operator, ["image"] * 64, ["logits"])]))
        refused(
            twin([helper.make_node(operator, ["image"] * 65, ["logits"])]),
            rf"\({operator}\): has 65 inputs; at most 64 are taken",
        )


def test_one_name_stands_for_one_tensor() -> None:
    content = onnx.load_from_string(twin([conv()], w=(2, 3, 3, 3)))
    content.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 1 << 17), np.float32), "w"))
    refused(content.SerializeToString(), "has two tensors of one name")
    again = helper.make_node("Identity", ["w"], ["w"])
    refused(twin([again, conv()], w=(2, 3, 3, 3)), "has two tensors of one name")


def message(field: int, content: bytes) -> bytes:
    """A field that is a message or a text, shorter than 16 kB."""
    length = len(content)
    return bytes([field << 3 | 2, 0x80 | length & 0x7F, length >> 7]) + content


def in_graph(content: bytes, *parts: bytes) -> bytes:
    """A file with more in its graph: protobuf joins a message that comes twice."""
    return content + message(7, b"".join(parts))


def test_fields_of_other_types_mean_nothing() -> None:
    """A name that is a number and a dimension of 0 that has 8 bytes: protobuf's own readers see neither."""
    wide = onnx.numpy_helper.from_array(np.zeros((1, 1), np.float32), "w")
    wide.dims[1] = 1 << 17
    tensor = wide.SerializeToString()
    check(
        in_graph(
            twin([conv()]),
            message(
                5, onnx.numpy_helper.from_array(np.zeros((2, 3, 1, 1), np.float32), "w").SerializeToString()
            ),
        )
    )
    others = (
        bytes([8 << 3 | 0, ord("x")]),  # the name, as a varint
        bytes([1 << 3 | 1]) + bytes(8),  # a dimension of 0, as a number of 8 bytes
        bytes([1 << 3 | 5]) + bytes(4),  # and of 4
    )
    for other in others:
        parsed = onnx.TensorProto.FromString(tensor + other)
        assert (parsed.name, list(parsed.dims)) == ("w", [1, 1 << 17])
        refused(
            in_graph(twin([conv()]), message(5, tensor + other)),
            "makes each number of more than 65536 others",
        )


def test_shapes_that_stand_in_parts_are_joined() -> None:
    """A constant whose tensor comes twice has the dimensions of both."""
    first = onnx.TensorProto(dims=[1, 1 << 17], data_type=FLOAT)
    second = onnx.TensorProto(dims=[1])
    value = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR)
    attribute = (
        value.SerializeToString()
        + message(5, first.SerializeToString())
        + message(5, second.SerializeToString())
    )
    assert list(onnx.AttributeProto.FromString(attribute).t.dims) == [1, 1 << 17, 1]
    node = message(2, b"k") + message(4, b"Constant") + message(5, attribute)
    content = in_graph(b"", message(1, node), message(1, conv("image", "k").SerializeToString()))
    refused(content, "makes each number of more than 65536 others")


def test_a_file_has_so_many_parts_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    content = twin([conv()], w=(2, 3, 3, 3))
    monkeypatch.setattr(twin_file, "MAX_FIELDS", 100)
    check(content)
    refused(content + bytes([0x08, 0x01]) * 200, "has more parts than any float twin")


def test_the_page_on_security_states_the_limits() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    assert f"makes each number of at most {MAX_FAN_IN} others, a sum has at most {MAX_INPUTS} inputs" in said
    assert f"fit into the {MAX_MEMORY >> 30} GiB that all twins" in said
    numbers = MAX_MEMORY // 4
    assert f"(2^{numbers.bit_length() - 1} numbers of 2^{MAX_FAN_IN.bit_length() - 1} each)" in said
    assert round(numbers * MAX_FAN_IN / 1e12) == 35
    assert "35 million million multiply-accumulates" in said
