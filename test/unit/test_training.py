"""Training: configuration, data, the two builds of a net, resuming, and the way into a model folder."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bnn_perception.training import config as configs
from bnn_perception.training.config import ConfigError

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")

from training_cases import (  # noqa: E402
    Stopping,
    assert_float_twin_equals_its_onnx_file,
    network,
    pixels,
    randomize,
    to_tensor,
)

from bnn_perception.backends.reference import ReferenceBackend  # noqa: E402
from bnn_perception.cli import execute  # noqa: E402
from bnn_perception.cli import train as tool  # noqa: E402
from bnn_perception.frames.frame import Frame  # noqa: E402
from bnn_perception.importers.onnx import read as qonnx  # noqa: E402
from bnn_perception.net import bits  # noqa: E402
from bnn_perception.net.folder import load_model  # noqa: E402
from bnn_perception.net.model import Model  # noqa: E402
from bnn_perception.training import data as datasets  # noqa: E402
from bnn_perception.training import modules, networks, pipeline, train  # noqa: E402
from bnn_perception.training.augmentation import augment  # noqa: E402
from bnn_perception.training.distributed import World  # noqa: E402
from bnn_perception.training.export import export_qonnx  # noqa: E402
from bnn_perception.training.fields import within  # noqa: E402
from bnn_perception.training.kinds import LAYER_SPECS, LayerSpec, Signal  # noqa: E402
from bnn_perception.training.progress import Reporter, duration  # noqa: E402
from bnn_perception.training.run import load_state, open_run, read_records  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


HEIGHT, WIDTH = 10, 8

NETS: dict[str, list[dict[str, Any]]] = {
    "8-bit input, odd channel counts": [
        {"kind": "input_conv2d", "channels": 5, "pool": 2},
        {"kind": "binary_conv2d", "channels": 33, "pool": 2},
        {"kind": "binary_dense", "features": 7},
        {"kind": "output_dense"},
    ],
    "thermometer, kernel 5, stride 2": [
        {"kind": "thermometer", "levels": 3},
        {"kind": "binary_conv2d", "channels": 6, "kernel": 5, "padding": 2, "stride": 2},
        {"kind": "binary_conv2d", "channels": 4, "padding": 0},
        {"kind": "output_dense"},
    ],
    "one threshold a channel": [{"kind": "thermometer", "levels": 1}, {"kind": "output_dense"}],
}


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_light_and_brevitas_nets_are_equal(layers: list[dict[str, Any]]) -> None:
    pytest.importorskip("brevitas", reason="Brevitas is not installed (extra [train])")
    spec = network(layers, HEIGHT, WIDTH)
    images = to_tensor(pixels(4, HEIGHT, WIDTH))
    net = randomize(networks.build_binary(spec, 4), images)
    assert torch.equal(networks.to_brevitas(net, spec, 4)(images), net(images))


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_export_and_import_keep_every_bit(layers: list[dict[str, Any]], tmp_path: Path) -> None:
    """Through QONNX and back: the signs of the torch net are the bits of the model, layer by layer."""
    pytest.importorskip("brevitas", reason="Brevitas is not installed (extra [train])")
    spec = network(layers, HEIGHT, WIDTH)
    raw = pixels(6, HEIGHT, WIDTH)
    images = to_tensor(raw)
    net = randomize(networks.build_binary(spec, 4), images)
    export_qonnx(net, spec, tmp_path / "net.onnx", ["a", "b", "c", "d"], "small", "stretch")
    model = qonnx.read(tmp_path / "net.onnx")
    assert (model.name, model.labels, model.input.fit) == ("small", ("a", "b", "c", "d"), "stretch")

    signs: dict[str, torch.Tensor] = {}
    for name, module in net.named_children():
        if name.endswith("_sign") or name == "thermometer":
            key = name.removesuffix("_sign")
            module.register_forward_hook(lambda _m, _i, out, key=key: signs.__setitem__(key, out.detach()))
    expected = net(images).detach().numpy()
    backend = ReferenceBackend(model)
    for index, image in enumerate(raw):
        activations = dict(backend.activations(Frame(image)))
        assert signs.keys() <= activations.keys()
        for name, values in signs.items():
            plus = values[index].numpy() > 0
            plus = plus.transpose(1, 2, 0) if plus.ndim == 3 else plus[None, None]
            np.testing.assert_array_equal(bits.unpack(activations[name], plus.shape[-1]), plus, err_msg=name)
    # float32 sums of at most a few hundred terms of size 1, in another order
    np.testing.assert_allclose(
        backend.logits([Frame(image) for image in raw]), expected, rtol=1e-4, atol=1e-4
    )
    assert np.ptp(expected, axis=0).max() > 0.1


def test_float_twin_equals_its_onnx_file() -> None:
    assert_float_twin_equals_its_onnx_file(NETS["8-bit input, odd channel counts"], HEIGHT, WIDTH)


@dataclass(frozen=True)
class Average(LayerSpec):
    """A kind that the package lacks: the mean of squares side by side."""

    kind: ClassVar[str] = "average"
    stem: ClassVar[str] = "average"
    takes: ClassVar[Any] = "residual"
    gives: ClassVar[Any] = "residual"
    size: int = field(default=2, metadata=within(1, 100))

    def output(self, before: Signal) -> Signal:
        return before._replace(height=before.height // self.size, width=before.width // self.size)

    def binary(self, before: Signal, classes: int, quantizers: Any) -> dict[str, Any]:
        return self.twin(before, classes)

    def twin(self, before: Signal, classes: int) -> dict[str, Any]:
        return {"": torch.nn.AvgPool2d(self.size)}

    def add_twin_nodes(self, graph: Any, name: str, modules: Any, before: Signal) -> None:
        graph.add("AveragePool", name, kernel_shape=[self.size] * 2, strides=[self.size] * 2)


def test_a_kind_needs_nothing_but_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read, checked, named, built and exported; no other file of training knows of it."""
    monkeypatch.setitem(LAYER_SPECS, "average", Average)
    layers = [
        {"kind": "scaled_input_conv2d", "channels": 5},
        {"kind": "average"},
        {"kind": "residual_conv2d", "channels": 5},
        {"kind": "average", "size": 3},
        {"kind": "output_dense"},
    ]
    spec = network(layers, HEIGHT, WIDTH)
    assert [name for name, _ in spec.named_layers()] == ["conv1", "average1", "conv2", "average2", "output"]
    net = networks.build_binary(spec, 4)
    assert net.output.in_features == 5 * 1 * 1  # 10x8, 5x4, 1x1
    assert net(to_tensor(pixels(2, HEIGHT, WIDTH))).shape == (2, 4)
    assert_float_twin_equals_its_onnx_file(layers, HEIGHT, WIDTH)
    with pytest.raises(ConfigError, match=r"network\[1\].size is 0; it must be a whole number of at least 1"):
        network([layers[0], {"kind": "average", "size": 0}, layers[-1]], HEIGHT, WIDTH)
    with pytest.raises(ConfigError, match=r"network\[1\]: nothing is left of the 10x8 input"):
        network([layers[0], {"kind": "average", "size": 9}, layers[-1]], HEIGHT, WIDTH)


def test_gradient_of_the_sign_is_clipped() -> None:
    x = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5], requires_grad=True)
    y = modules.sign(x)
    y.backward(torch.full((5,), 2.0))
    assert y.tolist() == [-1, -1, 1, 1, 1]
    assert x.grad.tolist() == [0, 2, 2, 2, 0]


def test_clip_keeps_latent_weights_and_gammas_in_range() -> None:
    spec = network(NETS["8-bit input, odd channel counts"], HEIGHT, WIDTH)
    binary, twin = networks.build_binary(spec, 4), networks.build_float(spec, 4)
    with torch.no_grad():
        binary.conv1.weight[0, 0, 0, 0] = 3.0
        binary.conv1_norm.weight[0] = -1.0
        twin.conv1_norm.weight[0] = -1.0
    networks.clip(binary)
    networks.clip(twin)
    assert binary.conv1.weight.max() == 1.0
    assert binary.conv1_norm.weight[0] == -1.0  # a binary layer has its flip
    assert twin.conv1_norm.weight[0] == networks.MIN_GAMMA


def test_start_from_the_float_twin_keeps_signs() -> None:
    spec = network(NETS["8-bit input, odd channel counts"], HEIGHT, WIDTH)
    binary, twin = networks.build_binary(spec, 4), networks.build_float(spec, 4)
    networks.initialise_from_float(binary, twin)
    for name in ("conv1", "conv2", "dense1", "output"):
        ours, theirs = getattr(binary, name).weight, getattr(twin, name).weight
        assert torch.equal(ours.sign(), theirs.sign())
        assert ours.abs().max() <= 1
        assert ours.detach().abs().median().item() == pytest.approx(
            0.1, rel=0.2
        )  # of all filters; each has 0.1


# -- configuration


def test_shipped_configurations_are_read() -> None:
    folder = Path(__file__).parents[2] / "config" / "train"
    names = sorted(path.name for path in folder.glob("*.yaml"))
    assert "road_signs.yaml" in names
    for name in names:
        config = configs.load_config(folder / name)
        assert config.name == Path(name).stem
    config = configs.load_config(folder / "road_signs.yaml")
    assert len(config.data.labels) == 43
    net = networks.build_binary(config.network, 43)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 43)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epochs": 3}, "unknown field 'epochs'"),
        ({"binary": {"epochs": 0}}, "binary.epochs is 0; it must be from 1"),
        ({"binary": {"epochs": "many"}}, "binary.epochs is 'many'; it must be of type int"),
        ({"data": {"validation": 1}}, "data.validation is 1.0; it must be from 0.01 to 0.9"),
        ({"data": {"labels": "a"}}, "data.labels is 'a'; it must be a list"),
        ({"augmentation": {"scale": [1.0]}}, r"augmentation.scale is \[1.0\]; it must be a list of 2"),
        ({"input": {"height": 0}}, "input.height is 0"),
        ({"input": {"mean": [0.5]}}, "input: unknown field 'mean'"),
        ({"network": [{"kind": "maxout"}]}, r"network\[0\]: kind 'maxout' is not one of"),
        ({"network": [{"kind": "input_conv2d"}]}, r"network\[0\]: a field of input_conv2d is missing"),
        ({"network": [{"kind": "output_dense"}]}, "the first layer, and no other, is an input_conv2d"),
        (
            {"network": [{"kind": "input_conv2d", "channels": 8, "pool": 64}, {"kind": "output_dense"}]},
            "nothing is left of the 32x32 input",
        ),
        ([1], "is not a mapping of fields"),
        ({"augmentation": {"scale": [0, 1]}}, r"augmentation.scale\[0\] is 0.0; it must be from 0.01"),
        ({"augmentation": {"scale": [1.2, 0.8]}}, r"augmentation.scale is \[1.2, 0.8\]; the smallest comes"),
        ({"augmentation": {"rotation": "nan"}}, "augmentation.rotation is nan; it must be from 0.0 to 180.0"),
        ({"augmentation": {"perspective": 0.6}}, "augmentation.perspective is 0.6; it must be from 0.0"),
        ({"augmentation": {"noise": -0.1}}, "augmentation.noise is -0.1; it must be from 0.0"),
        ({"data": {"labels": ["a", "b", "a"]}}, "data.labels: 'a' stands twice"),
        ({"data": {"labels": ["a", "b\nc"]}}, r"data.labels: 'b\\nc' cannot be a label"),
        ({"data": {"labels": ["a", "b\u2028c"]}}, r"data.labels: 'b\\u2028c' cannot be a label"),
        ({"data": {"labels": ["a", " "]}}, "data.labels: ' ' cannot be a label"),
        ({"name": ""}, "name is ''; it must be a text that can name a folder"),
        ({"name": "../a"}, "name is '../a'; it must be a text that can name a folder"),
    ],
)
def test_configuration_errors_name_the_field(content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configs.from_mapping(content)


def test_defaults_are_what_their_fields_take() -> None:
    config = configs.default_config("mine", "images")
    stated = 0
    for spec in (config, *(getattr(config, part) for part in configs.PARTS), *config.network.layers):
        for each in fields(spec):
            value = getattr(spec, each.name)
            for item in value if isinstance(value, tuple) else [value]:
                if "bounds" in each.metadata:
                    low, high = each.metadata["bounds"]
                    assert low <= item <= high, each.name
                    stated += 1
                elif "choices" in each.metadata:
                    assert item in each.metadata["choices"], each.name
                    stated += 1
                else:  # a number or a text without a limit is one that another check looks at
                    assert not isinstance(item, (int, float)) or type(item) is bool or each.name == "restart"
    assert stated > 60


def test_yaml_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("binary: {epochs: 3, learning_rate: 2e-3}\n", encoding="utf-8")
    assert configs.load_config(path).binary.learning_rate == 0.002


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"batch: 8\nseed: 1\nbatch: 16\n", "the field 'batch' stands twice .*line 3"),
        (b"binary: {epochs: 3, epochs: 4}\n", "the field 'epochs' stands twice"),
        (b"name: 2024-13-45\n", "cannot be read: month must be in 1..12"),
        (b"name: " + b"[" * 5000 + b"\n", "cannot be read: "),
        (b"name: caf\xe9\n", "cannot be read: 'utf-8' codec"),
        (b"\tname: a\n", "cannot be read: while scanning"),
        (b"", "is not a mapping of fields"),
    ],
    ids=["field twice", "field of a field twice", "no date", "nested", "Latin-1", "tab", "empty"],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        configs.load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_merged_fields_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "float_twin: &stage {epochs: 3, patience: 2}\nbinary: {<<: *stage, epochs: 4}\n"
    path.write_text(text, encoding="utf-8")
    binary = configs.load_config(path).binary
    assert (binary.epochs, binary.patience) == (4, 2)


# -- data


def image_folder(folder: Path, counts: dict[str, int], size: int = 12) -> Path:
    """Images whose class shows: bright at the top, at the bottom, or left and right."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra [opencv])")
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 90, (size, size, 3))
            half = np.s_[: size // 2] if label % 2 == 0 else np.s_[size // 2 :]
            image[half] += 150
            encoded = cv2.imencode(".png", image.astype(np.uint8))[1]
            encoded.tofile(folder / name / f"{index}.png")
    return folder


SMALL = configs.from_mapping({"input": {"height": 12, "width": 12}}).input


def test_folder_with_bad_files_and_unicode_names(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "d", {"ümlaut and space": 3, "b": 2})
    (folder / "b" / "broken.png").write_bytes(b"not an image")
    (folder / "b" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"left out: .*broken\.png"):
        data = datasets.load(folder, SMALL)
    assert data.names == ("b", "ümlaut and space")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]


def test_folders_that_cannot_be_trained_on(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "d", {"a": 3, "b": 1})
    with pytest.raises(datasets.DataError, match="class 'b' has one image or track only"):
        datasets.split(datasets.load(folder, SMALL), 0.2, 1)
    (folder / "c").mkdir()
    with pytest.raises(datasets.DataError, match=r"d/c: holds no images"):
        datasets.load(folder, SMALL)
    with pytest.raises(datasets.DataError, match="a: holds no folders"):
        datasets.load(folder / "a", SMALL)


def test_ignored_folders_are_left_out(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "d", {"a": 2, "b": 2, "c": 2})
    assert datasets.load(folder, SMALL, ignore=["b"]).names == ("a", "c")
    with pytest.raises(datasets.DataError, match="has no folder 'd' to ignore; it has a, b, c"):
        datasets.load(folder, SMALL, ignore=["d"])


def test_npz_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((4, 8, 8, 3), np.float32), y=np.zeros(4, int))
    with pytest.raises(datasets.DataError, match=r"x is float32 \[4, 8, 8, 3\]"):
        datasets.load(path, SMALL)
    np.savez(path, x=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(datasets.DataError, match="it takes x"):
        datasets.load(path, SMALL)


def test_split_keeps_tracks_together() -> None:
    labels = np.repeat([0, 1], 50)
    tracks = np.arange(100) // 5
    data = datasets.PreparedImages(np.zeros((100, 1, 1, 3), np.uint8), labels, tracks, ("a", "b"))
    kept, held = datasets.split(data, 0.3, 1)
    assert not set(kept.tracks) & set(held.tracks)
    assert np.bincount(held.labels).tolist() == [15, 15]
    again = datasets.split(data, 0.3, 1)[1]
    np.testing.assert_array_equal(held.tracks, again.tracks)


def test_epoch_balances_classes_partly() -> None:
    labels = np.repeat([0, 1], [400, 100])
    rng = np.random.default_rng(0)
    assert np.bincount(labels[datasets.epoch_indices(labels, 1.0, 500, rng)]).tolist() == [400, 100]
    assert np.bincount(labels[datasets.epoch_indices(labels, 0.0, 500, rng)]).tolist() == [250, 250]
    half = datasets.epoch_indices(labels, 0.5, 600, rng)
    assert np.bincount(labels[half]).tolist() == [400, 200]
    assert np.bincount(half)[400:].tolist() == [2] * 100


def test_augmentation_is_reproducible_and_gives_8_bit_pixels() -> None:
    images = to_tensor(pixels(8, 12, 12))
    spec = configs.AugmentationSpec()
    first, second = (augment(images, spec, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, images)
    levels = first * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    off = configs.AugmentationSpec(0.0, (1.0, 1.0), 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    # Nothing is switched on: each pixel comes back, to what bilinear lookup at its centre loses.
    assert torch.allclose(augment(images, off, torch.Generator()), images, atol=1 / 255)


# -- the run

TINY: dict[str, Any] = {
    "input": {"height": 12, "width": 12},
    "network": [
        {"kind": "input_conv2d", "channels": 8, "pool": 2},
        {"kind": "binary_dense", "features": 16},
        {"kind": "output_dense"},
    ],
    "data": {"train": "."},
    "augmentation": {"rotation": 2.0, "shift": 0.02, "perspective": 0.0},
    "batch": 16,
    "epoch_images": 64,
    "float_twin": {"epochs": 4, "learning_rate": 0.01},
    "binary": {"epochs": 6, "learning_rate": 0.01, "distillation": 0.5, "from_float": True},
}


def run_tiny(folder: Path, run: Path, stop_after: int | None = None) -> torch.nn.Module:
    """Train the tiny net; ``stop_after`` raises as Ctrl-C does after so many steps of the binary stage."""
    config = configs.from_mapping({**TINY, "name": "tiny"})
    world = World(torch.device("cpu"))
    reporter = Reporter()
    open_run(run, config)
    data = train.load_data(config, str(folder), run, reporter, world)
    twin = train.run_stage("float_twin", config, data, run, reporter, world)
    if stop_after is not None:
        reporter = Stopping(stop_after)
    return train.run_stage("binary", config, data, run, reporter, world, source=twin, teacher=twin)


def test_the_time_that_is_left_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the first steps and with every epoch but the last; by the seconds that this machine takes."""
    folder = image_folder(tmp_path / "d", {"a": 20, "b": 12})
    config = configs.from_mapping({**TINY, "name": "tiny", "epoch_images": 256})  # 16 steps an epoch
    open_run(tmp_path / "run", config)
    world = World(torch.device("cpu"))
    data = train.load_data(config, str(folder), tmp_path / "run", Reporter(), world)
    train.run_stage("float_twin", config, data, tmp_path / "run", Reporter(), world)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("float_twin")]
    assert re.fullmatch(r"float_twin: about \d+ s an epoch, 10 epochs, about \d+ s, left", lines[0])
    for epoch, line in enumerate(lines[1:5], 1):
        assert re.match(f"float_twin epoch {epoch}/4: ", line)
        assert re.search(rf"\d s, {10 - epoch} epochs, about \d+ s, left$", line)


def test_durations_are_said_as_one_would() -> None:
    assert [duration(s) for s in (7.4, 99, 100, 5940, 36000)] == ["7 s", "99 s", "2 min", "99 min", "10.0 h"]


def test_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "d", {"a": 20, "b": 12})
    whole = run_tiny(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_tiny(folder, tmp_path / "parts", stop_after=9)  # in the third epoch of 4 steps
    assert load_state(tmp_path / "parts" / "binary.pt")["epoch"] == 2  # type: ignore[index]
    assert not list((tmp_path / "parts").glob("*.partial"))
    # An epoch that was recorded but not kept, and a line cut short, as a crash leaves them.
    with (tmp_path / "parts" / "records.jsonl").open("a") as stream:
        stream.write(json.dumps({"stage": "binary", "epoch": 3}) + '\n{"stage": "bin')
    resumed = run_tiny(folder, tmp_path / "parts")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(tmp_path / "whole")]
    again = [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(tmp_path / "parts")]
    assert records == again
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]


def test_a_run_folder_belongs_to_one_configuration(tmp_path: Path) -> None:
    open_run(tmp_path / "run", configs.from_mapping(TINY))
    open_run(tmp_path / "run", configs.from_mapping({**TINY, "threads": 1}))
    with pytest.raises(ConfigError, match="holds a run with batch 16, not 8"):
        open_run(tmp_path / "run", configs.from_mapping({**TINY, "batch": 8}))


def load_tiny(folder: Path, run: Path) -> train.TrainingData:
    config = configs.from_mapping({**TINY, "name": "tiny"})
    open_run(run, config)
    return train.load_data(config, str(folder), run, Reporter(), World(torch.device("cpu")))


def test_a_run_belongs_to_its_images(tmp_path: Path) -> None:
    """Other images are split in another way: some that the net was trained on would measure it."""
    folder, run = image_folder(tmp_path / "d", {"a": 8, "b": 8}), tmp_path / "run"
    load_tiny(folder, run)
    image_folder(folder / "b" / "more", {"new": 1})
    validation = load_tiny(folder, run).validation  # nothing was trained on yet
    with np.load(run / "validation.npz") as kept:
        np.testing.assert_array_equal(kept["x"], validation.images)
    torch.save({}, run / "float_twin.pt")
    folder.rename(tmp_path / "moved")
    load_tiny(tmp_path / "moved", run)
    (tmp_path / "moved" / "b" / "more" / "new" / "0.png").unlink()
    with pytest.raises(ConfigError, match="run: holds a run with other images than there are now"):
        load_tiny(tmp_path / "moved", run)
    (run / "data.sha256").unlink()  # as a version left it that did not keep it
    with pytest.warns(UserWarning, match="run: does not say which images it was trained on"):
        load_tiny(tmp_path / "moved", run)
    load_tiny(tmp_path / "moved", run)


def test_images_of_an_npz_are_told_apart(tmp_path: Path) -> None:
    x, y = np.zeros((4, 12, 12, 3), np.uint8), np.array([0, 0, 1, 1])
    digests = set()
    for change in ("none", "a pixel", "a label", "the tracks", "none"):
        if change == "a pixel":
            x[0, 0, 0, 0] = 1
        labels = y[::-1] if change == "a label" else y
        tracks = {"track": np.array([0, 0, 1, 2])} if change == "the tracks" else {}
        np.savez(tmp_path / "d.npz", x=x, y=labels, **tracks)
        digests.add(datasets.load(tmp_path / "d.npz", SMALL).digest)
        x[:] = 0
    assert len(digests) == 4


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ConfigError, match=r"binary\.pt: cannot be read .* delete it"):
        load_state(tmp_path / "binary.pt")


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"net": Intruder(tmp_path / "made")}, tmp_path / "binary.pt")
    with pytest.raises(ConfigError, match=r"binary\.pt: cannot be read .* delete it"):
        load_state(tmp_path / "binary.pt")
    assert not (tmp_path / "made").exists()


def test_train_command_makes_a_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("brevitas", "onnx", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra [train])")
    import yaml

    folder = image_folder(tmp_path / "images", {"top": 24, "bottom": 16})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    words = [str(tmp_path / "tiny.yaml"), "--data", str(folder), "--out", str(tmp_path / "model")]
    words += ["--run", str(tmp_path / "run"), "--epochs", "8"]
    assert execute(tool, "train", words) == 0
    model = load_model(tmp_path / "model")
    assert model.labels == ("bottom", "top")
    assert model.float_twin is not None
    # Half of the image is bright: anything that learns gets this right.
    assert model.info["accuracy"]["binary"] >= 0.8
    assert model.info["accuracy"]["float"] >= 0.8
    assert model.info["training"]["epochs"] == {"float_twin": 4, "binary": 8}
    assert model.info["calibration"]["data"] == "validation.npz"
    assert 1.0 not in (model.temperature, model.float_temperature)
    assert str(tmp_path) not in json.dumps(model.info)
    assert (tmp_path / "model" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "no test images (data.test): the accuracy below" in capsys.readouterr().out
    assert execute(tool, "train", words) == 0  # again: nothing is left to do but to write the folder
    assert "binary: is finished" in capsys.readouterr().out
    assert execute(tool, "train", [*words[:-1], "9"]) == 1
    assert "holds a run with binary.epochs (--epochs) 8, not 9" in capsys.readouterr().err


def test_a_model_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whoever is stopped before both accuracies are known finds no model; the same call then writes it."""
    for module in ("brevitas", "onnx", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra [train])")
    config = configs.from_mapping({**TINY, "name": "tiny"})
    folder, out = image_folder(tmp_path / "images", {"top": 24, "bottom": 16}), tmp_path / "model"

    said = []

    class Interrupted(Reporter):
        def line(self, text: str) -> None:
            said.append(text)
            if text.startswith("cpu_binary: accuracy"):
                raise KeyboardInterrupt

    def train_all(reporter: Reporter) -> Model | None:
        return pipeline.train(config, str(folder), tmp_path / "run", out, reporter, "train")

    with pytest.raises(KeyboardInterrupt):
        train_all(Interrupted())
    assert not out.exists()
    assert any(
        "that of the validation images, by which" in text and "a little too high" in text for text in said
    )
    model = train_all(Reporter(quiet=True))
    assert model is not None
    assert model.info == load_model(out).info
    assert list(model.info) == ["command", "training", "calibration", "accuracy"]


def test_train_command_refuses_at_once_where_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(tmp_path / "images", {"top": 2, "bottom": 2})
    (tmp_path / "file").write_text("no folder")
    words = ["--data", str(folder), "--run", str(tmp_path / "run"), "--out"]
    assert execute(tool, "train", [*words, str(tmp_path / "file" / "model")]) == 1
    assert f"--out {tmp_path}/file/model: {tmp_path}/file is not a folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert execute(tool, "train", [*words, str(tmp_path / "model")]) == 1
    captured = capsys.readouterr()
    assert f"--out {tmp_path}/model: {tmp_path} cannot be written to" in captured.err
    assert captured.out == ""


def test_train_command_refuses_what_it_cannot_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(tool, "train", []) == 1
    assert execute(tool, "train", [str(tmp_path / "no.yaml")]) == 1
    assert execute(tool, "train", ["--data", str(tmp_path / "none"), "--run", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "name a configuration file, or a folder of images" in lines[0]
    assert "no.yaml: no such file" in lines[1]
    assert "none: no such file or folder" in lines[2]
