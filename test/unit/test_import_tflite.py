"""Files of Larq Compute Engine: those of its converter against its engine's answers, and what is refused."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lce.make import FOLDER, pictures
from tflite_files import OperatorOf, TensorOf, options, write

from bnn_perception.__main__ import main
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import ImporterError, read, source_logits
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.importers.tflite.file import Net, Operator, Tensor, load
from bnn_perception.importers.tflite.operators import OPERATORS
from bnn_perception.importers.tflite.read import translate
from bnn_perception.net.layers import BinaryConv2d
from bnn_perception.net.signals import BinaryMaxPool

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("tflite", reason="tflite is not installed (extra [tflite])")

NETS = sorted(FOLDER.glob("*.tflite"))
RANGE = PixelRange.of(-1.0, 1.0)


@pytest.mark.parametrize("path", NETS, ids=lambda path: path.stem)
def test_a_file_of_the_converter_gives_the_classes_of_the_engine(path: Path) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    from bnn_perception.backends.cpu.binary import CpuBinaryBackend

    model, images = read(path, RANGE), pictures()
    frames, theirs = [Frame(image) for image in images], np.load(path.with_suffix(".npy"))
    backend = CpuBinaryBackend(model, 1)
    ours = backend.logits(frames)
    backend.close()
    # The engine rounds in another order: where a value meets a threshold, or two logits each other, chance decides.
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).sum() >= len(images) - 1
    assert len(set(theirs.argmax(axis=1))) > 5
    np.testing.assert_array_equal(ours[:2], ReferenceBackend(model).logits(frames[:2]))


def test_bits_between_layers_stay_bits() -> None:
    """Thresholds, a pool of signs and a padding by +1, as the converter writes them."""
    model = read(FOLDER / "plain.tflite", RANGE)
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(BinaryConv2d) == 4
    assert kinds.count(BinaryMaxPool) == 1
    assert {layer.padding_value for layer in model.layers if isinstance(layer, BinaryConv2d)} == {-1, 1}
    assert model.info["source"]["format"] == "TFLite"
    assert model.input.mean == (0.5,) * 3


def test_the_graph_of_a_file_can_be_evaluated() -> None:
    images = pictures()[:4]
    logits = source_logits(FOLDER / "bireal.tflite", images, RANGE)
    # float32 in another order of sums than the engine's.
    np.testing.assert_allclose(logits, np.load(FOLDER / "bireal.npy")[:4], rtol=1e-4, atol=1e-4)


def test_import_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "one.png"), pictures(1)[0])
    words = ["import", str(FOLDER / "quicknet.tflite"), "--out", str(tmp_path / "model")]
    assert main([*words, "--pixel-range", "-1", "1", "--images", str(tmp_path / "one.png")]) == 0
    assert "parity on 1 images (0 left out): same class on 1" in capsys.readouterr().out


def test_what_is_no_such_file(tmp_path: Path) -> None:
    content = NETS[0].read_bytes()
    for number, (bad, message) in enumerate(
        [
            (b"", "is not a TFLite file"),
            (b"x" * 100, "is not a TFLite file"),
            (content[:4] + b"TFL2" + content[8:], "is not a TFLite file"),
            (content[:400], ""),
        ]
    ):
        path = tmp_path / f"{number}.tflite"
        path.write_bytes(bad)
        with pytest.raises(ImporterError, match=f"{path.name}: .*{message}"):
            read(path)
    with pytest.raises(ImporterError, match="no such file"):
        read(tmp_path / "none.tflite")


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    """Bytes changed one by one and in runs: no other error comes out, and every message is one line."""
    rng = np.random.default_rng(1)
    path, refused = tmp_path / "damaged.tflite", 0
    for number in range(100):
        content = bytearray(NETS[number % len(NETS)].read_bytes())
        for _ in range(rng.integers(1, 5)):
            # The tables stand at both ends, the weights between them.
            place = int(rng.integers(0, 600)) if rng.random() < 0.5 else -int(rng.integers(1, 12000))
            run = int(rng.choice([1, 1, 1, 2, 4]))
            for offset in range(run):
                content[(place + offset) % len(content)] = int(
                    rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
                )
        path.write_bytes(bytes(content[: len(content) - int(rng.integers(0, 3)) * 97]))
        try:
            read(path, RANGE)
        except ImporterError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
    assert refused > 30


# -- single operators, as records


def tensor(name: str, shape: tuple[int, ...], data: Any = None, dtype: Any = np.float32) -> Tensor:
    values = None if data is None else np.asarray(data, dtype).reshape(shape)
    return Tensor(name, shape, np.dtype(dtype), values, False)


IMAGE, OUT = tensor("image", (1, 8, 8, 3)), tensor("out", (1, 8, 8, 3))
WORDS = tensor("words", (4, 3, 3, 1), np.arange(36), np.int32)
ONES = tensor("ones", (4,), np.ones(4))
SIGNS = Operator("LceQuantize", [IMAGE], [tensor("signs", (1, 8, 8, 1), dtype=np.int32)])
BCONV = Operator(
    "LceBconv2d",
    [SIGNS.outputs[0], WORDS, ONES, ONES],
    [tensor("sums", (1, 6, 6, 4))],
    {"channels_in": 3, "stride_height": 1, "stride_width": 1, "padding": 1, "pad_values": 0},
)
CONV = Operator(
    "CONV_2D",
    [IMAGE, tensor("weights", (4, 3, 3, 3), np.ones(108)), None],
    [tensor("sums", (1, 6, 6, 4))],
    {"StrideH": 1, "StrideW": 1, "Padding": 1},
)


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (
            [Operator("GATHER", [IMAGE], [OUT])],
            r"node 'out' \(GATHER\): the model format has no such operation",
        ),
        ([Operator("operator 999", [IMAGE], [OUT])], "no such operation"),
        ([Operator("LceQuantize", [], [OUT])], "input 1 is missing"),
        ([Operator("ADD", [IMAGE, tensor("other", (1,))], [OUT])], "'other', which nothing before it gives"),
        ([Operator("ADD", [IMAGE, ONES, ONES], [OUT])], "takes 3 tensors"),
        ([replace(CONV, options={**CONV.options, "DilationHFactor": 2})], r"dilations \[2, 1\]"),
        ([replace(CONV, options={**CONV.options, "FusedActivationFunction": 4})], "has the activation 4"),
        ([replace(CONV, inputs=[IMAGE, tensor("w", (4, 3, 3, 2), np.ones(72))])], "weights of"),
        (
            [replace(CONV, inputs=[IMAGE, tensor("w", (4, 3, 3, 3), np.ones(108), np.int8)])],
            "quantized to 8 bits",
        ),
        ([Operator("DEQUANTIZE", [tensor("q", (4,), np.ones(4), np.int8)], [OUT])], "quantized to 8 bits"),
        (
            [SIGNS, replace(BCONV, options={**BCONV.options, "dilation_width_factor": 2})],
            r"dilations \[1, 2\]",
        ),
        (
            [SIGNS, replace(BCONV, options={**BCONV.options, "channels_in": 64})],
            "takes its 64 channels in groups",
        ),
        ([SIGNS, replace(BCONV, options={**BCONV.options, "pad_values": 2})], "pads with 2"),
        ([SIGNS, replace(BCONV, options={**BCONV.options, "padding": 7})], "padding 7"),
        (
            [SIGNS, replace(BCONV, outputs=[tensor("sums", (1, 6, 6, 4), dtype=np.int8)])],
            "quantized to 8 bits",
        ),
        ([SIGNS, replace(BCONV, inputs=[*BCONV.inputs[:3], tensor("b", (3,), np.ones(3))])], "for 4 outputs"),
        ([SIGNS, replace(BCONV, inputs=[*BCONV.inputs[:2], OUT, ONES])], "input 3 is not a constant"),
        ([Operator("PAD", [IMAGE, ONES], [OUT])], "has pads of"),
        ([Operator("STRIDED_SLICE", [IMAGE, ONES, ONES, ONES], [OUT], {"NewAxisMask": 1})], "has masks"),
        (
            [Operator("SLICE", [IMAGE, tensor("b", (1,), [0]), tensor("s", (1,), [1])], [OUT])],
            "has 1 ranges for 4",
        ),
        ([Operator("SPLIT", [tensor("a", (1,), [3]), IMAGE], [OUT, ONES], {})], "splits 3 into 2 parts"),
        ([Operator("FULLY_CONNECTED", [IMAGE, CONV.inputs[1]], [OUT])], "has weights of"),
    ],
)
def test_refusals_name_the_operator(operators: list[Operator], message: str) -> None:
    with pytest.raises(ImporterError, match=message) as caught:
        translate(Net([IMAGE], operators[-1].outputs[:1], operators), "net")
    assert str(caught.value).startswith(f"node '{operators[-1].outputs[0].name}' ({operators[-1].op}): ")


def test_a_net_of_two_inputs() -> None:
    with pytest.raises(ImporterError, match="2 inputs and 1 outputs"):
        translate(Net([IMAGE, OUT], [OUT], []), "net")


def test_a_stated_shape_that_is_none_of_the_operator() -> None:
    """What lies in the file must be what is computed, or its windows would be padded wrongly."""
    path = FOLDER / "bireal.tflite"
    net = load(path)
    wrong = [
        replace(o, outputs=[replace(o.outputs[0], shape=(1, 5, 5, 32))]) if i == 1 else o
        for i, o in enumerate(net.operators)
    ]
    from bnn_perception.importers.onnx.walk import Walk

    graph, shapes = translate(replace(net, operators=wrong), "net")
    with pytest.raises(ImporterError, match=r"where the file states \[1, 5, 5, 32\]"):
        Walk(graph, RANGE, shapes).run()


def one(op: str, values: Any, *others: Tensor, shape: tuple[int, ...] = (), **options: Any) -> Any:
    """What ONNX makes of one operator on an input that is a constant."""
    from bnn_perception.importers.onnx.evaluate import evaluator

    values = np.asarray(values, np.float32)
    source, result = tensor("x", values.shape), tensor("y", shape or values.shape)
    inputs = [*others, source] if op == "SPLIT" else [source, *others]
    graph, _ = translate(Net([source], [result], [Operator(op, inputs, [result], options)]), "one")
    return evaluator(graph).run(None, {"x": values})[0]  # type: ignore[index]


ROW = np.array([[-9.0, -1.0, -0.5, 0.0, 0.5, 2.0, 9.0]], np.float32)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("RELU", np.maximum(ROW, 0)),
        ("RELU6", np.clip(ROW, 0, 6)),
        ("RELU_N1_TO_1", np.clip(ROW, -1, 1)),
        ("RELU_0_TO_1", np.clip(ROW, 0, 1)),
        ("NEG", -ROW),
        ("ABS", abs(ROW)),
        ("SQUARE", ROW * ROW),
        ("SIGN", np.sign(ROW)),
        ("EXP", np.exp(ROW)),
        ("TANH", np.tanh(ROW)),
        ("LOGISTIC", 1 / (1 + np.exp(-ROW))),
        ("LceQuantize", np.where(ROW >= 0, 1, -1)),
        ("LceDequantize", ROW),
    ],
)
def test_operators_of_one_tensor(op: str, expected: Any) -> None:
    np.testing.assert_allclose(one(op, ROW), expected, rtol=1e-6)  # float32


def test_operators_with_constants() -> None:
    number = tensor("c", (1,), [0.25])
    np.testing.assert_array_equal(one("MINIMUM", ROW, number), np.minimum(ROW, 0.25))
    np.testing.assert_array_equal(one("MAXIMUM", ROW, number), np.maximum(ROW, 0.25))
    limits = np.linspace(-1, 1, 7)
    np.testing.assert_array_equal(
        one("MAXIMUM", ROW, tensor("c", (7,), limits)), np.maximum(ROW, limits.astype(np.float32))
    )
    np.testing.assert_array_equal(one("SUB", ROW, number), ROW - np.float32(0.25))
    np.testing.assert_array_equal(one("DIV", ROW, number, FusedActivationFunction=1), np.maximum(ROW * 4, 0))
    np.testing.assert_array_equal(one("LEAKY_RELU", ROW, Alpha=0.5), np.where(ROW < 0, ROW / 2, ROW))
    np.testing.assert_array_equal(one("PRELU", ROW, number), np.where(ROW < 0, ROW / 4, ROW))
    np.testing.assert_allclose(one("RSQRT", abs(ROW[:, :2])), 1 / np.sqrt(abs(ROW[:, :2])), rtol=1e-6)
    np.testing.assert_allclose(one("SQRT", abs(ROW)), np.sqrt(abs(ROW)), rtol=1e-6)


def test_operators_of_axes() -> None:
    block = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)

    def whole(name: str, *values: int) -> Tensor:
        return tensor(name, (len(values),), values, np.int32)

    cut = one("SLICE", block, whole("b", 0, 1, 0, 1), whole("s", 1, 1, -1, 2), shape=(1, 1, 3, 2))
    np.testing.assert_array_equal(cut, block[:, 1:2, :, 1:3])
    ranges = whole("b", 0, 1, 0, 0), whole("e", 0, 2, 3, 4), whole("s", 1, 1, 2, 1)
    strided = one("STRIDED_SLICE", block, *ranges, shape=(1, 1, 2, 4), EndMask=1)
    np.testing.assert_array_equal(strided, block[:, 1:2, ::2])
    np.testing.assert_array_equal(one("SPLIT", block, whole("a", 3), shape=(1, 2, 3, 4)), block)
    turned = one("TRANSPOSE", block, whole("p", 0, 3, 1, 2), shape=(1, 4, 2, 3))
    np.testing.assert_array_equal(turned, block.transpose(0, 3, 1, 2))
    pads = tensor("p", (4, 2), [0, 0, 1, 0, 0, 2, 0, 0], np.int32)
    padded = one("PADV2", block, pads, tensor("v", (), 5), shape=(1, 3, 5, 4))
    np.testing.assert_array_equal(padded, np.pad(block, [(0, 0), (1, 0), (0, 2), (0, 0)], constant_values=5))
    np.testing.assert_array_equal(one("EXPAND_DIMS", ROW, shape=(1, 1, 7)), ROW[:, None])
    np.testing.assert_array_equal(one("SQUEEZE", ROW[:, None], shape=(1, 7)), ROW)
    mean = one("MEAN", block, whole("a", 1, 2), shape=(1, 4), KeepDims=0)
    np.testing.assert_allclose(mean, block.mean(axis=(1, 2)))
    assert one("CAST", ROW).dtype == np.float32


def test_thresholds_of_words() -> None:
    """-1 where more than t of the products are of different signs; channels in the order of the bits."""
    rng = np.random.default_rng(2)
    x = rng.choice([-1.0, 1.0], (1, 4, 5, 40)).astype(np.float32)
    weights = rng.choice([-1, 1], (6, 3, 3, 40))
    bits = np.zeros((6, 3, 3, 64), np.uint8)
    bits[..., :40] = weights < 0
    words = np.packbits(bits, axis=-1, bitorder="little").view("<i4")
    thresholds = rng.integers(160, 200, 6)
    thresholds[:2] = -(2**31), 2**31 - 1  # never, always
    source, result = tensor("x", x.shape), tensor("y", (1, 2, 3, 1), dtype=np.int32)
    packed = tensor("words", words.shape, words, np.int32)
    inputs = [source, packed, None, None, tensor("t", (6,), thresholds, np.int32)]
    options = {"channels_in": 40, "padding": 1, "stride_height": 1, "stride_width": 1}
    graph, _ = translate(Net([source], [result], [Operator("LceBconv2d", inputs, [result], options)]), "one")
    from bnn_perception.importers.onnx.evaluate import evaluator

    actual = evaluator(graph).run(None, {"x": x})[0]  # type: ignore[index]
    for row in range(2):
        for column in range(3):
            window = x[0, row : row + 3, column : column + 3]
            differ = (window[None] != weights).sum(axis=(1, 2, 3))
            np.testing.assert_array_equal(actual[0, row, column], np.where(differ > thresholds, -1, 1))


def test_too_many_weights_are_refused_before_they_are_unpacked() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.int32), (1 << 16, 64, 64, 1), (0, 0, 0, 0))
    packed = Tensor("words", huge.shape, huge.dtype, huge, False)
    operator = replace(BCONV, inputs=[SIGNS.outputs[0], packed, ONES, ONES])
    with pytest.raises(ImporterError, match="weights so far; at most"):
        translate(Net([IMAGE], operator.outputs, [SIGNS, operator]), "net")


def test_every_operator_is_tested_here_or_by_a_file() -> None:
    in_files = {operator.op for path in NETS for operator in load(path).operators}
    text = Path(__file__).read_text(encoding="utf-8")
    assert [op for op in OPERATORS if op not in in_files and f'"{op}"' not in text] == []


# -- files that no converter writes

PHOTO = TensorOf("image", (1, 8, 8, 3))


def refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ImporterError, match=message) as caught:
        read(path, RANGE)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_whole_files_that_are_wrong(tmp_path: Path) -> None:
    path, other = tmp_path / "net.tflite", TensorOf("other", (1, 8, 8, 3))
    one = np.ones(3, np.float32)
    add = OperatorOf(0, [0, 0], [1])
    for content, message in [
        (write([PHOTO, other], [add], [0], [1], graphs=2), "holds 2 graphs"),
        (write([PHOTO, other], [OperatorOf(0, [0, 7], [1])], [0], [1]), "names a tensor that is not there"),
        (write([PHOTO, other], [OperatorOf(0, [0, -2], [1])], [0], [1]), "names a tensor that is not there"),
        (write([PHOTO, other], [OperatorOf(3, [0, 0], [1])], [0], [1]), "operator code that is not there"),
        (write([PHOTO, other], [OperatorOf(0, [0, 0], [])], [0], [1]), "an operator gives nothing"),
        (write([PHOTO, TensorOf("c", (3,), 9)], [add], [0], [1]), "'c' has no buffer"),
        (
            write([PHOTO, TensorOf("c", (4,), 1)], [add], [0], [1], [one]),
            r"'c' of \[4\] float32 has 12 bytes",
        ),
        (write([PHOTO, TensorOf("c", [1] * 9)], [add], [0], [1]), "holds 9 axes"),
        (
            write([PHOTO, other], [OperatorOf(0, [0, 0], [0])], [0], [0]),
            "gives 'image', which is there already",
        ),
        (
            write([PHOTO, TensorOf("c", (3,), 1), other], [OperatorOf(0, [0, 0], [1]), add], [0], [1], [one]),
            "gives 'c', which is there already",
        ),
        (
            write([PHOTO, TensorOf("s", (3,), 0, "string"), other], [OperatorOf(0, [0, 1], [2])], [0], [2]),
            "takes 's', whose type of numbers is not known",
        ),
        (
            write([PHOTO, other], [OperatorOf(0, [0], [1], b"\1\2\3")], [0], [1], codes=["LceQuantize"]),
            "options of a custom operator are no map|is malformed",
        ),
        (
            write([PHOTO, other], [OperatorOf(0, [0], [1])], [0], [1], codes=["Unknown\nname"]),
            r"node 'other' \(Unknown name\): the model format has no such operation",
        ),
    ]:
        refused(path, content, message)


def test_numbers_of_8_bits_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    """What the operator computes of them is not what it computes of floats: a sign compares with their zero point."""
    image = TensorOf("image", (1, 8, 8, 3), 0, "int8", 0.02)
    result = TensorOf("signs", (1, 8, 8, 1), 0, "int32")
    content = write([image, result], [OperatorOf(0, [0], [1])], [0], [1], codes=["LceQuantize"])
    refused(
        tmp_path / "net.tflite", content, r"node 'signs' \(LceQuantize\): nets that are quantized to 8 bits"
    )
    inner = TensorOf("inner", (1, 8, 8, 3), 0, "int8", 0.02)
    content = write([PHOTO, inner], [OperatorOf(0, [0], [1])], [0], [1], codes=["QUANTIZE"])
    refused(tmp_path / "net.tflite", content, r"node 'inner' \(QUANTIZE\): nets that are quantized to 8 bits")


def test_tensors_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Also from one that has the name that another would be given."""
    path, shape = tmp_path / "net.tflite", (1, 8, 8, 3)
    tensors = [TensorOf(name, shape) for name in ("a", "a", "a", "a#1")]
    path.write_bytes(write(tensors, [OperatorOf(0, [i, i], [i + 1]) for i in range(3)], [0], [3]))
    net = load(path)
    names = [net.inputs[0].name, *(operator.outputs[0].name for operator in net.operators)]
    assert len(set(names)) == 4
    assert [operator.inputs[0].name for operator in net.operators] == names[:3]


def test_small_files_cost_little(tmp_path: Path) -> None:
    """Tables, names and buffers that many share: what a file asks for is bounded, not its bytes alone."""
    path, began = tmp_path / "net.tflite", time.process_time()
    tensors, many = [PHOTO, TensorOf("o", (1, 8, 8, 3))], [0] * 1000
    busy = OperatorOf(0, many, [1])
    refused(path, write(tensors, [busy], [0], [1], repeats=16000), "inputs and outputs of operators; at most")
    refused(path, write(tensors, [busy], [0], [1], repeats=20000), "holds 20000 operators")
    entries = options(**{f"option{i}": i for i in range(33)})
    content = write(tensors, [OperatorOf(0, [0], [1], entries)], [0], [1], codes=["LceQuantize"])
    refused(path, content, "the options of a custom operator have 33 entries")
    big = [np.zeros(1 << 22, np.float32)]
    shared = [TensorOf(f"c{i}", (1, 1, 1 << 10, 1 << 12), 1) for i in range(80)]
    sums = [TensorOf(f"s{i}", (1, 1, 1 << 10, 1 << 12)) for i in range(80)]
    adds = [OperatorOf(0, [i, 80 + i], [81 + i]) for i in range(80)]
    content = write([*shared, PHOTO, *sums], adds, [80], [160], big)
    refused(path, content, r"node 's6\d' \(ADD\): \d+ weights so far; at most")
    assert time.process_time() - began < 60  # seconds; without the bounds, hours


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(
    "path", [FOLDER / "plain.tflite", FOLDER / "bireal.tflite"], ids=lambda path: path.stem
)
def test_the_class_that_a_file_gives_is_that_of_its_logits(path: Path, axis: int) -> None:
    from bnn_perception.importers.onnx.walk import Walk

    net = load(path)
    models = []
    for tail in ([], [Operator("ARG_MAX", [], [tensor("class", (1,), dtype=np.int64)])]):
        operators = [replace(o, inputs=[net.outputs[0], tensor("axis", (), axis, np.int32)]) for o in tail]
        outputs = operators[-1].outputs if operators else net.outputs
        graph, shapes = translate(
            replace(net, operators=[*net.operators, *operators], outputs=outputs), "net"
        )
        walk = Walk(graph, RANGE, shapes)
        walk.run()
        models.append(walk)
    plain, tailed = models
    assert plain.outputs == tailed.outputs == 10
    assert [layer.name for layer in plain.layers] == [layer.name for layer in tailed.layers]


def test_the_place_that_a_file_gives_of_another_axis_is_no_class() -> None:
    """Of rows, say: what is above the maximum of each column is no class of an image."""
    from bnn_perception.importers.onnx.walk import Walk

    net = load(FOLDER / "bireal.tflite")
    last = Operator(
        "ARG_MAX", [net.outputs[0], tensor("axis", (), 0, np.int32)], [tensor("class", (10,), dtype=np.int64)]
    )
    graph, shapes = translate(replace(net, operators=[*net.operators, last], outputs=last.outputs), "net")
    with pytest.raises(ImporterError, match=r"\(ArgMax|ARG_MAX.*\): the model format has no such operation"):
        Walk(graph, RANGE, shapes).run()


def test_a_softmax_that_turns_the_order() -> None:
    with pytest.raises(ImporterError, match="does not keep the order"):
        translate(Net([IMAGE], [OUT], [Operator("SOFTMAX", [IMAGE], [OUT], {"Beta": -1.0})]), "net")
