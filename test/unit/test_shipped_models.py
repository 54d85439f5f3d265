"""The models that ship: the fast engine equals the definition on them, and they reach what their descriptions state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnn_perception.backends import make_backend
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.evaluation.evaluate import evaluate
from bnn_perception.frames.dataset import read_dataset
from bnn_perception.frames.frame import Frame
from bnn_perception.net.folder import load_model
from bnn_perception.resources import resource_folder

FOLDERS = sorted(path for path in resource_folder("models").iterdir() if path.is_dir())

shipped = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@shipped
def test_binary_engine_gives_the_reference_logits(folder: Path) -> None:
    model = load_model(folder)
    rng = np.random.default_rng(5)
    frames = [
        Frame(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)),
        Frame(np.full((64, 64, 3), 255, np.uint8)),
    ]
    backend = make_backend(model, "binary", "cpu")
    np.testing.assert_array_equal(backend.logits(frames), ReferenceBackend(model).logits(frames))
    backend.close()


@shipped
def test_accuracy_is_what_the_description_states(folder: Path, data) -> None:
    model = load_model(folder)
    stated = model.info["accuracy"]
    path = next(word for word in stated["command"].split() if word.startswith("DATA/")).removeprefix("DATA/")
    inner = Path(path)
    archive = next((part for part in inner.parents if part.suffix == ".tar"), inner)
    dataset = read_dataset(data(str(archive)) / inner.relative_to(archive), model.labels)
    backend = make_backend(model, "binary", "cpu")
    evaluation = evaluate(model, backend, dataset)
    backend.close()
    assert len(evaluation.truth) == stated["images"]
    assert round(evaluation.accuracy, 6) == stated["binary"]
