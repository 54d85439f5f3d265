"""Residual nets from training to a model folder: float twin, Brevitas, QONNX, the real values between their signs."""

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

from bnn_perception.backends.reference import ReferenceBackend  # noqa: E402
from bnn_perception.cli import execute  # noqa: E402
from bnn_perception.cli import train as tool  # noqa: E402
from bnn_perception.frames.frame import Frame  # noqa: E402
from bnn_perception.importers.onnx import read as qonnx  # noqa: E402
from bnn_perception.net import bits  # noqa: E402
from bnn_perception.net.folder import load_model  # noqa: E402
from bnn_perception.net.signals import Sign  # noqa: E402
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
    "real weights in the stem and the shortcuts": [
        {"kind": "real_input_conv2d", "channels": 6, "kernel": 5, "padding": 2, "pool": 2},
        {"kind": "residual_conv2d", "channels": 6, "activation": "prelu"},
        {
            "kind": "residual_conv2d",
            "channels": 11,
            "kernel": 2,
            "stride": 2,
            "padding": 0,
            "shortcut": "real",
        },
        {"kind": "residual_conv2d", "channels": 11},
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


def traced(
    net: torch.nn.Module, images: torch.Tensor
) -> tuple[list[NDArray[np.float64]], NDArray[np.float32]]:
    """What the torch net compares with 0 for the bits of each sign behind a residual, in order, (N, height, width,
    channels) float64, and its logits."""
    compared: list[NDArray[np.float64]] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        compared.append(output.detach().double().permute(0, 2, 3, 1).numpy())

    hooks = []
    for name, module in net.named_children():
        if isinstance(module, modules.Block):
            hooks.append(module.front.shift.register_forward_hook(keep))
        elif name.endswith("_shift"):
            hooks.append(module.register_forward_hook(keep))
    logits = net(images).detach().numpy()
    for hook in hooks:
        hook.remove()
    return compared, logits


@pytest.mark.parametrize("layers", NETS.values(), ids=list(NETS))
def test_exported_residual_net_answers_as_the_trained_one(
    layers: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Every sign but those of values that float32 rounds to either side of 0: about 1e-5 of values of size 1."""
    pytest.importorskip("brevitas", reason="Brevitas is not installed (extra [train])")
    spec, raw = network(layers, HEIGHT, WIDTH), pixels(6, HEIGHT, WIDTH)
    net = randomize(networks.build_binary(spec, 4), to_tensor(raw))
    export_qonnx(net, spec, tmp_path / "net.onnx", ["a", "b", "c", "d"], "small", "stretch")
    model = qonnx.read(tmp_path / "net.onnx")
    compared, expected = traced(net, to_tensor(raw))
    backend = ReferenceBackend(model)
    signs = [layer for layer in model.layers if isinstance(layer, Sign)]
    assert len(signs) == len(compared) > 0
    for index, image in enumerate(raw):
        found = dict(backend.activations(Frame(image)))
        for layer, values in zip(signs, compared):
            clear = np.abs(values[index]) > 1e-5
            plus = values[index] >= 0
            ours = bits.unpack(found[layer.name], layer.channels)
            np.testing.assert_array_equal(ours[clear], plus[clear], err_msg=layer.name)
            assert clear.mean() > 0.99  # or nothing would be compared
    logits = backend.logits([Frame(image) for image in raw])
    # float32 sums of at most a few hundred terms of size 1, in another order
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.1


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
    assert [layer.kind for layer in model.layers if layer.operands != "nothing"] == [
        *("scaled_input_conv2d", "scaled_binary_conv2d", "scaled_binary_conv2d", "output_dense"),
    ]
    assert model.float_twin is not None
    # Ten classes: chance is 0.1.
    assert model.info["accuracy"]["float"] > 0.5
    assert model.info["accuracy"]["binary"] > 0.5
    with np.load(tmp_path / "run" / "validation.npz") as validation:
        frames = [Frame(image) for image in validation["x"]]
        right = ReferenceBackend(model).logits(frames).argmax(axis=1) == validation["y"]
    assert right.mean() == pytest.approx(model.info["accuracy"]["binary"], abs=1e-3)
