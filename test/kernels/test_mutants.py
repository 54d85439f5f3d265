"""The tests of the kernels can fail: each of these changes to the sources is noticed, in each mode that claims it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from host_module import LaunchError
from launches import check_layer
from layer_cases import DENSE, MMA, SCALED, SIGNALS, conv

from bnn_perception.backends.cuda import specs
from bnn_perception.net.layer import Layer, Pool, Shape


class Mutant(NamedTuple):
    """A change to a source, the layer that it is tried on, and what each mode says of it.

    In the mode ``apart`` the result is compared with the reference, in two orders of threads; the others give a report.
    """

    layer: Layer
    shape: Shape
    old: str
    new: str
    reports: dict[str, str | None]
    launch: Mapping[str, Any] = MappingProxyType({})


POOLED = conv((9, 8, 40), 70, pool=Pool(2, 2))
STAGED = conv((6, 6, 4096), 32, pool=Pool(5, 5))
ODD = conv((7, 7, 40), 33)
WRONG = {"apart": None, "asan": None, "tsan": None}

MUTANTS = {
    "no barrier after staging": Mutant(
        *POOLED,
        "          __syncthreads();\n          if (inside)",
        "          if (inside)",
        {"apart": None, "tsan": "data race"},
    ),
    "no barrier before the next stage": Mutant(
        *STAGED,
        "if (!one_stage) __syncthreads();",
        "if (!one_stage && THREADS == 0) __syncthreads();",
        {"apart": None, "tsan": "data race"},
    ),
    "padding by +1": Mutant(*POOLED, "* IN_WORDS + word) : 0;", "* IN_WORDS + word) : ~0u;", WRONG),
    "one row too many": Mutant(
        *ODD, "row < IN_HEIGHT", "row <= IN_HEIGHT", {"apart": None, "asan": "heap-buffer-overflow"}
    ),
    "one row too few": Mutant(*POOLED, "row >= 0", "row >= 1", WRONG),
    "a word that is not staged": Mutant(
        *POOLED,
        "i < TILE_IN_ROWS * TILE_IN_COLUMNS * stage_words;",
        "i < TILE_IN_ROWS * TILE_IN_COLUMNS * stage_words - 1;",
        {"apart": None},
        {"tile": specs.ConvTile(patch=2, rows=4, patches=2, filters=1, positions=2, chunk_words=1)},
    ),
    "vectors that are not aligned": Mutant(
        *ODD,
        "constexpr int vector = vector_words(",
        "constexpr int vector = 4 + 0 * (",
        {"asan": "misaligned address"},
        {"tile": specs.ConvTile(patch=2, patches=2)},
    ),
    "a store past the row": Mutant(
        *POOLED,
        "lane < PATCH && out_x + lane < OUT_WIDTH) {",
        "lane < WARP) {",
        {"apart": None, "asan": "heap-buffer-overflow", "tsan": "data race"},
    ),
    "a tile past its end": Mutant(
        *POOLED,
        "#define TILE_WORDS (TILE_IN_ROWS * TILE_PITCH)",
        "#define TILE_WORDS ((TILE_IN_ROWS - 1) * TILE_PITCH)",
        {"asan": "insufficient space"},
    ),
    "no flip": Mutant(*POOLED, "word ^ __ldg(flip + filter_word)", "word", WRONG),
    "a signal of filters that do not exist": Mutant(
        *SCALED["24 -> 48"],
        "out_x + i < OUT_WIDTH && channel < OUT_CHANNELS",
        "out_x + i < OUT_WIDTH",
        {"apart": None, "asan": "heap-buffer-overflow"},
    ),
    "sums that lack what their levels do": Mutant(
        *SCALED["stem"], "largest[i] + lacking", "largest[i] + 0 * lacking", {"apart": None}
    ),
    "the signal of the first frame alone": Mutant(
        *SCALED["24 -> 48"],
        "(static_cast<size_t>(blockIdx.z) * OUT_PIXELS + pixel) * OUT_CHANNELS",
        "(0 * static_cast<size_t>(blockIdx.z) + pixel) * OUT_CHANNELS",
        {"apart": None},
        {"frames": 2},
    ),
    "a scale that is fused with its bias": Mutant(
        *SIGNALS["affine"],
        "__fadd_rn(__fmul_rn(__ldg(row), x), __ldg(row + LANES))",
        "static_cast<float>(static_cast<double>(__ldg(row)) * x + __ldg(row + LANES))",
        {"apart": None},
    ),
    "a digit of another weight": Mutant(
        *SIGNALS["real stem"], "256ll * sums[1][i]", "255ll * sums[1][i]", {"apart": None}
    ),
    "a pixel outside that counts": Mutant(
        *SIGNALS["real stem"], ": 0u) ^ 0x80808080u", ": 1u) ^ 0x80808080u", {"apart": None}
    ),
    "a slope at 0 and above": Mutant(*SIGNALS["prelu"], "x >= 0.0f ? x", "x < 0.0f ? x", {"apart": None}),
    "channels of another group": Mutant(
        *SIGNALS["grouped"],
        "channel / GROUP_FILTERS",
        "channel % GROUP_FILTERS / GROUP_FILTERS",
        {"apart": None},
    ),
    "a window past the edge": Mutant(
        *SIGNALS["average"],
        "min(left + KERNEL_X, IN_WIDTH)",
        "left + KERNEL_X",
        {"apart": None},
    ),
    "words of another row": Mutant(*SIGNALS["bits"], "max(top, 0)", "max(top, 1)", {"apart": None}),
    "zeros that are not written": Mutant(
        *SIGNALS["zeros"],
        "number % WRITTEN + (ZEROS ? 0 : FIRST)",
        "number % WRITTEN + FIRST",
        {"apart": None},
    ),
    "a row that does not exist": Mutant(
        *DENSE["wide logits"],
        "min(first_output + output_of_block, OUT_FEATURES - 1)",
        "first_output + output_of_block",
        {"asan": "heap-buffer-overflow"},
        {"tile": specs.DenseTile(8, 32)},
    ),
    "words past a row": Mutant(
        *DENSE["wide logits"],
        "#define EXISTS(i) (",
        "#define EXISTS(i) (true || ",
        {"apart": None, "asan": "heap-buffer-overflow"},
        {"tile": specs.DenseTile(8, 32)},
    ),
    "the counts of one warp alone": Mutant(
        *DENSE["paper 1"], "part < PARTS", "part < 1", {"apart": None}, {"tile": specs.DenseTile(8, 64)}
    ),
    "bits of another byte": Mutant(
        *DENSE["paper 1"],
        "(OUT_WORDS * WARP / OUTPUTS) + blockIdx.x",
        "(OUT_WORDS * WARP / OUTPUTS) + (blockIdx.x ^ 1)",
        {"apart": None},
    ),
    "no barrier before the sums": Mutant(
        *DENSE["wide logits"],
        "= count;\n  }\n  __syncthreads();",
        "= count;\n  }",
        {"apart": None, "tsan": "data race"},
        {"tile": specs.DenseTile(8, 32)},
    ),
    "a product that is fused": Mutant(
        *DENSE["wide logits"],
        "__fadd_rn(__fmul_rn(__int2float_rn(dot), feature_scale), feature_bias)",
        "__builtin_fmaf(__int2float_rn(dot), feature_scale, feature_bias)",
        {"apart": None},
    ),
    "rows and words of a fragment exchanged": Mutant(
        *MMA["no pool"][:2],
        "used0 ? windows[m][1][offset0] : 0,",
        "used0 ? windows[m][0][offset1] : 0,",
        WRONG,
        {"tile": MMA["no pool"][2]},
    ),
}
CASES = [(name, mode) for name, mutant in MUTANTS.items() for mode in mutant.reports]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_mutant_is_noticed(name: str, mode: str) -> None:
    mutant = MUTANTS[name]

    def change(source: str) -> str:
        assert source.count(mutant.old) == 1, f"{mutant.old!r} is not in the source once"
        return source.replace(mutant.old, mutant.new)

    def check() -> None:
        for seed in (0, 1):
            check_layer(mutant.layer, mutant.shape, mode=mode, seed=seed, change=change, **mutant.launch)

    report = mutant.reports[mode]
    if report is None:
        with pytest.raises((AssertionError, LaunchError)) as caught:
            check()
        assert "g++ refused" not in str(caught.value)
    else:
        with pytest.raises(LaunchError, match=report):
            check()
