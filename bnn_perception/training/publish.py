"""From trained nets to a model folder: the nets go out as QONNX and in by the importer, and nothing may be lost."""

from __future__ import annotations

import hashlib
import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.files import replacing
from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.importers.onnx import read as qonnx
from bnn_perception.net.folder import save_model
from bnn_perception.net.model import FLOAT_TWIN, Model
from bnn_perception.training.config import STAGES, Config, portable
from bnn_perception.training.curves import draw_curves
from bnn_perception.training.export import export_qonnx, float_twin_onnx
from bnn_perception.training.run import QONNX, read_records
from bnn_perception.training.train import TrainingData
from bnn_perception.training.validation import predict

#: How many validation images the exported model is compared with the trained net on.
CHECKED = 64


def to_model(
    config: Config, net: nn.Sequential, twin: nn.Sequential, data: TrainingData, run: Path, command: str
) -> Model:
    """The nets of a finished run as a model in memory, not calibrated yet; its float twin lies in the run folder.

    Args:
        net, twin: the trained nets.
        command: of the user, for the description.

    Raises:
        RuntimeError: where the model does not answer as the trained net does.
    """
    path = run / QONNX
    export_qonnx(net, config.network, path, data.train.names, config.name, config.input.fit)
    model = qonnx.read(path)
    check(model, net, data)
    content = float_twin_onnx(twin, config.network)
    with replacing(run / FLOAT_TWIN) as partial:
        partial.write_bytes(content)
    description = {"description": config.description} if config.description else {}
    info = {**description, "command": command, "training": _training_info(config, data, run)}
    return replace(model, info=info, folder=run, twin_digest=hashlib.sha256(content).hexdigest())


def _training_info(config: Config, data: TrainingData, run: Path) -> dict[str, Any]:
    """What ``model.yaml`` says of the training."""
    records = read_records(run)
    # The twin of a study comes from another run; a stage that stopped early has fewer epochs than configured.
    epochs = {stage: getattr(config, stage).epochs for stage in STAGES}
    epochs.update((record["stage"], record["epoch"]) for record in records)
    devices = sorted({record.get("device", "CPU") for record in records})
    return {
        "data": ", ".join(str(portable(path)) for path in (config.data.train, *config.data.also)),
        "images": len(data.train) - data.rendered,
        "rendered": data.rendered,
        "validation_images": len(data.validation),
        "epochs": {stage: count for stage, count in epochs.items() if count},
        "seed": config.seed,
        "hours": round(sum(record["seconds"] for record in records) / 3600, 2),
        "machine": f"{', '.join(devices)}, {platform.machine()}",
        "versions": {package: version(package) for package in ("torch", "brevitas", "onnx", "numpy")},
    }


def write_folder(model: Model, run: Path, out: Path, title: str) -> Model:
    """Write the model folder: the model, its float twin and the curves of its run.

    Args:
        model: whole, with everything that its description says.
        run: its run folder, where the float twin lies.
        out: the model folder.
        title: above the curves.

    Returns:
        The model as it is read back.
    """
    saved = save_model(model, out, (run / FLOAT_TWIN).read_bytes())
    draw_curves(read_records(run), run / "curves.png", title)
    shutil.copyfile(run / "curves.png", out / "curves.png")
    return saved


def check(model: Model, net: nn.Module, data: TrainingData) -> None:
    """Compare a model with the trained net on some validation images.

    The thresholds are exact, while PyTorch rounds: a batch norm that lands on 0 to within float32 may differ by a
    bit. The real values of a residual net are rounded in both, in another order. More than one image in :data:`CHECKED`
    that changes its class cannot come from that.
    """
    chosen = np.random.default_rng(0).permutation(len(data.validation))[:CHECKED]
    mask = np.zeros(len(data.validation), dtype=bool)
    mask[chosen] = True
    images = data.validation.subset(mask)
    encoding = next(name for name, each in ENCODINGS.items() if each.channels == model.input.channels)
    logits = ReferenceBackend(model).logits([Frame(image, encoding) for image in images.images])
    differing = int((logits.argmax(axis=1) != predict(net, images).numpy().argmax(axis=1)).sum())
    if differing > 1:
        raise RuntimeError(
            f"the exported model differs from the trained net on {differing} of {len(logits)} images"
        )
