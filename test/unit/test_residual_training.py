"""Residual nets from training to a model folder: float twin, Brevitas, QONNX, the fixed point of their streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [train])")

from training_cases import (  # noqa: E402
    assert_float_twin_equals_its_onnx_file,
    network,
    pixels,
    randomize,
    to_tensor,
)

from bnn_perception.backends import reference  # noqa: E402
from bnn_perception.backends.reference import ReferenceBackend  # noqa: E402
from bnn_perception.cli import execute  # noqa: E402
from bnn_perception.cli import train as tool  # noqa: E402
from bnn_perception.frames.frame import Frame  # noqa: E402
from bnn_perception.importers.onnx import read as qonnx  # noqa: E402
from bnn_perception.importers.onnx.walk import Walk  # noqa: E402
from bnn_perception.net import bits  # noqa: E402
from bnn_perception.net.folder import load_model  # noqa: E402
from bnn_perception.net.layers import InputResidualConv2d, ResidualConv2d, WithResidual  # noqa: E402
from bnn_perception.net.model import Model  # noqa: E402
from bnn_perception.training import modules, networks  # noqa: E402
from bnn_perception.training.export import export_qonnx  # noqa: E402

HEIGHT, WIDTH = 14, 12

NETS: dict[str, list[dict[str, Any]]] = {
    "every shortcut and activation": [
        {"kind": "scaled_input_conv2d", "channels": 5, "pool": 2},
        {"kind": "residual_conv2d", "channels": 5, "activation": "prelu"},
        # 7x6: the average pool leaves out a row, the convolution has to as well
        {
            "kind": "residual_conv2d",
            "channels": 10,
            "kernel": 2,
            "stride": 2,
            "padding": 0,
            "shortcut": "average_pool",
            "activation": "relu",
        },
        {"kind": "residual_conv2d", "channels": 30, "kernel": 1, "padding": 0},
        {"kind": "residual_conv2d", "channels": 7, "shortcut": "none", "activation": "prelu"},
        {"kind": "residual_conv2d", "channels": 7},
        {"kind": "binary_dense", "features": 9},
        {"kind": "output_dense"},
    ],
    "a pool in the block, plain layers behind": [
        {"kind": "scaled_input_conv2d", "channels": 33},
        {"kind": "residual_conv2d", "channels": 66, "pool": 2, "shortcut": "average_pool"},
        {"kind": "binary_conv2d", "channels": 6, "pool": 2},
        {"kind": "output_dense"},
    ],
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_float_twin_equals_its_onnx_file(layers: list[dict[str, Any]]) -> None:
    assert_float_twin_equals_its_onnx_file(layers, HEIGHT, WIDTH)


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_light_and_brevitas_nets_are_equal(layers: list[dict[str, Any]]) -> None:
    pytest.importorskip("brevitas", reason="Brevitas is not installed (extra [train])")
    spec = network(layers, HEIGHT, WIDTH)
    images = to_tensor(pixels(4, HEIGHT, WIDTH))
    net = randomize(networks.build_binary(spec, 4), images)
    assert torch.equal(networks.to_brevitas(net, spec, 4)(images), net(images))


class Trace:
    """What the torch net makes of some images: the streams, and what is compared with 0 for the bits of each layer.

    Attributes:
        streams: (N, height, width, channels) float64, by the name of the layer.
        compared: likewise; where it is >= 0 the bit is 1.
    """

    def __init__(self, net: torch.nn.Module, images: torch.Tensor) -> None:
        self.streams: dict[str, NDArray[np.float64]] = {}
        self.compared: dict[str, NDArray[np.float64]] = {}
        last = ""
        hooks = []
        for name, module in net.named_children():
            layer = name.split("_")[0]
            if isinstance(module, modules.Block):
                hooks += [
                    self._keep(module.front.shift, self.compared, last),
                    self._keep(module, self.streams, name),
                ]
                last = name
            elif name.endswith("_norm"):
                hooks.append(self._keep(module, self.streams, layer))
                last = layer
            elif name.endswith("_shift"):
                hooks.append(self._keep(module, self.compared, last))
        self.logits = net(images).detach().numpy()
        for hook in hooks:
            hook.remove()

    @staticmethod
    def _keep(module: torch.nn.Module, values: dict[str, NDArray[np.float64]], key: str) -> Any:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            axes = (0, 2, 3, 1) if output.dim() == 4 else (0, 1)
            values[key] = output.detach().double().permute(axes).numpy()

        return module.register_forward_hook(hook)


def export(
    layers: list[dict[str, Any]], path: Path, count: int
) -> tuple[Model, Walk, Trace, NDArray[np.uint8]]:
    pytest.importorskip("brevitas", reason="Brevitas is not installed (extra [train])")
    spec, raw = network(layers, HEIGHT, WIDTH), pixels(count, HEIGHT, WIDTH)
    net = randomize(networks.build_binary(spec, 4), to_tensor(raw))
    export_qonnx(net, spec, path, ["a", "b", "c", "d"], "small", "stretch")
    walk = Walk(onnx.load(str(path)), None)
    walk.run()
    return qonnx.read(path), walk, Trace(net, to_tensor(raw)), raw


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_every_layer_rounds_as_its_fixed_point_says(layers: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each layer alone, on the bits and the stream that torch gives it.

    In integers of the stream: a multiplier is rounded by 1/2 and meets a dot product of at most fan_in (that of the
    stem is exact, whatever its pixels), the offset is rounded by 1/2, the shortcut that the test makes of torch's by
    1/2, and its average down by less than 1. On top comes what float32 loses in torch: some ten roundings of 6e-8.
    """
    model, walk, trace, raw = export(layers, tmp_path / "net.onnx", 3)
    checked = 0
    for before, layer in zip([None, *model.layers], model.layers):
        if not isinstance(layer, WithResidual):
            continue
        units = walk.units[layer.name].astype(np.float64)
        expected, compared = trace.streams[layer.name], trace.compared[layer.name]
        lost = 1e-6 * np.abs(expected).max()
        for index, image in enumerate(raw):
            if isinstance(layer, InputResidualConv2d):
                words, stream = reference.input_residual_conv2d(layer, image)
                tolerance = 0.5 / units + lost
            else:
                assert isinstance(layer, ResidualConv2d)
                assert before is not None
                shortcut = trace.streams[before.name][index]
                into = np.rint(shortcut * walk.units[before.name].astype(np.float64)).astype(np.int32)
                words, stream = reference.residual_conv2d(
                    layer, bits.pack(trace.compared[before.name][index] >= 0), into
                )
                tolerance = (layer.fan_in / 2 + 2) / units + lost
            assert np.all(np.abs(stream / units - expected[index]) <= tolerance), layer.name
            plus = compared[index] >= 0
            clear = np.abs(compared[index]) > tolerance
            np.testing.assert_array_equal(
                bits.unpack(words, plus.shape[-1])[clear], plus[clear], err_msg=layer.name
            )
            assert clear.mean() > 0.99  # or nothing would be compared
            assert plus.any()
            assert not plus.all()
        checked += 1
    assert checked == sum(isinstance(layer, WithResidual) for layer in model.layers)


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_exported_residual_net_answers_as_the_trained_one(
    layers: list[dict[str, Any]], tmp_path: Path
) -> None:
    """No sign of these nets lies within the fixed point's rounding of its threshold, so that all logits agree."""
    model, walk, trace, raw = export(layers, tmp_path / "net.onnx", 6)
    logits = ReferenceBackend(model).logits([Frame(image) for image in raw])
    # float32 sums of at most a few hundred terms of size 1, in another order
    np.testing.assert_allclose(logits, trace.logits, rtol=1e-4, atol=1e-4)
    assert np.ptp(trace.logits, axis=0).max() > 0.1
    assert model.info["source"]["fraction_bits"] == int(
        np.floor(min(np.log2(units.astype(np.float64)).min() for units in walk.units.values()))
    )
    assert model.info["source"]["fraction_bits"] >= 16


def test_train_command_makes_a_residual_model_folder(tmp_path: Path) -> None:
    """Real digits, two epochs each: enough to see that all stages run and the folder answers."""
    for module in ("brevitas", "onnxruntime", "sklearn"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra [train])")
    import yaml
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat((digits.images * 15).astype(np.uint8)[..., None], 3, axis=-1)[:600]
    np.savez(tmp_path / "digits.npz", x=images, y=digits.target[:600])
    content = {
        "name": "tiny_residual",
        "input": {"height": 8, "width": 8},
        "network": [
            {"kind": "scaled_input_conv2d", "channels": 16},
            {"kind": "residual_conv2d", "channels": 16, "activation": "prelu"},
            {"kind": "residual_conv2d", "channels": 32, "stride": 2, "shortcut": "average_pool"},
            {"kind": "output_dense"},
        ],
        "data": {"train": "digits.npz"},
        "augmentation": {"rotation": 5.0, "shift": 0.05, "flip": False},
        "batch": 32,
        "epoch_images": 0,
        "float_twin": {"epochs": 4, "learning_rate": 0.01},
        "binary": {"epochs": 6, "learning_rate": 0.01, "distillation": 0.5, "from_float": True},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = [str(tmp_path / "tiny.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "model")]
    assert execute(tool, "train", [*words, "--run", str(tmp_path / "run")]) == 0
    model = load_model(tmp_path / "model")
    assert [layer.kind for layer in model.layers] == [layer["kind"] for layer in content["network"]]  # type: ignore[index,attr-defined]
    assert model.float_twin is not None
    # Ten classes: chance is 0.1.
    assert model.info["accuracy"]["float"] > 0.5
    assert model.info["accuracy"]["binary"] > 0.5
    with np.load(tmp_path / "run" / "validation.npz") as validation:
        frames = [Frame(image) for image in validation["x"]]
        right = ReferenceBackend(model).logits(frames).argmax(axis=1) == validation["y"]
    assert right.mean() == pytest.approx(model.info["accuracy"]["binary"], abs=1e-3)
