"""Imports the architectures of larq-zoo, with random weights, and compares them with Larq Compute Engine.

    PYTHONPATH=test python -m lce.zoo make FOLDER [NAME ...]   # in the environment of make.py: files and answers
    PYTHONPATH=.:test python -m lce.zoo compare FOLDER         # in that of the project

The trained weights of the zoo lie on a server; what is compared here is the reading of the files.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

#: Pictures that are compared, of 224x224.
COUNT = 16
NAMES = (
    "BiRealNet",
    "BinaryResNetE18",
    "BinaryDenseNet28",
    "MeliusNet22",
    "QuickNetSmall",
    "QuickNet",
    "QuickNetLarge",
    "BinaryAlexNet",
    "XNORNet",
    "RealToBinaryNet",
    "DoReFaNet",
)


def make(folder: Path, names: list[str]) -> None:
    """Convert each net and let the engine answer."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tf_keras as keras
    from tf_keras.src.applications import imagenet_utils

    sys.modules["keras.applications.imagenet_utils"] = imagenet_utils  # larq-zoo takes that of Keras 2
    import larq
    import larq_compute_engine as lce
    import larq_zoo as zoo
    from larq_compute_engine.tflite.python.interpreter import Interpreter
    from lce.make import pictures

    plain = larq.quantizers.get

    def instance(identifier: Any) -> Any:
        """What larq 0.12 means by the name of a quantizer; with today's Keras it gets the class."""
        found = plain(identifier)
        return found() if isinstance(found, type) else found

    larq.quantizers.get = instance
    folder.mkdir(parents=True, exist_ok=True)
    x = pictures(COUNT, 224).astype(np.float32) / np.float32(127.5) - 1
    rng = np.random.default_rng(0)
    for name in names or NAMES:
        keras.utils.set_random_seed(3)
        family = zoo.sota if name.startswith("QuickNet") else zoo.literature
        net = getattr(family, name)(weights=None)
        for layer in net.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
                values = layer.get_weights()
                if layer.scale:
                    values[0] = rng.uniform(0.5, 1.5, values[0].shape)
                layer.set_weights(values)
        net(x, training=True)
        content = lce.convert_keras_model(net)
        (folder / f"{name}.tflite").write_bytes(content)
        interpreter = Interpreter(content, num_threads=2)
        np.save(folder / f"{name}.npy", np.asarray(interpreter.predict(x), np.float32))
        print(name, len(content), flush=True)


def compare(folder: Path) -> None:
    """Import each file, and print on how many pictures the class is the engine's."""
    from lce.make import pictures

    from bnn_perception.backends.cpu.binary import CpuBinaryBackend
    from bnn_perception.frames.frame import Frame
    from bnn_perception.importers import ImporterError, read
    from bnn_perception.importers.fold.builder import PixelRange

    frames = [Frame(picture) for picture in pictures(COUNT, 224)]
    for path in sorted(folder.glob("*.tflite")):
        began = time.perf_counter()
        try:
            model = read(path, PixelRange.of(-1.0, 1.0))
        except ImporterError as error:
            print(f"{path.stem}: refused: {error}")
            continue
        seconds = time.perf_counter() - began
        backend = CpuBinaryBackend(model, 2)
        mine, theirs = backend.logits(frames), np.load(path.with_suffix(".npy"))
        backend.close()
        same = int((mine.argmax(axis=1) == theirs.argmax(axis=1)).sum())
        print(f"{path.stem}: {same} of {len(frames)}, imported in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3:])
    else:
        compare(Path(sys.argv[2]))
