"""Finds the files that come with the package: models, kernels, configuration."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = "bnn_perception"


def resource_folder(kind: str) -> Path:
    """The folder of ``models``, ``kernels``, ``config`` or ``launch`` files.

    Beside the checkout first, so that an edit there counts at once; otherwise ``share/bnn_perception`` of the
    prefix that the package is installed under (pip, a virtual environment, colcon).

    Raises:
        FileNotFoundError: naming where it was looked for.
    """
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "package.xml").is_file():
        return checkout / kind
    for prefix in package.parents:
        folder = prefix / "share" / PACKAGE / kind
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no share/{PACKAGE}/{kind} above {package}; install the package again")


def find_model(name: str | os.PathLike[str]) -> Path:
    """The folder of a model: a path as it is, otherwise the name of a model that comes with the package.

    A folder that does not exist, or cannot, is returned as well, for :func:`bnn_perception.net.folder.load_model` to
    name: one of a user whom there is not, one with a name that no file can have.
    """
    # Not those of Path, which raise over such a user or name.
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path) or len(path.parts) != 1:
        return path
    shipped = resource_folder("models") / path
    return shipped if os.path.isdir(shipped) else path
