"""From trained nets to a model folder: QONNX out, the importer in, and a check that nothing was lost between."""

from __future__ import annotations

import platform
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.evaluation.calibration import CalibrationError
from bnn_perception.evaluation.evaluate import calibrate
from bnn_perception.frames.images import read_dataset
from bnn_perception.frames.preprocess import CHANNELS, Frame
from bnn_perception.importers.onnx import read as qonnx
from bnn_perception.net.folder import load_model, save_model
from bnn_perception.net.layers import WithResidual
from bnn_perception.net.model import Model
from bnn_perception.training.config import STAGES, Config, portable
from bnn_perception.training.curves import draw_curves
from bnn_perception.training.export import export_qonnx, float_twin_onnx
from bnn_perception.training.run import read_records
from bnn_perception.training.train import TrainingData
from bnn_perception.training.validation import predict

#: How many validation images the exported model is compared with the trained net on.
CHECKED = 64


def publish(
    config: Config,
    net: nn.Sequential,
    twin: nn.Sequential,
    data: TrainingData,
    run: Path,
    out: Path,
    info: Mapping[str, Any],
) -> Model:
    """Write the model folder of a finished run, its scores calibrated on the run's validation images.

    Args:
        net, twin: the trained nets.
        info: further fields of ``model.yaml``.

    Raises:
        RuntimeError: where the model does not answer as the trained net does.
    """
    path = run / "binary.onnx"
    export_qonnx(net, config.network, path, data.train.names, config.name, config.input.fit)
    model = qonnx.read(path)
    check(model, net, data)
    records = read_records(run)
    seconds = sum(record["seconds"] for record in records)
    # The twin of a study comes from another run; a stage that stopped early has fewer epochs than configured.
    epochs = {stage: getattr(config, stage).epochs for stage in STAGES}
    epochs.update((record["stage"], record["epoch"]) for record in records)
    epochs = {stage: count for stage, count in epochs.items() if count}
    devices = sorted({record.get("device", "CPU") for record in records})
    training = {
        "data": ", ".join(str(portable(path)) for path in (config.data.train, *config.data.also)),
        "images": len(data.train) - data.rendered,
        "rendered": data.rendered,
        "validation_images": len(data.validation),
        "epochs": epochs,
        "seed": config.seed,
        "hours": round(seconds / 3600, 2),
        "machine": f"{', '.join(devices)}, {platform.machine()}",
        "versions": {package: version(package) for package in ("torch", "brevitas", "onnx", "numpy")},
    }
    description = {"description": config.description} if config.description else {}
    model = replace(model, info={**description, **info, "training": training})
    saved = save_model(model, out, float_twin_onnx(twin, config.network))
    draw_curves(records, run / "curves.png", config.name)
    shutil.copyfile(run / "curves.png", out / "curves.png")
    validation = run / "validation.npz"
    try:
        calibrate(saved, read_dataset(validation, saved.labels), validation.name, threads=config.threads)
    except CalibrationError as error:
        warnings.warn(f"scores are not calibrated: {error}", stacklevel=2)
    return load_model(out)


def check(model: Model, net: nn.Module, data: TrainingData) -> None:
    """Compare a model with the trained net on some validation images.

    The thresholds are exact, while PyTorch rounds: a batch norm that lands on 0 to within float32 may differ by a
    bit. More than one image in :data:`CHECKED` that changes its class cannot come from that. In a residual net the
    streams are rounded to fixed point too (:mod:`bnn_perception.importers.onnx.layers`): in quicknet_tiny that
    changed the logits of 78 of 500 test images and the class of none, in a smaller net of its kind the class of 2, so
    that three in :data:`CHECKED` may.
    """
    chosen = np.random.default_rng(0).permutation(len(data.validation))[:CHECKED]
    mask = np.zeros(len(data.validation), dtype=bool)
    mask[chosen] = True
    images = data.validation.subset(mask)
    encoding = next(name for name, channels in CHANNELS.items() if channels == model.input.channels)
    logits = ReferenceBackend(model).logits([Frame(image, encoding) for image in images.images])
    differing = int((logits.argmax(axis=1) != predict(net, images).numpy().argmax(axis=1)).sum())
    streams = any(isinstance(layer, WithResidual) for layer in model.layers)
    if differing > (3 if streams else 1):
        raise RuntimeError(
            f"the exported model differs from the trained net on {differing} of {len(logits)} images"
        )
