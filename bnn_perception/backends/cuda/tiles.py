"""The table of measured tiles: which one a layer runs with, by kind of SM and by shape.

::

    87:                                             # compute capability times ten
      bconv2d_popc 48x48x32 -> 32, 5x5/1x1+2x2 pool 2/2: {patch: 4, rows: 4, ...}

A layer that is not in the table takes the best guess of :mod:`.specs`. The benchmark's tuner
measures the others and writes the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from bnn_perception.backends.cuda.specs import (
    CONV_KERNELS,
    ConvTile,
    DenseTile,
    MmaTile,
    Target,
    Tile,
    Tiled,
    best_tile,
    convolution,
    dense,
    tile_fields,
)
from bnn_perception.errors import one_line
from bnn_perception.net.layer import Shape
from bnn_perception.net.layers import Conv2d
from bnn_perception.net.signals import Scaled
from bnn_perception.resources import resource_folder

#: The name of a table: of one beside the other configuration, where a robot's maker puts it, and of the user's own.
SHIPPED = "cuda_tiles.yaml"


def user_table() -> Path:
    """Where the tuner writes its table; what stands there goes before what ships."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bnn_perception" / SHIPPED


def shape_key(layer: Tiled, shape: Shape) -> str:
    """Names a layer by what its kernel's time depends on."""
    if not isinstance(layer, Conv2d):
        return f"dense {layer.weights.shape[1]} words -> {layer.out_features}"
    kernel = CONV_KERNELS[type(layer)].name
    pool = f" pool {layer.pool.size}/{layer.pool.stride}" if layer.pool else ""
    (ky, kx), (sy, sx), padding = layer.kernel, layer.stride, "x".join(map(str, layer.padding))
    height, width, channels = shape
    key = f"{kernel} {height}x{width}x{channels} -> {layer.out_channels}, {ky}x{kx}/{sy}x{sx}+{padding}{pool}"
    return f"{key} signal" if isinstance(layer, Scaled) else key


class TileTable:
    """Measured tiles by SM and shape."""

    def __init__(self, entries: Mapping[int, Mapping[str, Tile]] | None = None) -> None:
        self._entries = {sm: dict(tiles) for sm, tiles in (entries or {}).items()}

    @classmethod
    def load(cls, *paths: Path) -> TileTable:
        """Read tables; what a later one says replaces what an earlier one said. A missing file says nothing.

        Args:
            paths: YAML files; by default the one that ships and the user's.

        Raises:
            ValueError: naming the file and the entry.
        """
        table = cls()
        for path in paths or (resource_folder("config") / SHIPPED, user_table()):
            if path.is_file():
                for sm, tiles in _read(path).items():
                    table._entries.setdefault(sm, {}).update(tiles)
        return table

    def tile(self, layer: Tiled, shape: Shape, target: Target) -> Tile:
        """The tile of a layer: the measured one, or else the best guess.

        Raises:
            ValueError: where the measured tile does not fit the layer.
        """
        tile = self._entries.get(target.sm, {}).get(shape_key(layer, shape))
        if tile is None:
            return best_tile(layer, shape, target)
        if isinstance(layer, Conv2d) == isinstance(tile, DenseTile):
            raise ValueError(f"{layer.name}: {tile} in the table of tiles is not for this kind of layer")
        if isinstance(layer, Conv2d) and not isinstance(tile, DenseTile):
            convolution(layer, shape, tile, frames=1)
        if not isinstance(layer, Conv2d) and isinstance(tile, DenseTile):
            dense(layer, tile, frames=1)
        return tile

    def set(self, layer: Tiled, shape: Shape, target: Target, tile: Tile) -> None:
        """Enter a measured tile."""
        self._entries.setdefault(target.sm, {})[shape_key(layer, shape)] = tile

    def save(self, path: Path) -> None:
        """Write the table, for :meth:`load` to read."""
        text = {
            sm: {key: tile_fields(tile) for key, tile in tiles.items()}
            for sm, tiles in sorted(self._entries.items())
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            yaml.safe_dump(text, sort_keys=False, default_flow_style=None, width=160), encoding="utf-8"
        )


def _read(path: Path) -> dict[int, dict[str, Tile]]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(table, dict):
            raise ValueError("it is not a mapping of compute capabilities")
        return {
            _sm(sm): {str(key): _tile(key, tile) for key, tile in dict(tiles).items()}
            for sm, tiles in table.items()
        }
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"table of tiles {path}: {one_line(error)}; delete it or tune again") from None


def _sm(sm: Any) -> int:
    if not isinstance(sm, int):
        raise ValueError(f"{sm!r} is not a compute capability times ten, such as 87")
    return sm


def _tile(key: str, values: Any) -> Tile:
    known: dict[frozenset[str], type[Tile]] = {
        frozenset(f.name for f in fields(cls)): cls for cls in (ConvTile, MmaTile, DenseTile)
    }
    cls = known.get(frozenset(values)) if isinstance(values, dict) else None
    if cls is None or not all(isinstance(value, int) and 0 < value <= 128 for value in values.values()):
        raise ValueError(f"'{key}': {values!r} is not a tile")
    return cls(**values)
