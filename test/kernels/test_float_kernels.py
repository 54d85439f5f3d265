"""The float twin's kernels, run on the host, against NumPy."""

from __future__ import annotations

import host_module
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from test_nvrtc_matrix import need, usage_of

from bnn_perception.backends.float_twin import Stage
from bnn_perception.cuda import float_specs
from bnn_perception.cuda.sources import kernel_source
from bnn_perception.model import Pool

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
    """The two nets' kernels in both precisions, in at most 64 registers: 256 threads four times an SM."""
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
                assert usage.registers <= 64, spec
                done.add(spec.kernel)
    assert done == {"float_im2col", "float_epilogue"}
