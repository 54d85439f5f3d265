"""Every kernel compiles for every SM, without spills, within the registers that its spec states.

python -m pytest test/kernels/test_nvrtc_matrix.py -s      prints the table
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import models
import numpy as np
import pytest
from layer_cases import CONVOLUTIONS, DENSE, MMA, paper_model, scaled, thermometer_model

from benchmark.gpu import nvrtc
from bnn_perception.backends.cuda import network, specs
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.specs import KernelSpec, Target
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.layers import Conv2d
from bnn_perception.net.signals import Add, Affine, PRelu

#: Every SM with the oldest CUDA that compiles for it, Orin and H100 with the newest as well.
CASES = [(sm.cuda[0], number) for number, sm in specs.SMS.items()] + [(13, 87), (13, 90)]


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel."""

    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


def usage_of(major: int, spec: KernelSpec, sm: int) -> Usage:
    """Compile a kernel with the NVRTC of a major version of CUDA."""
    options = ("--ptxas-options=-v", *spec.options)
    _, log = nvrtc.compile_with_log(nvrtc.libraries()[major], kernel_source(spec.kernel), options, sm)

    def number(pattern: str) -> int:
        return sum(int(found) for found in re.findall(pattern, log))

    registers = number(r"Used (\d+) registers")
    assert registers > 0, log
    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Usage(registers, number(r"(\d+) bytes smem"), spills, number(r"(\d+) bytes stack frame"))


def need(major: int) -> None:
    """Skip where the NVRTC of a major version of CUDA is missing."""
    if major not in nvrtc.libraries():
        pytest.skip(f"NVRTC of CUDA {major} is not installed; pip install '.[test]' brings it")


def kernels(target: Target) -> list[tuple[str, KernelSpec]]:
    """The kernels of the nets that the project names, with the tiles of the target, and those of unusual layers."""
    found = []
    nets = {
        "paper": paper_model(),
        "road signs": models.road_sign_model(np.random.default_rng(1)),
        "thermometer": thermometer_model(),
        "signals": models.residual_model(np.random.default_rng(2)),
        "residual": models.scaled_stem_model(np.random.default_rng(3)),
    }
    for net, model in nets.items():
        for step in network.network(model, target, TileTable()):
            found.append((f"{net} {step.name}", step.spec(1)))
            if step.spec(1).kernel == "dense":
                found.append((f"{net} {step.name}, 4 frames", step.spec(4)))
    for name in (
        "kernel of 11",
        "pool 3/2",
        "33 words",
        "large pool, several stages",
        "input, grey, strided",
        "input, signed",
        "pooled, padded with 0",
        "padded on two sides",
        "stem",
    ):
        layer, shape = CONVOLUTIONS[name]
        tile = specs.conv_tiles(layer, shape, target)[0]
        found.append((name, specs.conv2d(layer, shape, tile, 1)))
    if target.sm in specs.MMA_SMS:
        found += [
            (f"{name}, tensor cores", specs.convolution(*case, frames=1))  # layer, shape, tile
            for name, case in MMA.items()
        ]
    bits_layer: Layer = DENSE["bits as logits"][0]
    found.append(("bits as logits", specs.dense(bits_layer, specs.dense_tiles(bits_layer, target)[0], 1)))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(("major", "sm"), CASES, ids=[f"sm_{sm} CUDA {major}" for major, sm in CASES])
def test_every_kernel_compiles_without_spills(major: int, sm: int) -> None:
    need(major)
    done: set[tuple[str, tuple[str, ...]]] = set()
    print(
        f"\nsm_{sm}, NVRTC of CUDA {major}\n{'kernel':14} {'layer':34} {'threads':>7} {'registers':>9} {'shared':>7}"
    )
    for name, spec in kernels(Target(sm, specs.SMS[sm].multiprocessors)):
        if (spec.kernel, spec.options) in done:
            continue
        done.add((spec.kernel, spec.options))
        usage = usage_of(major, spec, sm)
        print(f"{spec.kernel:14} {name:34} {spec.block[0]:7} {usage.registers:9} {usage.shared_bytes:7}")
        assert usage.spill_bytes == usage.stack_bytes == 0, name
        assert usage.registers <= spec.max_registers, name
        # sm_90 and later set 1 KiB of shared memory aside for each block, which ptxas counts in from CUDA 13 on.
        assert spec.shared_bytes <= usage.shared_bytes <= spec.shared_bytes + 1024 + 16, name


def test_extreme_tiles_keep_within_their_registers() -> None:
    """A tuner may pick any tile: those with the most sums and the longest lines are compiled for one SM."""
    need(12)
    target = Target(87, 16)
    cases: list[tuple[Conv2d, Shape]] = [
        CONVOLUTIONS[name] for name in ("paper", "CNV", "road signs 3", "input, paper")
    ]
    cases.append(scaled((32, 32, 64), 64, pool=Pool(2, 2)))
    whole = specs.Epilogue((Affine, PRelu, Affine, Add, Affine, PRelu, Affine), signal=True, sign=True)
    for layer, shape in cases:
        tiles = specs.conv_tiles(layer, shape, target)
        for tile in {
            max(tiles, key=lambda t: (t.patch * t.positions, t.chunk_words)),
            max(tiles, key=lambda t: (t.chunk_words, t.patch)),
        }:
            spec = specs.conv2d(layer, shape, tile, 1, whole)
            usage = usage_of(12, spec, 87)
            assert usage.spill_bytes == 0, tile
            assert usage.registers <= spec.max_registers, (tile, usage)
