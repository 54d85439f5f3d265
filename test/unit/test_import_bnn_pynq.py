"""Import of BNN-PYNQ parameter folders: the published nets against their reference scores, synthetic nets against
arithmetic on the files' own matrices, and folders that must be refused."""

from __future__ import annotations

import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from bnn_perception.backends import make_backend, reference
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import ImporterError, bnn_pynq, import_model, read
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.net import bits
from bnn_perception.net.folder import load_model
from bnn_perception.net.layers import OutputDense

# (PE, SIMD) of each layer as BNN-PYNQ ships them, and another way to fold the same matrices.
LFC_FOLDING = ((32, 64), (64, 32), (32, 64), (16, 8))
LFC_OTHER_FOLDING = ((1, 32), (16, 64), (1024, 8), (4, 1))
CNV_FOLDING = ((16, 3), (32, 32), (16, 32), (16, 32), (4, 32), (1, 32), (1, 4), (1, 8), (4, 1))
CNV_OTHER_FOLDING = ((8, 27), (64, 36), (2, 64), (32, 18), (16, 24), (8, 64), (64, 16), (4, 32), (1, 2))
CLASSES = 10


class Layer(NamedTuple):
    """One layer as the files hold it: weights (rows, columns) bool, thresholds (rows,) int64 or None."""

    weights: np.ndarray
    thresholds: np.ndarray | None


def random_net(kind, rng):
    """Layers of a net of random weights, thresholds near the middle so that either answer is common."""
    layers = []
    for matrix in kind.matrices:
        weights = rng.integers(0, 2, (matrix.rows or 64, matrix.columns)).astype(bool)
        middle = 0 if matrix.threshold_bits == 24 else matrix.columns // 2
        thresholds = middle + rng.integers(-20, 20, len(weights))
        if not matrix.rows:
            weights[CLASSES:] = True
            thresholds[CLASSES:] = (
                0xFFFF  # as the files for hand-written characters and house numbers have it
            )
        layers.append(Layer(weights, thresholds if matrix.threshold_bits else None))
    return layers


def write_net(folder, layers, folding, classes=None):
    folder.mkdir(parents=True)
    for index, (layer, (elements, simd)) in enumerate(zip(layers, folding)):
        for element in range(elements):
            rows = layer.weights[element::elements].reshape(-1, simd).astype(np.uint64)
            words = (rows << np.arange(simd, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
            words.astype("<u8").tofile(folder / f"{index}-{element}-weights.bin")
            if layer.thresholds is not None:
                thresholds = layer.thresholds[element::elements].astype("<i8")
                thresholds.tofile(folder / f"{index}-{element}-thres.bin")
    if classes is not None:
        (folder / "classes.txt").write_bytes(classes)
    return folder


def agreements(layer, inputs):
    """(n, columns) bool -> (n, rows) number of columns where both the input and the weight are 1, or both are 0."""
    ones, weights = (
        inputs.astype(np.float32),
        layer.weights.T.astype(np.float32),
    )  # counts below 2**24 are exact
    return (ones @ weights + (1 - ones) @ (1 - weights)).astype(np.int64)


def windows(pixels):
    """(height, width, channels) -> (positions, ky * kx * channels) of 3x3 windows, and their rows and columns."""
    view = sliding_window_view(pixels, (3, 3), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    return view.reshape(-1, 9 * pixels.shape[2]), view.shape[:2]


def run_lfc(layers, image):
    """Output bits of the hardware for a (28, 28) image."""
    value = np.zeros((1, 832), dtype=bool)
    value[0, :784] = (image >= 128).reshape(-1)
    for layer in layers:
        value = agreements(layer, value) > layer.thresholds
    return value[0]


def run_cnv(layers, image):
    """Scores of the hardware for a (32, 32, 3) image."""
    fixed = np.minimum(np.rint(128 * (2 * (image / 255) - 1)), 127).astype(np.int64)
    flat, shape = windows(fixed)
    value = (2 * (flat @ np.where(layers[0].weights, 1, -1).T) > layers[0].thresholds).reshape(*shape, -1)
    for index, layer in enumerate(layers[1:6], start=1):
        flat, shape = windows(value)
        value = (agreements(layer, flat) > layer.thresholds).reshape(*shape, -1)
        if index in (1, 3):
            half = shape[0] // 2
            value = value[: 2 * half, : 2 * half].reshape(half, 2, half, 2, -1).any(axis=(1, 3))
    value = value.reshape(1, -1)
    for layer in layers[6:8]:
        value = agreements(layer, value) > layer.thresholds
    return agreements(layers[8], value)[0]


@pytest.fixture(scope="module")
def lfc_net():
    return random_net(bnn_pynq.LFC, np.random.default_rng(1))


@pytest.fixture(scope="module")
def cnv_net():
    return random_net(bnn_pynq.CNV, np.random.default_rng(2))


@pytest.fixture
def lfc_folder(tmp_path, lfc_net):
    return write_net(tmp_path / "lfc", lfc_net, LFC_FOLDING)


@pytest.fixture
def cnv_folder(tmp_path, cnv_net):
    return write_net(tmp_path / "cnv", cnv_net, CNV_FOLDING)


# Synthetic nets


@pytest.mark.parametrize("folding", [LFC_FOLDING, LFC_OTHER_FOLDING], ids=["shipped", "other"])
def test_lfc_computes_what_its_files_say(tmp_path, lfc_net, folding):
    rng = np.random.default_rng(3)
    model = read(write_net(tmp_path / "net", lfc_net, folding))
    assert model.labels == tuple(f"class_{index}" for index in range(CLASSES))
    images = rng.integers(0, 256, (8, 28, 28, 1), dtype=np.uint8)
    logits = reference.ReferenceBackend(model).logits([Frame(image, "mono8") for image in images])
    fires = np.stack([run_lfc(lfc_net, image[..., 0])[:CLASSES] for image in images])
    assert 0 < fires.sum() < fires.size
    assert np.array_equal(logits, np.where(fires, np.arange(1, CLASSES + 1), 0))


@pytest.mark.parametrize("folding", [CNV_FOLDING, CNV_OTHER_FOLDING], ids=["shipped", "other"])
def test_cnv_computes_what_its_files_say(tmp_path, cnv_net, folding):
    rng = np.random.default_rng(4)
    model = read(write_net(tmp_path / "net", cnv_net, folding))
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    logits = reference.ReferenceBackend(model).logits([Frame(image)])
    assert np.array_equal(logits[0], run_cnv(cnv_net, image)[:CLASSES])


@pytest.mark.parametrize("value", [-0x800000, -257, -2, -1, 0, 1, 2, 255, 0x7FFFFF])
def test_fixed_point_threshold_of_the_first_convolution(tmp_path, cnv_net, value):
    """2 * sum > threshold, for odd and negative thresholds too."""
    first = cnv_net[0]._replace(thresholds=np.full(64, value))
    model = read(write_net(tmp_path / "net", [first, *cnv_net[1:]], CNV_FOLDING))
    sums = np.arange(-27 * 128, 27 * 128 + 1)
    assert np.array_equal(sums >= model.layers[0].threshold[0], 2 * sums > value)


def test_pixel_levels_are_those_of_the_fixed_point_input():
    model_levels = bnn_pynq._pixel_levels()
    assert np.array_equal(model_levels, np.clip(np.rint(128 * (2 * np.arange(256) / 255 - 1)), -128, 127))
    assert (model_levels[0], model_levels[255]) == (-128, 127)


def test_padding_columns_of_the_first_lfc_layer_count_where_the_weight_is_0(tmp_path, lfc_net):
    weights = lfc_net[0].weights.copy()
    weights[:, 784:] = np.arange(48) < np.arange(1024)[:, None] % 49  # 0 to 48 ones a row
    net = [lfc_net[0]._replace(weights=weights), *lfc_net[1:]]
    layer = read(write_net(tmp_path / "net", net, LFC_FOLDING)).layers[1]
    image = np.random.default_rng(5).integers(0, 256, (28, 28), dtype=np.uint8)
    padded = np.zeros((1, 832), dtype=bool)
    padded[0, :784] = (image >= 128).reshape(-1)
    words = reference.binary_dense(layer, bits.pack(padded[0, :784].reshape(28, 28, 1)))
    assert np.array_equal(bits.unpack(words, 1024)[0, 0], (agreements(net[0], padded) > net[0].thresholds)[0])


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n\r\n"])
def test_labels_come_from_classes_txt(tmp_path, lfc_net, ending):
    names = [f"Straße {index}" for index in range(9)] + ["停止"]
    text = "\r\n".join(names).encode() + ending
    model = read(write_net(tmp_path / "net", lfc_net, LFC_FOLDING, classes=text))
    assert model.labels == tuple(names)


def test_a_last_layer_of_12_rows_as_for_house_numbers(tmp_path, cnv_net):
    """Its files hold thresholds that no score is compared with; they tell the number of rows."""
    last = Layer(cnv_net[8].weights[:12], np.arange(12))
    model = read(write_net(tmp_path / "net", [*cnv_net[:8], last], CNV_FOLDING))
    assert len(model.labels) == CLASSES
    assert np.array_equal(bits.unpack(model.layers[-1].weights, 512), last.weights[:CLASSES])


def test_import_writes_a_model_folder_named_as_its_source(tmp_path, lfc_net):
    source = write_net(tmp_path / "Ziffern 数字", lfc_net, LFC_FOLDING)
    written = import_model(source, tmp_path / "out ü")
    loaded = load_model(tmp_path / "out ü")
    assert written.name == loaded.name == "Ziffern 数字"
    assert loaded.info["source"] == {"format": "bnn_pynq", "net": "LFC W1A1"}
    for ours, theirs in zip(read(source).layers, loaded.layers):
        for array in ours.array_values():
            assert np.array_equal(getattr(ours, array), getattr(theirs, array))


# Published nets


class Published(NamedTuple):
    """A net of BNN-PYNQ with images, and what an independent implementation made of them."""

    folder: Path
    images: np.ndarray
    golden: dict[str, np.ndarray]

    def frames(self, count=None):
        encoding = "mono8" if self.images.shape[3] == 1 else "rgb8"
        return [Frame(image, encoding) for image in self.images[:count]]


@pytest.fixture(scope="module")
def lfc(data):
    folder = data("bnn_pynq")
    with gzip.open(data("mnist") / "t10k-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    golden = dict(np.load(folder / "lfcW1A1_mnist_t10k_golden.npz"))
    return Published(folder / "params/mnist/lfcW1A1", images, golden)


@pytest.fixture(scope="module")
def cnv(data):
    folder = data("bnn_pynq")
    golden = dict(np.load(folder / "cnvW1A1_cifar10_500_golden.npz"))
    return Published(folder / "params/cifar10/cnvW1A1", golden.pop("x"), golden)


def with_agreements(model):
    """The same net with the number of agreements of each output as its logit, instead of whether it fires."""
    last = model.layers[-1]
    fan_in = last.in_shape[2]
    counted = OutputDense(
        last.name,
        last.in_shape,
        last.out_features,
        last.weights,
        scale=np.full(last.out_features, 0.5, np.float32),
        bias=np.full(last.out_features, fan_in / 2, np.float32),
    )
    return replace(model, layers=(*model.layers[:-1], counted))


def run_all(model, images):
    """A net of dense layers on n images at once: a dense layer is a 1x1 convolution over an image of n rows, which
    the reference does in seconds where one image after the other takes minutes.

    Returns:
        The words of every layer, (n, pixels, words) each, and the (n, outputs) dot products of the last.
    """
    encode, *layers = model.layers
    words = [reference.thermometer(encode, images.reshape(len(images), -1, 1))]
    for layer in layers:
        channels = layer.in_shape[2]
        inputs = bits.signs(words[-1], channels).reshape(len(images), 1, -1)
        weights = bits.signs(layer.weights.reshape(layer.out_features, -1, layer.pixel_words), channels)
        sums = reference.convolution(
            inputs, weights.reshape(layer.out_features, 1, 1, -1), (1, 1), (0, 0, 0, 0), 0
        )
        words.append(reference.threshold(layer, sums))
    return words, sums[:, 0]


def test_lfc_thresholds_are_the_reference_file_s(lfc):
    last = read(lfc.folder).layers[-1]
    # agreements > threshold, and agreements = (dot + 1024) / 2
    assert np.array_equal((last.threshold + 1024) // 2 - 1, lfc.golden["thr"])


def test_lfc_agreements_on_10000_images_by_the_reference_s_layers(lfc):
    model = read(lfc.folder)
    words, dot = run_all(model, lfc.images)
    assert np.array_equal((dot + 1024) // 2, lfc.golden["popcount"])
    answer = np.where(bits.unpack(words[-1][:, 0], CLASSES), np.arange(1, 11), 0).argmax(axis=1)
    assert np.array_equal(answer, lfc.golden["pred"])
    assert (answer == lfc.golden["y"]).sum() == 9840


def test_lfc_by_the_reference_backend_on_the_first_100_images(lfc):
    model = read(lfc.folder)
    backend = reference.ReferenceBackend(model)
    frames = lfc.frames(100)
    words, _ = run_all(model, lfc.images[:100])
    for index in range(3):
        *layers, (_, logits) = list(backend.activations(frames[index]))[1:]
        for (name, output), batch in zip(layers, words):
            assert np.array_equal(output.reshape(batch[index].shape), batch[index]), name
        assert np.array_equal(logits > 0, bits.unpack(words[-1][index, 0], CLASSES))
    assert np.array_equal(backend.logits(frames).argmax(axis=1), lfc.golden["pred"][:100])


def test_cnv_scores_on_500_images_by_the_reference_backend(cnv):
    logits = reference.ReferenceBackend(read(cnv.folder)).logits(cnv.frames())
    assert np.array_equal(logits, cnv.golden["scores"])


@pytest.fixture
def fast():
    """Makes the fast backend on this machine's CPU."""
    pytest.importorskip("numba", reason="the binary backend on the CPU needs numba")
    return lambda model: make_backend(model, "binary", "cpu")


def test_lfc_answers_on_10000_images_by_the_binary_backend(lfc, fast):
    answer = fast(read(lfc.folder)).logits(lfc.frames()).argmax(axis=1)
    assert np.array_equal(answer, lfc.golden["pred"])
    assert (answer == lfc.golden["y"]).sum() == 9840


def test_lfc_agreements_on_10000_images_by_the_binary_backend(lfc, fast):
    logits = fast(with_agreements(read(lfc.folder))).logits(lfc.frames())
    assert np.array_equal(logits, lfc.golden["popcount"])


def test_cnv_scores_on_500_images_by_the_binary_backend(cnv, fast):
    logits = fast(read(cnv.folder)).logits(cnv.frames())
    assert np.array_equal(logits, cnv.golden["scores"])


@pytest.mark.parametrize("kind", ["lfc", "cnv"])
def test_every_word_of_the_binary_backend_is_the_reference_s(kind, fast, request):
    net = request.getfixturevalue(kind)
    model = read(net.folder)
    backend = fast(model)
    for frame in net.frames(5):
        expected = reference.ReferenceBackend(model).activations(frame)
        for (name, words), (_, ours) in zip(expected, backend.activations(frame)):
            assert np.array_equal(words, ours), name


def test_published_labels(lfc, cnv):
    assert read(lfc.folder).labels == tuple("0123456789")
    assert read(cnv.folder).labels[:2] == ("Airplane", "Automobile")


# Folders that must be refused


def refusal(folder):
    with pytest.raises(ImporterError) as caught:
        read(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def test_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert "holds no <layer>-<pe>-weights.bin" in refusal(tmp_path)


def test_refuses_a_source_that_does_not_exist(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nowhere")


def test_refuses_a_pixel_range_and_files_of_neither_kind(tmp_path, lfc_folder):
    with pytest.raises(
        ImporterError, match=r"lfc: a folder; a pixel range is of \.onnx and \.tflite files alone"
    ):
        import_model(lfc_folder, tmp_path / "out", pixels=PixelRange.of(0.0, 255.0))
    (tmp_path / "net.txt").write_text("x")
    assert "net.txt: is none of them; what can be imported is" in refusal(tmp_path / "net.txt")


def test_refuses_another_number_of_layers(lfc_folder):
    shutil.copy(lfc_folder / "3-0-weights.bin", lfc_folder / "4-0-weights.bin")
    assert "files of 5 layers" in refusal(lfc_folder)


@pytest.mark.parametrize("name", ["1-63-weights.bin", "1-7-weights.bin", "1-63-thres.bin", "1-7-thres.bin"])
def test_names_the_missing_file(lfc_folder, name):
    (lfc_folder / name).unlink()
    assert f"{name}: no such file" in refusal(lfc_folder)


def test_names_the_missing_layer(cnv_folder):
    (cnv_folder / "5-0-weights.bin").unlink()
    assert "5-0-weights.bin: no such file" in refusal(cnv_folder)


@pytest.mark.parametrize("name", ["2-5-weights.bin", "2-5-thres.bin"])
@pytest.mark.parametrize(("keep", "reason"), [(0, "0 bytes"), (13, "13 bytes"), (16, "but 2-0-")])
def test_names_the_truncated_file(lfc_folder, name, keep, reason):
    cut(lfc_folder / name, keep)
    message = refusal(lfc_folder)
    assert f"{name}: " in message
    assert reason in message


def test_refuses_a_layer_cut_to_half(cnv_folder):
    """Half the size is also the size of words twice as wide, which the bits in use tell apart."""
    cut(cnv_folder / "5-0-weights.bin", 73728)
    assert "32 bits are in use of a word, but the size of the files leaves 64" in refusal(cnv_folder)


def test_refuses_a_size_that_no_folding_has(cnv_folder):
    cut(cnv_folder / "5-0-weights.bin", 73728 + 8)
    assert "5-*-weights.bin: 1 files of 73736 bytes" in refusal(cnv_folder)


def test_refuses_a_word_too_many(tmp_path, cnv_net):
    folder = write_net(tmp_path / "net", cnv_net, CNV_OTHER_FOLDING)
    path = folder / "8-0-weights.bin"
    path.write_bytes(path.read_bytes() + bytes(8))
    assert f"8-*-weights.bin: 1 files of {path.stat().st_size} bytes; no PE and SIMD" in refusal(folder)


def test_refuses_words_that_are_too_few(cnv_folder):
    cut(cnv_folder / "6-0-weights.bin", 8)
    assert "6-*-weights.bin: 1 files of 8 bytes" in refusal(cnv_folder)


@pytest.mark.parametrize("layer", range(8))
def test_refuses_activations_of_two_bits(tmp_path, cnv_net, layer):
    """As W1A2 and W2A2 have them: two thresholds for each output."""
    net = list(cnv_net)
    net[layer] = net[layer]._replace(thresholds=np.repeat(net[layer].thresholds, 2))
    message = refusal(write_net(tmp_path / "net", net, CNV_FOLDING))
    assert f"{layer}-*-thres.bin: 2 thresholds for each output of layer {layer}" in message
    assert "only W1A1" in message


def test_refuses_weights_of_two_bits(lfc_folder):
    for path in lfc_folder.glob("3-*-weights.bin"):
        words = np.fromfile(path, "<u8")
        (words | words << np.uint64(8)).tofile(path)
    assert "16 bits are in use of a word, but the size of the files leaves 8" in refusal(lfc_folder)


def test_refuses_another_width(tmp_path, lfc_net):
    net = [Layer(lfc_net[0].weights[:256], lfc_net[0].thresholds[:256]), *lfc_net[1:]]
    assert "0-*-thres.bin: 256 thresholds for the 1024 outputs of layer 0" in refusal(
        write_net(tmp_path / "net", net, LFC_FOLDING)
    )


@pytest.mark.parametrize("value", [1 << 15, -(1 << 15) - 1, 1 << 62, -(1 << 63)])
def test_refuses_a_threshold_that_the_hardware_cannot_hold(lfc_folder, value):
    path = lfc_folder / "1-3-thres.bin"
    thresholds = np.fromfile(path, "<i8")
    thresholds[5] = value
    thresholds.tofile(path)
    # row = fold * PE + pe
    assert f"1-*-thres.bin: the threshold of output {5 * 64 + 3} is {value}" in refusal(lfc_folder)


def test_refuses_what_is_not_a_file(lfc_folder):
    (lfc_folder / "0-3-weights.bin").unlink()
    os.mkfifo(lfc_folder / "0-3-weights.bin")
    assert "0-3-weights.bin: is not a file" in refusal(lfc_folder)


def test_refuses_over_64_outputs(tmp_path, lfc_net):
    last = Layer(np.tile(lfc_net[3].weights, (2, 1)), np.tile(lfc_net[3].thresholds, 2))
    assert "3-*-thres.bin: 128 thresholds; the last layer has at most 64" in refusal(
        write_net(tmp_path / "net", [*lfc_net[:3], last], LFC_FOLDING)
    )


def test_refuses_a_net_without_outputs(tmp_path, lfc_net):
    last = Layer(np.ones((64, 1024), dtype=bool), np.full(64, 32767))
    assert "has no output in use" in refusal(write_net(tmp_path / "net", [*lfc_net[:3], last], LFC_FOLDING))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "0 labels, but the net has 10 outputs"),
        (b"a\nb\nc", "3 labels, but the net has 10 outputs"),
        (b"\n".join([b"x"] * 11), "11 labels, but the net has 10 outputs"),
        (b"a\nb\n\nd", "line 3 is empty"),
        (b"caf\xe9\n" * 10, "is not UTF-8"),
        (b"x" * 70000, "over 65536 bytes"),
        (b"\n".join([b"x" * 201] * 10), "1 to 200 characters"),
    ],
)
def test_refuses_labels_that_do_not_fit(lfc_folder, text, reason):
    (lfc_folder / "classes.txt").write_bytes(text)
    assert reason in refusal(lfc_folder)


def test_refuses_labels_that_are_not_a_file(lfc_folder):
    os.mkfifo(lfc_folder / "classes.txt")
    assert "classes.txt: is not a file" in refusal(lfc_folder)


def test_import_names_the_folder_that_it_cannot_write(tmp_path, lfc_folder):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ImporterError, match=r"out: cannot be written"):
        import_model(lfc_folder, tmp_path / "out")


def test_damaged_folders_are_refused_or_read_but_never_crash(tmp_path, cnv_net):
    """100 random cuts, growths, changes and swaps of files; only changed bits may go unnoticed."""
    rng = np.random.default_rng(6)
    pristine = write_net(tmp_path / "net", cnv_net, CNV_FOLDING)
    files = sorted(path for path in pristine.iterdir() if not path.name.startswith("8-"))
    refused = 0
    for _ in range(100):
        path = files[rng.integers(len(files))]
        data = path.read_bytes()
        kind = rng.integers(4)
        if kind == 0:
            path.write_bytes(data[: rng.integers(len(data))])
        elif kind == 1:
            path.write_bytes(data + bytes(rng.integers(1, 100)))
        elif kind == 2:
            at = rng.integers(len(data))
            path.write_bytes(data[:at] + rng.bytes(1) + data[at + 1 :])
        else:
            path.write_bytes(files[rng.integers(len(files))].read_bytes())
        try:
            read(pristine)
        except ImporterError:
            refused += 1
        else:
            assert path.stat().st_size == len(data)
        path.write_bytes(data)
    assert refused > 50
