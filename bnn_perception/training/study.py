"""A study: one configuration, several variants of it, several seeds, one table.

A configuration file may end with a section that :func:`bnn_perception.training.config.load_config` passes over::

    study:
      title: What distillation is worth
      text: Said above the table.
      seeds: [1, 2, 3]
      baseline: as configured
      variants:
        as configured: {}
        without distillation: {binary: {distillation: 0}}

A variant is merged into the configuration: mappings field by field, everything else as a whole. It may have
``seeds`` of its own. ``baseline`` names the variant that the others are compared with; it may be left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnn_perception.training import config as configs
from bnn_perception.training.config import Config, ConfigError


@dataclass(frozen=True)
class Run:
    """One training run of a study.

    Attributes:
        variant: name of the variant, as in the file.
        config: complete, with the seed.
    """

    variant: str
    config: Config

    @property
    def folder(self) -> str:
        """Name of the folder of the run, free of spaces."""
        return f"{self.variant.replace(' ', '_')}-{self.config.seed}"


@dataclass(frozen=True)
class Study:
    """What a file says of its study.

    Attributes:
        name: the file's name, without its extension.
        title, text: what the page with the results says above them.
        baseline: the variant that the others are compared with, or None.
        runs: all runs, those of the lowest seed first.
    """

    name: str
    title: str
    text: str
    baseline: str | None
    runs: list[Run]


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read and check a study.

    Raises:
        ConfigError: naming the file, the variant, the field and what is wrong with it.
    """
    content = configs.read_yaml(path)
    study = content.pop("study", None)
    required = {"title", "text", "seeds", "variants"}
    if not isinstance(study, Mapping) or set(study) - {"baseline"} != required:
        raise ConfigError(f"{path}: study: must have {', '.join(sorted(required))}, and may have baseline")
    if not isinstance(study["variants"], Mapping) or not study["variants"]:
        raise ConfigError(
            f"{path}: study.variants: must be a mapping of names to changes of the configuration"
        )
    runs: list[Run] = []
    for name, changes in study["variants"].items():
        where = f"{path}: study.variants.{name}"
        if not isinstance(name, str) or "/" in name or not isinstance(changes, Mapping):
            raise ConfigError(f"{where}: must be a name without / and a mapping of changes")
        seeds = changes.get("seeds", study["seeds"])
        whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
        if not whole or not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(f"{where}: seeds must be a list of different whole numbers, one or more")
        try:
            values = merged(content, {key: value for key, value in changes.items() if key != "seeds"})
            config = configs.from_mapping(values, default_name=Path(path).stem)
            of_variant = [Run(name, configs.override(config, seed=seed)) for seed in seeds]
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        twice = {run.folder for run in runs} & {run.folder for run in of_variant}
        if twice:
            raise ConfigError(f"{where}: its runs and those of another variant share the folder {min(twice)}")
        runs += of_variant
    baseline = study.get("baseline")
    if baseline is not None and baseline not in study["variants"]:
        raise ConfigError(f"{path}: study.baseline is '{baseline}'; it must be one of the variants")
    runs.sort(key=lambda run: run.config.seed)
    return Study(Path(path).stem, str(study["title"]), str(study["text"]), baseline, runs)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` in place: mappings are merged field by field, everything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def float_key(config: Config) -> str:
    """A key of everything that the float twin of a run depends on: runs with equal keys have the same twin."""
    values = configs.to_mapping(config)
    for name in ("name", "description", "threads", *configs.STAGES[1:]):
        del values[name]
    twin_network = [layer for layer in config.network.layers if layer.in_twin]
    values["network"] = [vars(layer) for layer in twin_network]
    return json.dumps(values, sort_keys=True)
