"""The float twin's kernels, run on the host, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import host_module
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from test_nvrtc_matrix import need, usage_of

from bnn_perception.backends.cuda import float_specs
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.importers.onnx.float_twin import Stage
from bnn_perception.net.layer import Pool

pytestmark = pytest.mark.skipif(host_module.why_not() is not None, reason=str(host_module.why_not()))


def make_stage(
    rng: np.random.Generator,
    input_shape: tuple[int, int, int],
    out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    pool: Pool | None = None,
    bounds: tuple[float, float] = (0.0, np.inf),
) -> Stage:
    weights = rng.normal(0, 0.3, (out, *kernel, input_shape[2])).astype(np.float32)
    scale, shift = rng.normal(0, 1, (2, out)).astype(np.float32)
    return Stage("s", input_shape, weights, stride, padding, pool, scale, shift, *bounds)


def rows(stage: Stage, x: NDArray) -> NDArray:
    """im2col: (height, width, channels) -> (conv height, conv width, taps, channels)."""
    top, left, bottom, right = stage.padding
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    windows = sliding_window_view(padded, stage.kernel, axis=(0, 1))[:: stage.stride[0], :: stage.stride[1]]
    return windows.transpose(0, 1, 3, 4, 2).reshape(*windows.shape[:2], -1, x.shape[2])


def element(half: bool) -> type:
    return np.float16 if half else np.float32


def test_half_precision_of_the_host_is_numpys() -> None:
    """Every half there is, and floats on both sides of every rounding boundary."""
    source = """
    #include "float_on_host.h"
    extern "C" __global__ void convert(const unsigned short* in, float* out, const float* from, unsigned short* to,
                                       int n) {
      const int i = blockIdx.x * 256 + threadIdx.x;
      if (i < 65536) out[i] = half_to_float(in[i]);
      if (i < n) to[i] = float_to_half(from[i]);
    }
    """
    halves = np.arange(65536, dtype=np.uint16)
    finite = halves[:0x7C00].view(np.float16).astype(np.float32)
    middles = (finite[1:] + finite[:-1]) / 2
    floats = np.concatenate(
        [middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(9e9))]
    )
    floats = np.concatenate([floats, -floats, np.float32([65519.9, 65520, 1e30, np.inf, -np.inf, 0, -0.0])])
    as_float, as_half = np.zeros(65536, np.float32), np.zeros(len(floats), np.uint16)
    blocks = -(-max(len(floats), 65536) // 256)
    module = host_module.HostModule(source)
    module.launch("convert", (blocks,), (256,), (halves, as_float, floats, as_half, np.int32(len(floats))))
    np.testing.assert_array_equal(as_float, halves.view(np.float16).astype(np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(as_half, floats.astype(np.float16).view(np.uint16))


# A geometry is a compilation, a second each, so few are chosen: kernels of one and of several taps, strides, uneven
# padding, channels that fill no vector.
@pytest.mark.parametrize(
    ("height", "width", "channels", "kernel", "stride", "padding", "half"),
    [
        (7, 9, 3, (3, 3), (1, 1), (1, 1, 1, 1), False),
        (6, 5, 3, (5, 5), (2, 1), (2, 1, 0, 2), True),
        (9, 8, 1, (2, 3), (2, 2), (0, 0, 0, 0), True),
        (5, 5, 1, (1, 1), (1, 1), (0, 0, 0, 0), False),
    ],
)
def test_im2col(
    height: int,
    width: int,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    half: bool,
) -> None:
    rng = np.random.default_rng(0)
    stage = make_stage(rng, (height, width, channels), 4, kernel, stride, padding)
    frames = 2
    pixels = rng.integers(0, 256, (frames, height, width, channels), dtype=np.uint8)
    words = (pixels.astype(np.uint32) << (8 * np.arange(channels, dtype=np.uint32))).sum(
        axis=-1, dtype=np.uint32
    )
    spec = float_specs.im2col(stage, half, frames)
    conv_height, conv_width, _ = stage.conv_shape
    columns = float_specs.columns(stage, first=True)
    output = np.full((frames, conv_height, conv_width, columns), 7, element(half))
    module = host_module.HostModule(kernel_source(spec.kernel), spec.options)
    module.launch(spec.kernel, spec.grid, spec.block, (words, output), seed=3)
    for frame in range(frames):
        values = rows(stage, pixels[frame].astype(np.float32) * np.float32(1 / 255)).reshape(
            conv_height, conv_width, -1
        )
        expected = np.zeros_like(output[frame])
        expected[..., : values.shape[-1]] = values
        np.testing.assert_array_equal(output[frame], expected)


CONV, DENSE, LOGITS = "conv", "dense", "logits"


@pytest.mark.parametrize(
    ("channels", "pool", "bounds", "half", "following", "geometry"),
    [
        (5, Pool(2, 2), (0.0, np.inf), False, CONV, ((3, 3), (1, 1), (1, 1, 1, 1))),
        (20, Pool(3, 2), (-1.0, 1.0), True, CONV, ((5, 5), (2, 1), (2, 1, 0, 2))),
        (8, None, (-np.inf, np.inf), False, CONV, ((2, 3), (2, 2), (0, 0, 0, 0))),
        (8, Pool(2, 1), (0.0, 6.0), True, DENSE, None),
        (1, None, (0.0, np.inf), False, DENSE, None),
        (43, None, (-np.inf, np.inf), True, LOGITS, None),
        (4, None, (-np.inf, np.inf), False, LOGITS, None),
    ],
)
def test_epilogue(
    channels: int,
    pool: Pool | None,
    bounds: tuple[float, float],
    half: bool,
    following: str,
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]] | None,
) -> None:
    rng = np.random.default_rng(0)
    size = (1, 1, 3) if following == LOGITS else (14, 15, 3)
    stage = make_stage(rng, size, channels, (1, 1), pool=pool, bounds=bounds)
    height, width, _ = stage.output_shape
    after = None
    if geometry is not None:
        after = make_stage(rng, stage.output_shape, 4, *geometry)
    elif following == DENSE:
        after = make_stage(rng, stage.output_shape, 4, (height, width))
    frames = 2
    spec = float_specs.epilogue(stage, after, half, frames)
    padded = float_specs.aligned(channels)
    product = np.zeros((frames, *stage.conv_shape[:2], padded), element(half))
    product[..., :channels] = rng.normal(0, 2, (*product.shape[:3], channels))
    scale, shift = (np.pad(v, (0, padded - channels)) for v in (stage.scale, stage.shift))
    if after is None:
        output = np.full((frames, channels), 7, np.float32)
    else:
        output = np.zeros(
            (frames, *after.conv_shape[:2], float_specs.columns(after, first=False)), element(half)
        )
    module = host_module.HostModule(kernel_source(spec.kernel), spec.options)
    bounds_args = (np.float32(stage.low), np.float32(stage.high))
    module.launch(spec.kernel, spec.grid, spec.block, (product, scale, shift, *bounds_args, output), seed=3)

    for frame in range(frames):
        y = product[frame].astype(np.float32)
        if stage.pool is not None:
            window = (stage.pool.size, stage.pool.size)
            y = sliding_window_view(y, window, axis=(0, 1))[:: stage.pool.stride, :: stage.pool.stride].max(
                axis=(3, 4)
            )
        # A fused multiply-add rounds once: exact in float64 (24 + 24 bits and a sum of like size), then rounded.
        y = (y.astype(np.float64) * scale + shift).astype(np.float32)
        y = np.clip(y, *bounds_args).astype(output.dtype)
        expected = y[0, 0, :channels] if after is None else rows(after, y).reshape(output[frame].shape)
        np.testing.assert_array_equal(output[frame], expected)


@dataclass(frozen=True)
class ResidualCase:
    """An epilogue with residuals: the residual that comes with the input, and what of it is added.

    Attributes:
        shape: of the residual that comes in.
        copies: of its channels.
        shortcut: what is added of it.
        half: the precision.
        following: the next convolution's kernel, stride and padding; None for a fully connected layer.
        stored: whether the next one adds this one's residual.
    """

    shape: tuple[int, int, int]
    copies: int
    shortcut: Literal["none", "identity", "average_pool"]
    half: bool
    following: tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]] | None
    stored: bool


SAME = ((3, 3), (1, 1), (1, 1, 1, 1))
RESIDUALS = {
    "identity, odd channels": ResidualCase((5, 6, 5), 1, "identity", False, SAME, True),
    "identity, half": ResidualCase((5, 4, 20), 1, "identity", True, SAME, True),
    # 20 channels are no whole vectors of 8: channels begin anew within one, and the last one is padded.
    "average, channels that wrap": ResidualCase((9, 7, 10), 2, "average_pool", True, SAME, True),
    "average, whole vectors": ResidualCase((6, 7, 4), 3, "average_pool", False, SAME, False),
    # The row of the next convolution that reads a pixel by the tap that stores is not there for each of them.
    "wrap, strided next": ResidualCase((7, 5, 6), 2, "identity", False, ((5, 3), (2, 2), (2, 1, 0, 1)), True),
    "stem": ResidualCase((6, 5, 9), 1, "none", True, ((2, 2), (2, 2), (0, 0, 0, 0)), True),
    "before a matrix": ResidualCase((5, 4, 8), 3, "average_pool", True, None, False),
    "before a matrix, stored": ResidualCase((1, 1, 7), 1, "identity", False, None, True),
}


def check_residuals(
    case: ResidualCase, mode: str = "plain", seed: int = 3, change: Callable[[str], str] = str
) -> None:
    """Assert that two frames give what NumPy gives, rows and residual; ``change`` is made to the source."""
    rng = np.random.default_rng(0)
    height, width, channels = case.shape
    out = channels * case.copies
    averaged = case.shortcut == "average_pool"
    # Where it averages: a convolution as large as its input, and a pool; an odd last row or column is left out.
    stage = make_stage(rng, case.shape, out, (1, 1), pool=Pool(2, 2) if averaged else None)
    stage = replace(stage, shortcut=case.shortcut)
    out_height, out_width, _ = stage.output_shape
    geometry = case.following or ((out_height, out_width), (1, 1), (0, 0, 0, 0))
    after = replace(
        make_stage(rng, stage.output_shape, 4, *geometry), shortcut="identity" if case.stored else "none"
    )
    frames, padded = 2, float_specs.aligned(out)
    product = np.zeros((frames, height, width, padded), element(case.half))
    product[..., :out] = rng.normal(0, 2, (frames, height, width, out))
    before = np.zeros((frames, height, width, float_specs.aligned(channels)), np.float32)
    before[..., :channels] = rng.normal(0, 2, (frames, *case.shape))
    scale, shift = (np.pad(v, (0, padded - out)) for v in (stage.scale, stage.shift))
    output = np.zeros(
        (frames, *after.conv_shape[:2], float_specs.columns(after, first=False)), element(case.half)
    )
    residual = np.full((frames, out_height, out_width, padded), 7, np.float32)
    spec = float_specs.epilogue(stage, after, case.half, frames)
    module = host_module.HostModule(change(kernel_source(spec.kernel)), spec.options, mode)
    residuals = ([] if case.shortcut == "none" else [before]) + ([residual] if case.stored else [])
    bounds = (np.float32(stage.low), np.float32(stage.high))
    module.launch(
        spec.kernel, spec.grid, spec.block, (product, scale, shift, *bounds, output, *residuals), seed=seed
    )

    y = product.astype(np.float32)
    added = before[..., :channels]
    if averaged:
        corners = [np.s_[:, i : 2 * out_height : 2, j : 2 * out_width : 2] for i in (0, 1) for j in (0, 1)]
        y = np.max([y[corner] for corner in corners], axis=0)
        # In the kernel's order; the division by 4 is exact.
        first, second, third, last = (added[corner] for corner in corners)
        added = (first + second + third + last) / 4
    y = (y.astype(np.float64) * scale + shift).astype(np.float32)  # rounded once, as above
    if case.shortcut != "none":
        y[..., :out] += np.tile(added, (1, 1, 1, case.copies))
    if case.stored:
        np.testing.assert_array_equal(residual, y)
    y = np.clip(y, *bounds).astype(output.dtype)
    for frame in range(frames):
        np.testing.assert_array_equal(output[frame], rows(after, y[frame]).reshape(output[frame].shape))


@pytest.mark.parametrize("name", RESIDUALS)
def test_epilogue_with_residuals(name: str) -> None:
    check_residuals(RESIDUALS[name])


@pytest.mark.parametrize(
    ("name", "mode"),
    [("average, channels that wrap", "asan"), ("wrap, strided next", "asan"), ("wrap, strided next", "tsan")],
)
def test_residuals_under_sanitizers(name: str, mode: str) -> None:
    """No store or load leaves an array, and one thread stores a pixel's residual."""
    check_residuals(RESIDUALS[name], mode)


@pytest.mark.parametrize(
    ("name", "mode", "old", "new"),
    [
        ("wrap, strided next", "apart", "(channel + j) % SHORTCUT_CHANNELS", "(channel + j)"),
        ("before a matrix", "apart", "from + channel % SHORTCUT_CHANNELS", "from + channel"),
        ("average, channels that wrap", "apart", "channel + j < features ?", "channel + j < CHANNELS ?"),
        ("average, channels that wrap", "apart", "1.0f / (SHORTCUT * SHORTCUT)", "1.0f / SHORTCUT"),
        ("identity, half", "apart", "before + static_cast<size_t>(blockIdx.z)", "before + 0 * blockIdx.z"),
        ("wrap, strided next", "apart", "if (!is_read && !stores) return;", "if (!is_read) return;"),
        ("wrap, strided next", "tsan", "bool stores = tap_y == NEXT_PADDING_TOP;", "bool stores = true;"),
    ],
)
def test_mutants_of_residuals_are_noticed(name: str, mode: str, old: str, new: str) -> None:
    def change(source: str) -> str:
        assert source.count(old) == 1, f"{old!r} is not in the source once"
        return source.replace(old, new)

    with pytest.raises((AssertionError, host_module.LaunchError)) as caught:
        check_residuals(RESIDUALS[name], mode, change=change)
    assert "g++ refused" not in str(caught.value)
    assert "is not in the source once" not in str(caught.value)
    if mode == "tsan":
        assert "data race" in str(caught.value)


def test_a_chain_has_no_word_of_residuals() -> None:
    """The kernels of nets without shortcuts are compiled with the options that they always had."""
    rng = np.random.default_rng(0)
    stage = make_stage(rng, (8, 8, 3), 8, (3, 3))
    after = make_stage(rng, stage.output_shape, 4, (3, 3))
    for following in (after, None):
        defines = float_specs.epilogue(stage, following, False, 1).defines
        assert not [name for name in defines if "SHORTCUT" in name or "RESIDUAL" in name]


@pytest.mark.parametrize(("mode", "half"), [("asan", True), ("tsan", False)])
def test_under_sanitizers(mode: str, half: bool) -> None:
    """Odd sizes, where a stray thread or store would leave an array; and no element is written twice."""
    rng = np.random.default_rng(0)
    first = make_stage(rng, (7, 5, 3), 9, (3, 3), padding=(1, 1, 1, 1), pool=Pool(2, 2))
    second = make_stage(rng, first.output_shape, 4, (3, 2), (2, 1), (1, 1, 0, 0))
    spec = float_specs.im2col(first, half, 1)
    matrix = np.zeros((7, 5, float_specs.columns(first, first=True)), element(half))
    module = host_module.HostModule(kernel_source(spec.kernel), spec.options, mode)
    module.launch(spec.kernel, spec.grid, spec.block, (np.full((7, 5), 0xFFFFFF, np.uint32), matrix))
    assert matrix[3, 2, :27].min() == 1
    spec = float_specs.epilogue(first, second, half, 1)
    product, output = (
        np.ones((7, 5, 16), element(half)),
        np.zeros((*second.conv_shape[:2], 6 * 16), element(half)),
    )
    scale = np.ones(16, np.float32)
    module = host_module.HostModule(kernel_source(spec.kernel), spec.options, mode)
    bounds = (np.float32(0), np.float32(np.inf))
    module.launch(spec.kernel, spec.grid, spec.block, (product, scale, 0 * scale, *bounds, output))
    # The padding above and to the left stays 0, each pixel arrives at each tap that reads it.
    expected = rows(second, np.ones((*first.output_shape[:2], 16)))
    np.testing.assert_array_equal(output, expected.reshape(output.shape))


@pytest.mark.parametrize(
    ("major", "sm"), [(12, sm) for sm in (53, 62, 72, 75, 80, 87, 90, 120)] + [(13, 110)]
)
def test_every_sm_compiles_them_without_spills(major: int, sm: int) -> None:
    """The nets' kernels in both precisions, in at most 64 registers: 256 threads four times an SM."""
    need(major)
    done = set()
    for height, channels, out, kernel in ((96, 3, 32, 5), (48, 32, 32, 5), (16, 64, 128, 3), (1, 512, 43, 1)):
        half_kernel = (kernel // 2,) * 4
        pool = Pool(2, 2) if height > 1 else None
        rng = np.random.default_rng(0)
        stage = make_stage(
            rng, (height, height, channels), out, (kernel, kernel), padding=half_kernel, pool=pool
        )
        after = make_stage(rng, stage.output_shape, 8, (3, 3), padding=(1, 1, 1, 1)) if height > 1 else None
        for half in (False, True):
            specs = [float_specs.epilogue(stage, after, half, 1)]
            if channels == 3:
                specs.append(float_specs.im2col(stage, half, 1))
            for spec in specs:
                usage = usage_of(major, spec, sm)
                assert usage.spill_bytes == usage.stack_bytes == 0, spec
                assert usage.registers <= spec.max_registers, spec
                done.add(spec.kernel)
    # A residual net: shortcuts within a stage, to the next one with growing channels, and channels that wrap.
    for channels, copies, shortcut in (
        (48, 1, "none"),
        (48, 1, "identity"),
        (48, 2, "average_pool"),
        (10, 3, "average_pool"),
    ):
        rng = np.random.default_rng(0)
        pool = Pool(2, 2) if shortcut == "average_pool" else None
        stage = make_stage(
            rng, (16, 16, channels), channels * copies, (3, 3), padding=(1, 1, 1, 1), pool=pool
        )
        after = make_stage(rng, stage.output_shape, 8, (3, 3), padding=(1, 1, 1, 1))
        for half in (False, True):
            spec = float_specs.epilogue(
                replace(stage, shortcut=shortcut), replace(after, shortcut="identity"), half, 1
            )
            usage = usage_of(major, spec, sm)
            assert usage.spill_bytes == usage.stack_bytes == 0, spec
            assert usage.registers <= spec.max_registers, spec
    assert done == {"float_im2col", "float_epilogue"}
