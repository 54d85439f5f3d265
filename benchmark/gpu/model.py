"""What a kernel should cost on a GPU that is not at hand: from its machine code, its geometry and the board's figures.

The *floor* of a kernel is the larger of its operations over the peak and its bytes over the bandwidth, plus its place
in the graph. The *prediction* counts what its machine code does: the main loop as often as the geometry says, staging,
the rest once, against the rates of the SM's pipes on the busiest SM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.gpu import sass
from benchmark.gpu.work import Work
from bnn_perception.backends.cuda.specs import WARP, KernelSpec, divide_up

#: Words that one POPC covers at best: carry-save adders turn seven words into three, and then LOP3 is the limit.
CARRY_SAVE_GAIN = 1.47


@dataclass(frozen=True)
class Board:
    """Figures of a GPU.

    Attributes:
        name: of the board.
        sm: compute capability times ten.
        multiprocessors: how many SMs.
        clock: Hz.
        bandwidth: of its memory, bytes/s.
        popc: POPC results a clock and SM.
        binary_mma: binary multiply-accumulates of the tensor cores a clock and SM.
        node: from the end of one kernel of a graph to the start of the next, s.
        graph: of launching a graph and learning of its end, s.
    """

    name: str
    sm: int
    multiprocessors: int
    clock: float
    bandwidth: float
    popc: float
    binary_mma: float
    node: float
    graph: float


#: Two robots' boards and a data-centre GPU.
BOARDS = (
    Board("Orin Nano Super", 87, 8, 1.02e9, 102e9, 16, 16384, 2.0e-6, 10e-6),
    Board("AGX Orin 64 GB", 87, 16, 1.30e9, 204.8e9, 16, 16384, 2.0e-6, 10e-6),
    Board("H100 SXM", 90, 132, 1.98e9, 3.35e12, 16, 16384, 1.0e-6, 4e-6),
)

#: Results a clock and SM by instruction, on SM 8.x and 9.0 (CUDA programming guide, throughput of native arithmetic
#: instructions; shared memory serves one warp a clock). POPC and BMMA are the board's; what is not named here is an
#: instruction of the integer pipe.
PIPES: Mapping[str, tuple[str, float]] = {
    "LDS": ("memory", 32),
    "STS": ("memory", 32),
    "LDG": ("memory", 32),
    "STG": ("memory", 32),
    "IMAD": ("multiply", 64),
    "IDP": ("multiply", 64),
    "FFMA": ("float", 128),
    "FMUL": ("float", 128),
    "FADD": ("float", 128),
    "BRA": ("branch", 64),
}
_INTEGER = ("integer", 64.0)
#: Multiply-accumulates of one BMMA of a warp, m16n8k256.
_MMA_MACS = 16 * 8 * 256
#: A scheduler issues one instruction a clock, an SM has four.
_ISSUE = 4.0
#: Clocks between two instructions of a warp that has its scheduler to itself; dependent ones take 4 to 6, others 1.
_ALONE = 2.0
#: Clocks of a trip to L2 or memory; a kernel makes two that nothing hides: its input, then its thresholds or output.
_TRIP, _TRIPS = 500.0, 2


@dataclass(frozen=True)
class MainLoop:
    """The loop of a kernel that multiplies.

    Attributes:
        instructions: of one thread and iteration, by name.
        words: products of a word (32 binary or 4 byte multiply-accumulates) of one thread and iteration.
    """

    instructions: Counter[str]
    words: float

    @property
    def per_word(self) -> float:
        """Instructions of a thread for one product of words."""
        return sum(self.instructions.values()) / self.words


@dataclass(frozen=True)
class Code:
    """A kernel's machine code, taken apart.

    Attributes:
        loop: its main loop, None where it multiplies nothing.
        staged: instructions for one element that is brought to shared memory.
        once: instructions outside of all loops.
    """

    loop: MainLoop | None
    staged: float
    once: Counter[str]


def popcounts(words: int) -> int:
    """POPC that the carry-save tree of kernels/bits.cuh needs for so many words."""
    count = words // 7 * 3
    words %= 7
    for size in (5, 3):
        count += words // size * (3 if size == 5 else 2)
        words %= size
    return count + words


def take_apart(spec: KernelSpec, code: Sequence[sass.Instruction]) -> Code:
    """Find the parts of a kernel's machine code.

    Raises:
        ValueError: where the code does not have the products that its geometry implies.
    """
    loops = sass.innermost_loops(code)
    inside = {instruction.address for loop in loops for instruction in loop}
    # Behind the last EXIT lie slow paths of divisions and the like, which finite numbers do not take.
    end = max((instruction.address for instruction in code if instruction.name == "EXIT"), default=0)
    once = sass.count(i for i in code if i.address not in inside and i.address <= end)
    counts = [sass.count(loop) for loop in loops]
    staged = float(max((sum(count.values()) for count in counts if count["STS"] == 1), default=0))
    words = [_words(spec, count) for count in counts]
    best = max(range(len(words)), key=lambda index: words[index], default=None)
    if best is not None and words[best] > 0:
        return Code(MainLoop(counts[best], words[best]), staged, once)
    straight = _words(spec, once)
    if straight == 0 and _words_per_thread(spec) > 0:
        raise ValueError(f"{spec.kernel}: no products were found in its machine code")
    return Code(MainLoop(once, straight) if straight else None, staged, Counter() if straight else once)


def _words(spec: KernelSpec, count: Mapping[str, int]) -> float:
    """Products of words that these instructions make."""
    defines = spec.defines
    if spec.kernel == "input_conv2d":
        return count.get("IDP", 0)
    if spec.kernel == "bconv2d_b1mma":
        # Of five products four are with filters; the fifth counts the ones of the input.
        return count.get("BMMA", 0) * 4 / 5 * _MMA_MACS / (32 * WARP)
    if spec.kernel == "bconv2d_popc":
        group = defines["STEP_TAPS"] * defines["CHUNK_WORDS"]
    elif spec.kernel == "dense":
        group = defines["STEP"] * defines["LOAD_WORDS"]
    else:
        return 0
    return count.get("POPC", 0) / popcounts(group) * group


def _words_per_thread(spec: KernelSpec) -> float:
    """Products of words that the geometry gives each thread, those past the edges included."""
    d = spec.defines
    if spec.kernel in ("input_conv2d", "bconv2d_popc"):
        columns = (d["PATCH"] - 1) * d["POOL_STRIDE"] + d["POSITIONS"]
        windows = (d["POOL_SIZE"] // d["POSITIONS"]) ** 2
        return windows * d["POSITIONS"] * columns * d["TAPS_Y"] * d["TAPS_X"] * d["CHUNKS"] * d["CHUNK_WORDS"]
    if spec.kernel == "bconv2d_b1mma":
        matrices = d["GROUPS"] * d["POOL_SIZE"] ** 2 / 2
        steps = divide_up(d["TAPS_Y"] * d["TAPS_X"] * d["IN_WORDS"], 8)
        return matrices * steps * 4 * _MMA_MACS / (32 * WARP)
    if spec.kernel == "dense":
        step = d["STEP"] * d["LOAD_WORDS"]
        return divide_up(d["IN_WORDS"], d["LANES"] * step) * step * d["FRAMES"]
    return 0


def _staged_per_thread(spec: KernelSpec) -> float:
    """Elements that each thread brings to shared memory: words of the input, and of weights four words at once."""
    d = spec.defines
    if spec.kernel == "bconv2d_b1mma":
        return spec.shared_bytes / 4 / spec.block[0]
    if "STAGE_CHUNKS" not in d:
        return 0.0
    stages = (
        d["CHUNKS"]
        // d["STAGE_CHUNKS"]
        * (d["TAPS_Y"] // d["STAGE_ROWS"])
        * (d["POOL_SIZE"] // d["POSITIONS"]) ** 2
    )
    weights = d["TILE_FILTERS"] * d["STAGE_CHUNKS"] * d["STAGE_ROWS"] * d["TAPS_X"] * d["CHUNK_WORDS"] * WARP
    words = spec.shared_bytes / 4
    return stages * ((words - weights) + weights / 4) / spec.block[0]


def floor(work: Work, board: Board, tensor_cores: bool = False) -> float:
    """Seconds below which the kernel cannot be, by POPC or on tensor cores."""
    cycles = board.multiprocessors * board.clock
    binary = work.binary_macs / (
        cycles * (board.binary_mma if tensor_cores else 32 * board.popc * CARRY_SAVE_GAIN)
    )
    bytes_ = work.byte_macs / (4 * 64 * cycles)
    return max(binary, bytes_, work.bytes / board.bandwidth) + board.node


def predict(spec: KernelSpec, code: Code, work: Work, board: Board) -> float:
    """Seconds that the kernel should take."""
    executed: dict[str, float] = {"staging": _staged_per_thread(spec) * code.staged, **code.once}
    if code.loop is not None:
        iterations = _words_per_thread(spec) / code.loop.words
        for name, count in code.loop.instructions.items():
            executed[name] = executed.get(name, 0.0) + count * iterations
    own = {"POPC": ("popc", board.popc), "BMMA": ("tensor", board.binary_mma / _MMA_MACS * WARP)}
    pipes: dict[str, float] = {}
    for name, times in executed.items():
        pipe, rate = own.get(name) or PIPES.get(name, _INTEGER)
        pipes[pipe] = pipes.get(pipe, 0.0) + times * WARP / rate
    total = sum(executed.values())
    warps = spec.block[0] // WARP
    blocks = divide_up(spec.grid[0] * spec.grid[1] * spec.grid[2], board.multiprocessors)
    busy = blocks * warps * max(total / _ISSUE, *pipes.values())
    cycles = _TRIPS * _TRIP + max(busy, total * _ALONE)
    return max(cycles / board.clock, work.bytes / board.bandwidth) + board.node
