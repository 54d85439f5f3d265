"""The geometry of the float twin's kernels, stated once; that of the binary kernels is in :mod:`.specs`."""

from __future__ import annotations

from bnn_perception.backends.cuda.specs import KernelSpec, divide_up
from bnn_perception.importers.stage import SHORTCUTS, Stage

#: Threads of a block; the kernels keep a vector or two in registers and need no shared memory.
THREADS = 256
#: Rows of a matrix are padded to a multiple of this many elements: 16 bytes in half precision, which cuBLAS asks of
#: operands of tensor cores, and whole vectors in both precisions.
ALIGNMENT = 8


def aligned(count: int) -> int:
    """``count`` elements, padded."""
    return divide_up(count, ALIGNMENT) * ALIGNMENT


def columns(stage: Stage, first: bool) -> int:
    """Columns of a stage's matrix. Taps lie side by side, each with all channels of the stage before, padded."""
    height, width = stage.kernel
    channels = stage.input_shape[2]
    return aligned(height * width * channels) if first else height * width * aligned(channels)


def im2col(stage: Stage, half: bool, frames: int) -> KernelSpec:
    """``kernels/float_im2col.cu``: the matrix of the first stage, from pixels."""
    height, width, _ = stage.conv_shape
    row = columns(stage, first=True)
    defines = {
        "HALF": int(half),
        "IN_HEIGHT": stage.input_shape[0],
        "IN_WIDTH": stage.input_shape[1],
        "CHANNELS": stage.input_shape[2],
        "TAPS_Y": stage.kernel[0],
        "TAPS_X": stage.kernel[1],
        "STRIDE_Y": stage.stride[0],
        "STRIDE_X": stage.stride[1],
        "PADDING_TOP": stage.padding[0],
        "PADDING_LEFT": stage.padding[1],
        "CONV_HEIGHT": height,
        "CONV_WIDTH": width,
        "COLUMNS": row,
        "THREADS": THREADS,
    }
    return _spec("float_im2col", defines, height * width * row // _vector(half), frames)


def reads_residual(stage: Stage | None) -> bool:
    """Whether a stage adds the residual of the stage before (its values before the clip), which then is stored."""
    return stage is not None and stage.shortcut != "none"


def epilogue(stage: Stage, following: Stage | None, half: bool, frames: int) -> KernelSpec:
    """``kernels/float_epilogue.cu``: from the product of ``stage`` to the matrix of ``following``, or to logits."""
    conv_height, conv_width, features = stage.conv_shape
    height, width, _ = stage.output_shape
    channels = aligned(features)
    defines = {
        "HALF": int(half),
        "CONV_HEIGHT": conv_height,
        "CONV_WIDTH": conv_width,
        "CHANNELS": channels,
        "POOL_SIZE": stage.pool.size if stage.pool else 1,
        "POOL_STRIDE": stage.pool.stride if stage.pool else 1,
        "OUT_HEIGHT": height,
        "OUT_WIDTH": width,
        "LOGITS": 0 if following else features,
        "THREADS": THREADS,
    }
    if reads_residual(stage):
        in_height, in_width, in_channels = stage.input_shape
        defines.update(
            SHORTCUT=SHORTCUTS[stage.shortcut],
            SHORTCUT_HEIGHT=in_height,
            SHORTCUT_WIDTH=in_width,
            SHORTCUT_CHANNELS=in_channels,
            SHORTCUT_PITCH=aligned(in_channels),
            SHORTCUT_REPEATS=features // in_channels,
        )
    if reads_residual(following):
        defines["RESIDUAL_STORED"] = 1
    taps_y = 1
    if following is not None:
        next_height, next_width, _ = following.conv_shape
        if following.kernel == (height, width) and not any(following.padding):
            # Fully connected: its one row is the pixels as they lie in memory.
            taps = (1, 1, 1, 1, 0, 0, height, width)
        else:
            taps = (*following.kernel, *following.stride, *following.padding[:2], next_height, next_width)
        names = ("TAPS_Y", "TAPS_X", "STRIDE_Y", "STRIDE_X", "PADDING_TOP", "PADDING_LEFT", "HEIGHT", "WIDTH")
        defines.update({f"NEXT_{name}": value for name, value in zip(names, taps)})
        taps_y = taps[0]
    return _spec("float_epilogue", defines, height * width * taps_y * channels // _vector(half), frames)


def _vector(half: bool) -> int:
    """Elements that a thread takes at once: 16 bytes."""
    return 8 if half else 4


def _spec(kernel: str, defines: dict[str, int], threads: int, frames: int) -> KernelSpec:
    """``threads`` threads for each frame."""
    grid = (divide_up(threads, THREADS), 1, frames)
    return KernelSpec(kernel, defines, (THREADS, 1, 1), grid, shared_bytes=0, max_registers=64)
