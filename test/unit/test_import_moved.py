"""Numbers that a graph moves: channel shuffles, pixels that become channels, crops, means of flattened pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_import_qonnx import Graph, check, head, join, stem, with_constant

from bnn_perception.importers import ImporterError
from bnn_perception.importers.fold import builder
from bnn_perception.importers.fold.builder import PixelRange
from bnn_perception.importers.fold.picked import Picked
from bnn_perception.importers.onnx.read import read
from bnn_perception.net.signals import BinaryMaxPool, RealConv2d, RealInputConv2d, Sign


def by(g: Graph, op: str, *rows: object, **attributes: object) -> Graph:
    """A node that takes rows of whole numbers."""
    return g.node(op, *(g.constant(row, np.int64) for row in rows), **attributes)


def shuffled(g: Graph) -> Graph:
    return by(
        by(g, "Reshape", [1, 3, 2, 8, 10]).node("Transpose", perm=[0, 2, 1, 3, 4]), "Reshape", [1, 6, 8, 10]
    )


def pixels_to_channels(g: Graph, channels: int = 6, order: tuple[int, ...] = (0, 1, 3, 5, 2, 4)) -> Graph:
    """Channel by channel, as PyTorch, or pixel by pixel of a block, as TensorFlow and SpaceToDepth."""
    by(g, "Reshape", [1, channels, 4, 2, 5, 2]).node("Transpose", perm=order)
    return by(g, "Reshape", [1, -1, 4, 5])


def sliced(g: Graph, *ranges: tuple[int, int, int, int]) -> Graph:
    """Of an axis, from, to, every."""
    axes, starts, ends, steps = zip(*ranges)
    return by(g, "Slice", starts, ends, axes, steps)


LAST = np.iinfo(np.int64).min
#: What is done to 6 channels of 8x10, and the features that are then there.
MOVES: dict[str, tuple[Callable[[Graph], Graph], int]] = {
    "channel shuffle": (shuffled, 480),
    "pixels to channels": (pixels_to_channels, 480),
    "pixels to channels, by the pixel": (lambda g: pixels_to_channels(g, order=(0, 3, 5, 1, 2, 4)), 480),
    "a crop": (lambda g: sliced(g, (2, 1, -2, 1), (3, 2, 10**9, 1)), 6 * 5 * 8),
    "odd rows, even columns": (lambda g: sliced(g, (2, 1, 8, 2), (3, 0, 10, 2)), 6 * 4 * 5),
    "every second channel": (lambda g: sliced(g, (1, 1, 6, 2)), 3 * 80),
    "channels backwards": (lambda g: sliced(g, (1, -1, LAST, -1)), 480),
    "chosen channels": (lambda g: by(g, "Gather", [4, 0, 0, -1], axis=1), 4 * 80),
    "chosen channels, by a turned batch": (
        lambda g: by(g.node("Transpose", perm=[1, 0, 2, 3]), "Gather", [2, 1, 5]).node(
            "Transpose", perm=[1, 0, 2, 3]
        ),
        3 * 80,
    ),
    "chosen channels, as the first axis": (
        lambda g: by(g.node("Transpose", perm=[1, 0, 2, 3]), "GatherND", [[2], [1], [5]]).node(
            "Transpose", perm=[1, 0, 2, 3]
        ),
        3 * 80,
    ),
    "a row of the map": (lambda g: by(by(g, "Gather", 3, axis=2), "Reshape", [1, 6, 1, 10]), 60),
    "spread to its own shape": (lambda g: by(g, "Expand", [1, 1, 8, 10]), 480),
}
#: Those that take other pixels than every n-th.
OF_PIXELS = (
    "pixels to channels",
    "pixels to channels, by the pixel",
    "a crop",
    "odd rows, even columns",
    "a row of the map",
)


@pytest.mark.parametrize("what", ["values", "signs of values", "signs of integers"])
@pytest.mark.parametrize("case", MOVES)
def test_moved_numbers(tmp_path: Path, case: str, what: str) -> None:
    move, features = MOVES[case]
    g = stem()
    if what == "signs of values":
        g.node("LeakyRelu").bipolar(0.5)
    elif what == "signs of integers":
        g.bipolar(0.5)
    move(g)
    if what == "signs of integers" and case in OF_PIXELS:
        with pytest.raises(
            ImporterError, match="moves signs; only their channels, and every n-th pixel of all"
        ):
            read(g.node("Flatten").matmul(features, 3).save(tmp_path / "net.onnx"))
    elif what == "values":
        check(head(g, features), tmp_path)
    else:
        check(g.node("Flatten").matmul(features, 3), tmp_path)


def test_every_second_pixel_of_signs_is_a_pool_of_one_pixel(tmp_path: Path) -> None:
    g = stem().bipolar().conv(6, 6, pads=1).norm(6).bipolar()
    sliced(g, (2, 0, 8, 2), (3, 0, 10, 3))
    model = check(g.node("Flatten").matmul(6 * 4 * 4, 3), tmp_path)
    assert [layer.kernel for layer in model.layers if isinstance(layer, BinaryMaxPool)] == [(1, 1)]


def levels() -> Graph:
    """A graph that takes pixels up to 255, and says so."""
    g = Graph()
    g.unit = 1
    return g.node("Div", g.constant(255.0))


def two_readers(g: Graph) -> Graph:
    image = g.tensor
    first = g.conv(3, 6, pads=1).tensor
    g.tensor = image
    return join(g, first, g.conv(3, 6, kernel=1).tensor)


#: What a graph does first with the image: real values come of it.
OF_THE_IMAGE: dict[str, Callable[[Graph], Graph]] = {
    "BGR from RGB": lambda g: by(g, "Gather", [2, 1, 0], axis=1).conv(3, 6, pads=1),
    "blocks of pixels": lambda g: pixels_to_channels(g, 3).conv(12, 6),
    "a mean": lambda g: g.node("AveragePool", kernel_shape=[2, 2]).conv(3, 6),
    "a maximum": lambda g: g.pool().conv(3, 6),
    "two readers": two_readers,
    "one channel three times": lambda g: by(
        sliced(g, (1, 1, 2, 1)), "Tile", [1, 3, 1, 1]
    ).conv(3, 6),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_THE_IMAGE)
def test_real_values_of_the_image(tmp_path: Path, case: str) -> None:
    g = OF_THE_IMAGE[case](levels())
    model = check(
        g.norm(6).node("GlobalAveragePool").node("Flatten").norm(6).bipolar().matmul(6, 3), tmp_path
    )
    assert isinstance(model.layers[0], RealInputConv2d)
    assert model.input.std == (1 / 255,) * 3


@pytest.mark.parametrize("case", list(OF_THE_IMAGE))
def test_a_range_that_may_still_be_told_is_not_guessed(tmp_path: Path, case: str) -> None:
    """A graph that moves pixels and then divides them by 255 was taken for one of pixels up to 1."""
    g = OF_THE_IMAGE[case](Graph())
    with pytest.raises(ImporterError, match="is of pixels whose range nothing tells; give --pixel-range"):
        read(g.save(tmp_path / "net.onnx"))
    read(head(g.norm(6).node("GlobalAveragePool"), 6).save(tmp_path / "net.onnx"), PixelRange.of(0.0, 1.0))


def wide(g: Graph) -> str:
    return g.conv(6, 5, pads=1).norm(5).node("LeakyRelu").tensor


@pytest.mark.parametrize("case", ["zeros before", "zeros behind", "signs", "negated signs", "rows"])
def test_joined(tmp_path: Path, case: str) -> None:
    g = stem().node("LeakyRelu")
    first = g.tensor
    features = 480 + 400
    if case == "zeros before":
        g.node("Concat", axis=1)
        g.nodes[-1].input[:] = [g.constant(np.zeros((1, 5, 8, 10))), first]
    elif case == "zeros behind":
        g.node("Concat", g.constant(np.zeros((1, 2, 8, 10))), g.constant(np.zeros((1, 3, 8, 10))), axis=-3)
    elif case == "rows":
        second = wide(g.bipolar())
        rows = []
        for tensor in (first, second):
            g.tensor = tensor
            rows.append(g.node("GlobalAveragePool").node("Flatten").tensor)
        g.tensor, features = rows[0], 11
        g.node("Concat", rows[1], axis=1).norm(11)
    else:
        second = wide(g.bipolar())
        g.bipolar()
        if case == "negated signs":
            g.node("Neg")
        second = g.tensor
        g.tensor = first
        g.bipolar().node("Concat", second, axis=1)
        check(g.node("Flatten").matmul(features, 3), tmp_path)
        return
    check(head(g, features), tmp_path)


def test_what_is_moved_and_moved_back_needs_no_layer(tmp_path: Path) -> None:
    g = shuffled(stem())
    by(by(g, "Reshape", [1, 2, 3, 80]).node("Transpose", perm=[0, 2, 1, 3]), "Reshape", [1, 6, 8, 10])
    model = check(head(g, 480), tmp_path)
    assert not any(isinstance(layer, RealConv2d) for layer in model.layers)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("case", ["cropped", "flattened", "columns, then rows", "tokens", "rows kept"])
def test_pixels_that_become_one(tmp_path: Path, op: str, case: str) -> None:
    def reduced(g: Graph, axis: int, keepdims: int = 0) -> Graph:
        if op == "ReduceSum":
            return by(g, op, [axis], keepdims=keepdims)
        return g.node(op, axes=[axis], keepdims=keepdims)

    g, features = stem(), 6
    if case == "flattened":
        reduced(by(g, "Reshape", [0, 6, -1]), -1)
    elif case == "tokens":
        reduced(by(g, "Reshape", [1, 6, 80]).node("Transpose", perm=[0, 2, 1]), 1)
    elif case == "cropped":
        reduced(reduced(sliced(g, (2, 1, 7, 1), (3, 1, 7, 1)), 3), 2)
    elif case == "rows kept":
        reduced(g, 2, keepdims=1).node("Flatten")
        features = 60
    else:
        reduced(reduced(g, 3), 2)
    if features == 6:
        g.norm(6)
    check(g.bipolar().matmul(features, 3), tmp_path)


@pytest.mark.parametrize("axes", [[2], [3]])
def test_axes_of_one_element_are_squeezed_one_by_one(tmp_path: Path, axes: list[int]) -> None:
    g = stem().node("GlobalAveragePool")
    by(by(g, "Squeeze", axes), "Squeeze", [-1])
    check(g.bipolar().matmul(6, 3), tmp_path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sliced(stem(), (3, -1, LAST, -1)).conv(6, 5), r"\(Conv\): takes \[1, 6, 8, 10\], whose numbers"),
        (lambda: by(stem(), "Reshape", [1, 6, 10, 8]).conv(6, 5), r"\(Conv\): takes \[1, 6, 10, 8\], whose numbers"),
        (lambda: by(stem(), "Reshape", [1, 6, 70]), r"\(Reshape\): reshapes \[1, 6, 8, 10\] to \[1, 6, 70\]"),
        (lambda: by(stem(), "Reshape", [1, 80, 6]).node("ReduceMean", axes=[2]), r"\(ReduceMean\): takes \[1, 80, 6\]"),
        (lambda: shuffled(stem()).node("ReduceMean", axes=[1]), r"\(ReduceMean\): reduces other axes"),
        (lambda: by(stem(), "Gather", [[0, 1]], axis=1), r"\(Gather\): takes numbers by \[1, 2\] of them"),
        (lambda: by(stem(), "Gather", [6], axis=1), r"\(Gather\): its attributes or constants are malformed"),
        (lambda: by(stem(), "Expand", [1, 6, 8, 20]), r"\(Expand\): spreads \[1, 6, 8, 10\] to \[1, 6, 8, 20\]"),
        (
            lambda: by(stem(), "Concat", np.zeros((1, 2, 8, 9)), axis=1),
            r"\(Concat\): joins activations and constants other than zeros",
        ),
        (
            lambda: with_constant(stem(), "Concat", np.ones((1, 2, 8, 10)), axis=1),
            r"\(Concat\): joins activations and constants other than zeros",
        ),
        (
            lambda: stem().bipolar().node("Concat", "t3", axis=1),
            r"\(Concat\): joins signs of whole numbers; only those of real values can be joined",
        ),
        (lambda: stem().node("GlobalAveragePool").node("Squeeze"), r"\(Squeeze\): squeezes the axis of the batch as"),
        (lambda: by(stem(), "Squeeze", [0]), r"\(Squeeze\): squeezes the axis of the batch as well; flatten"),
        (lambda: by(stem(), "GatherND", [[0, 1]]), r"\(GatherND\): takes numbers by \[1, 2\] of them"),
        (lambda: sliced(stem(), (1, 6, 9, 1)), r"\(Slice\): leaves nothing"),
        (lambda: sliced(stem(), (1, 0, 6, 0)), r"\(Slice\): has 1 starts, 1 ends and the steps \[0\]"),
        (
            lambda: shuffled(stem().bipolar().pad(1, -1.0)),
            r"\(Reshape\): takes signs padded with -1; only a convolution or a max pool can",
        ),
        (
            lambda: by(Graph(), "Unsqueeze", [2]).node("Transpose", perm=[0, 2, 1, 3, 4]),
            r"\(Transpose\): moves a thermometer whose levels are no channels yet",
        ),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, build: Callable[[], Graph], message: str) -> None:
    with pytest.raises(ImporterError, match=message):
        read(build().save(tmp_path / "net.onnx"))


def test_a_window_too_large_is_refused() -> None:
    """The upper left of a large map: a convolution would need a window as large as what is left out."""
    whole = np.arange(100 * 100, dtype=np.int32).reshape(1, 1, 100, 100)
    picked = Picked.of(whole[..., :10, :10], (1, 100, 100))
    assert picked is not None
    with pytest.raises(
        builder.RefusalError, match=r"picks 1 channels by windows of \[91, 91\], which are too large"
    ):
        picked.weights(1)


def test_what_moving_costs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MAX_MOVED", 3 * 480)
    check(head(shuffled(stem()), 480), tmp_path)
    for build in (
        lambda g: shuffled(shuffled(g)),
        lambda g: by(g, "Gather", [0] * 19, axis=1),
        lambda g: by(g.bipolar(), "Tile", [1, 4, 1, 1]),
    ):
        with pytest.raises(ImporterError, match=r"moves \d+ numbers so far; at most 1440 can be"):
            read(build(stem()).save(tmp_path / "net.onnx"))


def test_signs_of_chosen_channels_are_made_of_those_alone(tmp_path: Path) -> None:
    model = check(
        by(stem().node("LeakyRelu").bipolar(), "Gather", [5, 2], axis=1).node("Flatten").matmul(160, 3),
        tmp_path,
    )
    assert [layer.channels for layer in model.layers if isinstance(layer, Sign)] == [2]
