"""Counting of work, reading of machine code, floors and predictions: against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from benchmark.gpu import nvrtc, performance, sass
from benchmark.gpu.model import BOARDS, Board, Code, floor, popcounts, predict, take_apart
from benchmark.gpu.nets import PAPER, ROAD_SIGNS, benchmark_model
from benchmark.gpu.work import Work, binary_work
from bnn_perception.backends.cuda.float_specs import aligned
from bnn_perception.backends.cuda.network import network
from bnn_perception.backends.cuda.specs import KernelSpec, Target
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.errors import CommandError
from bnn_perception.net.model import InputSpec
from bnn_perception.net.signals import Add

#: One SM at 1 MHz: a cycle is a microsecond. Memory of 1 MB/s: a byte is one too.
SIMPLE = Board("simple", 87, 1, 1e6, 1e6, 16, 16384, 0.0, 0.0)

#: As nvdisasm prints a kernel: a loop inside a loop, a label before it, the branch to itself that ends every kernel.
LISTING = """
//--------------------- .text.bconv2d_popc    --------------------------
	.section	.text.bconv2d_popc,"ax",@progbits
bconv2d_popc:
.text.bconv2d_popc:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDS R4, [R3] ;
.L_x_0:
        /*0020*/                   LDS.128 R8, [R2] ;
        /*0030*/                   LOP3.LUT R9, R8, R4, RZ, 0x3c, !PT ;
        /*0040*/                   POPC R9, R9 ;
        /*0050*/              @!P0 IADD3 R5, R5, R9, RZ ;
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/               @P2 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
        /*00b0*/                   NOP;
.L_x_3:
//--------------------- .text.other    --------------------------
.text.other:
        /*0000*/                   EXIT ;
"""


def conv_spec(**changes: int) -> KernelSpec:
    """A 1x1 convolution of one word: eight warps of one sum each."""
    names = "PATCH POOL_STRIDE POSITIONS POOL_SIZE TAPS_Y TAPS_X CHUNKS CHUNK_WORDS STEP_TAPS STAGE_CHUNKS STAGE_ROWS"
    defines = {**dict.fromkeys(names.split(), 1), "TILE_FILTERS": 1, **changes}
    return KernelSpec("bconv2d_popc", defines, block=(256, 1, 1), grid=(2, 1, 1), shared_bytes=4 * (32 + 8))


def test_the_nets_are_the_ones_that_are_meant() -> None:
    """The paper's net has 83.0 million multiply-accumulates and 1.88 million weights."""
    paper, signs = (benchmark_model(topology, np.random.default_rng(0)) for topology in (PAPER, ROAD_SIGNS))
    work = binary_work(paper, 1, 96 * 96 * 3)
    assert sum(item.binary_macs + item.byte_macs for item in work) == pytest.approx(83.0e6, rel=1e-3)
    assert sum(layer.weights.size for layer in paper.layers[1:]) * 32 == pytest.approx(1.88e6, rel=0.01)
    assert signs.shapes() == [
        *((32, 32, 3), (16, 16, 64), (8, 8, 128), (4, 4, 256)),
        *((1, 1, 512), (1, 1, 43)),
    ]


def test_work_of_a_convolution_by_hand() -> None:
    """conv2 of the paper's net: 48x48 pixels, 5x5 taps, 32 channels in and out, pooled to 24x24."""
    paper = benchmark_model(PAPER, np.random.default_rng(0))
    one, four = (next(w for w in binary_work(paper, n, 0) if w.layer == "conv2") for n in (1, 4))
    assert one.binary_macs == 48 * 48 * 25 * 32 * 32
    constants = 32 * 25 * 4 + 32 * 4 + 32  # weights, thresholds, flips
    assert one.bytes == 48 * 48 * 4 + 24 * 24 * 4 + constants
    assert four.binary_macs == 4 * one.binary_macs
    assert four.bytes - constants == 4 * (one.bytes - constants)


def test_bytes_of_signals_by_hand() -> None:
    """The stem's signal is kept for the shortcut; a convolution, batch norm, shortcut and sign are one kernel."""
    rng = np.random.default_rng(0)
    layers = [
        models.scaled_input_conv(rng, "stem", (8, 8, 3), 24),
        models.sign(rng, "sign1", 24),
        models.scaled_conv(rng, "conv", (8, 8, 24), 24, inputs=("sign1",)),
        models.affine(rng, "norm", 24),
        Add("add", 24, inputs=("norm", "stem")),
        models.sign(rng, "sign2", 24),
        models.output_dense(rng, "out", (8, 8, 24), 2),
    ]
    _, first, second, _ = binary_work(models.make_model(InputSpec(8, 8), layers), 1, 0)
    # Pixels in, words and the signal out; weights, scale and bias, levels; thresholds and flips.
    assert first.bytes == 8 * 8 * (4 + 4 + 24 * 4) + 24 * (9 * 4 + 8) + 256 * 2 + 24 * 5
    # Words and the shortcut in, words out; weights, scale and bias; batch norm; thresholds and flips.
    assert second.bytes == 8 * 8 * (4 + 24 * 4 + 4) + 24 * (9 * 4 + 8) + 24 * 8 + 24 * 5


def test_work_has_an_entry_for_every_kernel() -> None:
    nets = [benchmark_model(topology, np.random.default_rng(0)) for topology in (PAPER, ROAD_SIGNS)]
    for model in [*nets, models.residual_model(np.random.default_rng(0))]:
        steps = network(model, Target(87, 8), TileTable())
        assert [work.layer for work in binary_work(model, 1, 0)] == [step.name for step in steps]


@pytest.mark.parametrize(
    ("words", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 3), (9, 5), (14, 6)]
)
def test_popcounts_of_the_carry_save_tree(words: int, expected: int) -> None:
    assert popcounts(words) == expected


def test_reads_instructions_and_loops() -> None:
    code = sass.kernels(LISTING)
    assert list(code) == ["bconv2d_popc", "other"]
    assert len(code["bconv2d_popc"]) == 11  # without the filler
    (inner,) = sass.innermost_loops(code["bconv2d_popc"])
    assert dict(sass.count(inner)) == {"LDS": 1, "LOP3": 1, "POPC": 1, "IADD3": 1, "BRA": 1}
    assert sass.innermost_loops(code["other"]) == []


def test_takes_a_kernel_apart() -> None:
    code = take_apart(conv_spec(), sass.kernels(LISTING)["bconv2d_popc"])
    assert code.loop is not None
    assert code.loop.words == 1
    assert code.loop.per_word == 5
    assert sum(code.once.values()) == 5  # up to EXIT


def test_words_follow_from_the_carry_save_tree() -> None:
    """A POPC among five words' three stands for 5/3 words."""
    code = take_apart(conv_spec(TAPS_X=5, STEP_TAPS=5), sass.kernels(LISTING)["bconv2d_popc"])
    assert code.loop is not None
    assert code.loop.words == pytest.approx(5 / 3)


def test_a_kernel_without_its_products_is_refused() -> None:
    with pytest.raises(ValueError, match="no products were found"):
        take_apart(conv_spec(), sass.kernels(LISTING)["other"])


def test_floor_by_hand() -> None:
    # 16 POPC a cycle of 32 bits, 1.47 times over: 752.64 binary multiply-accumulates a microsecond.
    assert floor(Work("a", 0, binary_macs=752640), SIMPLE) == pytest.approx(1e-3)
    assert floor(Work("a", 0, byte_macs=256), SIMPLE) == pytest.approx(1e-6)  # 64 DP4A of 4
    assert floor(Work("a", 0, binary_macs=16384), SIMPLE, tensor_cores=True) == pytest.approx(1e-6)
    assert floor(Work("a", 5), SIMPLE) == pytest.approx(5e-6)
    assert floor(Work("a", 5, binary_macs=752640), SIMPLE) == pytest.approx(1e-3)  # the larger


def test_prediction_by_hand() -> None:
    """Two blocks of eight warps on one SM, each thread one word: 10 instructions, none staged."""
    spec, code = conv_spec(), take_apart(conv_spec(), sass.kernels(LISTING)["bconv2d_popc"])
    # 8 words of the tile and 32 weights in vectors of 4 are 16 elements of 256 threads; no loop of LISTING stages.
    assert code.staged == 0
    issue = 2 * 8 * 10 / 4
    # Trips of 1000 cycles; POPC: 16 warps, 2 cycles each; memory: 2 LDS of a cycle each; issue is the slowest.
    assert predict(spec, code, Work("a", 0), SIMPLE) == pytest.approx((1000 + issue) * 1e-6)
    # One warp's own pace, two cycles an instruction, where an SM has but one.
    alone = KernelSpec(spec.kernel, spec.defines, (32, 1, 1), (1, 1, 1), spec.shared_bytes)
    assert predict(alone, code, Work("a", 0), SIMPLE) == pytest.approx((1000 + 20) * 1e-6)


def fake_kernels(model: Any, board: Board, tiles: TileTable) -> list[performance.Kernel]:
    spec = conv_spec()
    code = take_apart(spec, sass.kernels(LISTING)["bconv2d_popc"])
    layers = ("input", *(layer.name for layer in model.layers))
    return [performance.Kernel(Work(layer, 1, 32), spec, code, 1e-6, 2e-6) for layer in layers]


def make_run() -> dict[str, Any]:
    layers = ("input", "conv1", "conv2", "dense1", "dense2", "dense3")
    kernels = [{"layer": layer, "microseconds": 3.0} for layer in layers]
    entry = {"batches": {"1": {"kernels": kernels, "gpu": {"median": 20.0}}}}
    return {
        "date": "2026-01-02T03:04:05",
        "commit": "abc",
        "environment": {
            "gpu": "Some GPU",
            "sm": 90,
            "multiprocessors": 100,
            "clock_mhz": 1000.0,
            "integrated": False,
        },
        "peaks": {"popc": 1.6e12, "copy": 1e12, "binary_mma": {"b1 mma m16n8k256 and": 8e14}},
        "nets": {"khan2018": {"entries": {"cuda_binary": entry}}},
    }


def test_the_page_says_that_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
    monkeypatch.setattr(performance, "kernels", fake_kernels)
    text = performance.document([])
    assert "Nothing on this page has been measured" in text
    assert "### Measured" not in text
    for board in BOARDS:
        assert f"{board.name}: predicted" in text


def test_the_page_sets_measurements_beside_predictions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
    monkeypatch.setattr(performance, "kernels", fake_kernels)
    (tmp_path / "some-gpu.notes.md").write_text("The difference is the cold cache.\n")
    text = performance.document([(tmp_path / "some-gpu.json", make_run())])
    assert "Nothing on this page has been measured" not in text
    assert "### Measured: some-gpu, 2026-01-02, commit abc" in text
    assert "| conv2 `bconv2d_popc` | 1.0 | 2.0 | 3.0 | 1.50 |" in text
    assert "The difference is the cold cache." in text
    assert text.count("No times of cuda_binary.") == 1  # of the other net
    assert text.count("No times of cuda_binary tuned.") == 2


def test_the_board_of_a_run_is_what_it_measured() -> None:
    board = performance.measured_board(make_run())
    assert board is not None
    assert board.popc == pytest.approx(16)
    assert board.binary_mma == pytest.approx(8000)
    assert board.bandwidth == 1e12
    assert board.node == next(b.node for b in BOARDS if b.sm == 90)
    assert performance.measured_board({"environment": None, "peaks": None}) is None


def test_machine_code_of_the_real_kernels() -> None:
    """The nets' kernels for an Orin: their products are all found, and a word costs more than one instruction."""
    try:
        model = benchmark_model(ROAD_SIGNS, np.random.default_rng(0))
        found = performance.kernels(model, BOARDS[0], TileTable())
        found += performance.kernels(model, BOARDS[0], performance.tensor_tiles(model, BOARDS[0]))
    except CommandError as error:
        pytest.skip(str(error))
    assert {kernel.spec.kernel for kernel in found} == {
        *("preprocess", "input_conv2d", "bconv2d_popc", "bconv2d_b1mma", "dense"),
    }
    for kernel in found:
        multiplies = kernel.work.binary_macs + kernel.work.byte_macs > 0
        assert (kernel.code.loop is not None) == multiplies, kernel.work.layer
        if kernel.code.loop is not None:
            low, high = (0.1, 1) if kernel.spec.kernel == "bconv2d_b1mma" else (1, 30)
            assert low < kernel.code.loop.per_word < high
        # A kernel that memory limits is predicted at its floor.
        assert kernel.prediction >= kernel.floor > 0


def test_padding_of_matrices() -> None:
    assert [aligned(n) for n in (1, 8, 9, 100)] == [8, 8, 16, 104]


def test_a_code_without_products_costs_its_trips() -> None:
    spec = KernelSpec("preprocess", {}, (32, 1, 1), (1, 1, 1), 0)
    assert predict(spec, Code(None, 0.0, sass.count([])), Work("input", 10), SIMPLE) == pytest.approx(1e-3)
