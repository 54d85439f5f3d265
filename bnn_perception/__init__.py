"""Camera frames in, class labels out, through a binarized convolutional network.

From the name of a model to the label of an image::

    import bnn_perception

    with bnn_perception.load_classifier("road_signs") as classifier:
        image = bnn_perception.read_image("photo.jpg")
        for prediction in classifier.predict(image, top_k=3):
            print(prediction.label, prediction.score)

The names below are the package's public face; everything else may move. A name is imported when it is first used,
so that ``import bnn_perception`` costs milliseconds and needs none of the optional packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnn_perception.backends import Backend, BackendError, make_backend
    from bnn_perception.classifier import Classifier, Prediction
    from bnn_perception.errors import Error
    from bnn_perception.frames.frame import Frame
    from bnn_perception.frames.images import ImageError, find_images, read_image
    from bnn_perception.net.checks import ModelError
    from bnn_perception.net.folder import load_model, save_model
    from bnn_perception.net.model import InputSpec, Model
    from bnn_perception.resources import find_model

    __version__: str

__all__ = [
    "Backend",
    "BackendError",
    "Classifier",
    "Error",
    "Frame",
    "ImageError",
    "InputSpec",
    "Model",
    "ModelError",
    "Prediction",
    "__version__",
    "find_images",
    "find_model",
    "load_classifier",
    "load_model",
    "make_backend",
    "read_image",
    "save_model",
]

#: The module that each name comes from.
_HOMES = {
    "Backend": "backends",
    "BackendError": "backends",
    "Classifier": "classifier",
    "Error": "errors",
    "Frame": "frames.frame",
    "ImageError": "frames.images",
    "InputSpec": "net.model",
    "Model": "net.model",
    "ModelError": "net.checks",
    "Prediction": "classifier",
    "find_images": "frames.images",
    "find_model": "resources",
    "load_model": "net.folder",
    "make_backend": "backends",
    "read_image": "frames.images",
    "save_model": "net.folder",
}


def load_classifier(
    model: str = "road_signs", backend: str = "binary", device: str = "auto", threads: int = 0
) -> Classifier:
    """Load a model and make the backend that evaluates it.

    Args:
        model: a model folder, or the name of a model that comes with the package.
        backend: ``binary``, ``float`` (the float twin) or ``reference``.
        device: ``cuda``, ``cpu``, or ``auto``: the GPU where there is a usable one, otherwise the CPU.
        threads: of the CPU backends; 0 takes as many as pay off.

    Returns:
        A classifier; close it, or use it in a ``with`` statement.

    Raises:
        ModelError: where the model cannot be used.
        BackendError: where the backend cannot be made, with the remedy.
    """
    from bnn_perception.backends import make_backend
    from bnn_perception.classifier import Classifier
    from bnn_perception.net.folder import load_model
    from bnn_perception.resources import find_model

    loaded = load_model(find_model(model))
    return Classifier(loaded, make_backend(loaded, backend, device, threads))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The version in ``package.xml`` of a checkout, otherwise that of the installed package."""
    from pathlib import Path
    from xml.etree import ElementTree

    manifest = Path(__file__).resolve().parents[1] / "package.xml"
    if manifest.is_file():
        return ElementTree.parse(manifest).findtext("version") or ""
    from importlib.metadata import version

    return version(__name__)
