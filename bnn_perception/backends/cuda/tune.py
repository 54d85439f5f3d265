"""``benchmark --tune``: measures which tile suits each layer on this GPU, for the table that the node reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from bnn_perception.backends.cuda.binary import CudaBinaryBackend
from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.specs import Target, Tile, Tiled, is_tiled, tiles_of
from bnn_perception.backends.cuda.tiles import TileTable, shape_key
from bnn_perception.backends.cuda.timing import time_kernels
from bnn_perception.backends.protocol import BackendError
from bnn_perception.errors import CommandError
from bnn_perception.frames.frame import Frame
from bnn_perception.net.layer import Shape
from bnn_perception.net.model import Model, iter_layers

#: Tiles of a layer that are tried, the best guesses; each is compiled, which takes most of the time.
CANDIDATES = 24


def tune(models: Sequence[Model], path: Path, candidates: int = CANDIDATES) -> None:
    """Try tiles for every layer of ``models``, one frame at a time, and write the best to ``path``.

    Entries of the table for other layers and other GPUs stay as they are. A candidate counts only where its net gives
    the logits that the first one gives.

    Raises:
        CommandError: where not even the best guess runs.
        BackendError: where there is no usable GPU.
    """
    target = Gpu().target
    table = TileTable.load(path)
    done: set[str] = set()
    for model in models:
        layers = _layers(model, target, done, candidates)  # a shape that two nets have is measured once
        times = _measure(model, layers, target)
        for name, (layer, shape, tiles) in layers.items():
            best = min(times[name], key=lambda index: times[name][index])
            first, found = times[name][0], times[name][best]
            table.set(layer, shape, target, tiles[best])
            print(
                f"{shape_key(layer, shape)}: {first:.2f} -> {found:.2f} µs, {len(times[name])} tiles, {tiles[best]}"
            )
    table.save(path)
    print(f"table of tiles: {path}")


_Layers = dict[str, "tuple[Tiled, Shape, list[Tile]]"]


def _layers(model: Model, target: Target, done: set[str], candidates: int) -> _Layers:
    """Layers that have tiles and whose shape is not in ``done``, where it is entered, with their candidates."""
    found: _Layers = {}
    for layer, shape, *_ in iter_layers(model):
        if is_tiled(layer) and shape_key(layer, shape) not in done:
            done.add(shape_key(layer, shape))
            found[layer.name] = (layer, shape, list(islice(tiles_of(layer, shape, target), candidates)))
    return found


def _measure(model: Model, layers: _Layers, target: Target) -> dict[str, dict[int, float]]:
    """Microseconds of each layer by the index of its tile. One net has the n-th tile of every layer."""
    rng = np.random.default_rng(0)
    encoding = "rgb8" if model.input.channels == 3 else "mono8"
    frames = [Frame(rng.integers(0, 256, model.input.shape, dtype=np.uint8), encoding)]
    times: dict[str, dict[int, float]] = {name: {} for name in layers}
    expected = None
    for index in range(max((len(tiles) for _, _, tiles in layers.values()), default=0)):
        table = TileTable()
        for layer, shape, tiles in layers.values():
            table.set(layer, shape, target, tiles[min(index, len(tiles) - 1)])
        try:
            backend = CudaBinaryBackend(model, table)
            logits = backend.logits(frames)
            measured = {launch.layer: timing.median for launch, timing in time_kernels(backend, frames)}
            backend.close()
        except BackendError as error:
            if index == 0:
                raise CommandError(f"{model.name}: {error}") from None
            print(f"{model.name}: candidate {index} left out: {error}")
            continue
        if expected is None:
            expected = logits
        elif not np.array_equal(logits, expected):
            print(f"{model.name}: candidate {index} left out: its logits are wrong")
            continue
        for name, (_, _, tiles) in layers.items():
            if index < len(tiles):
                times[name][index] = measured[name]
    return times
