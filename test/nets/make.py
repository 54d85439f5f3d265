"""Makes the files beside this one: ``PYTHONPATH=.:test python -m nets.make``, with PyTorch, onnxscript and Brevitas.

Those of Keras nets, ``tf2onnx.zip``, are made by ``lce/make.py``.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from lce.make import pictures

from nets.architectures import EXPORTERS, NETS, SIDE, answers, export, settled, with_brevitas
from nets.stored import PICTURES, add

#: Brevitas has its own way to write a gradient.
NOT_WITH_BREVITAS = ("IR-Net, straight through",)


def make() -> None:
    """Write all files."""
    x = torch.from_numpy(pictures(PICTURES, SIDE)).permute(0, 3, 1, 2).float() / 255
    logits: dict[str, np.ndarray] = {}
    files: dict[str, dict[str, bytes]] = {exporter: {} for exporter in EXPORTERS}
    for name, build in NETS.items():
        for exporter in EXPORTERS:
            if exporter == "qonnx" and name in NOT_WITH_BREVITAS:
                continue
            torch.manual_seed(1)
            net = settled(with_brevitas(build()) if exporter == "qonnx" else build(), x)
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporters, about themselves
                path = Path(folder) / "net.onnx"
                export(net, path, exporter)
                files[exporter][name] = path.read_bytes()
                logits[f"{exporter}/{name}"] = answers(net, x)
            print(exporter, name, len(files[exporter][name]), flush=True)
    for exporter, nets in files.items():
        add(exporter, nets, {name: logits[f"{exporter}/{name}"] for name in nets})


if __name__ == "__main__":
    make()
