"""Bounds what a parameter request can make the node read: the folders of models below one folder."""

from __future__ import annotations

import os
from pathlib import Path

from bnn_perception.errors import shown
from bnn_perception.net.checks import ModelError
from bnn_perception.resources import find_model, resource_folder


def model_folder(name: str, root: str) -> Path:
    """The folder of the model that a parameter names.

    Args:
        name: a path, or the name of a model that comes with the package.
        root: the folder below which it must lie, links followed; relative paths begin there. Models that come with the
            package may be named all the same. Empty takes any.

    Raises:
        ModelError: where it lies elsewhere.
    """
    if not root:
        return find_model(name)
    bound = os.path.realpath(os.path.expanduser(root))
    real = os.path.realpath(os.path.join(bound, os.path.expanduser(name)))
    if not os.path.isdir(real) and os.path.basename(name) == name and name not in (os.curdir, os.pardir):
        shipped = resource_folder("models") / name
        if shipped.is_dir():
            return shipped
    if real != bound and os.path.commonpath([bound, real]) != bound:
        raise ModelError(f"model '{shown(name)}' does not lie in model_root, {shown(bound)}")
    return Path(real)
