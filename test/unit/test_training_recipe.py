"""The training recipe: every part can be switched, and a run survives whatever ends it, on any number of processes."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_perception.training import config as configs
from bnn_perception.training.config import Config, ConfigError, StageSpec

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")

from bnn_perception.cli import execute  # noqa: E402
from bnn_perception.cli import train as tool  # noqa: E402
from bnn_perception.files import replacing  # noqa: E402
from bnn_perception.training import networks, stages  # noqa: E402
from bnn_perception.training.batches import Example, count_steps, training_batches  # noqa: E402
from bnn_perception.training.data import PreparedImages  # noqa: E402
from bnn_perception.training.distributed import World, join  # noqa: E402
from bnn_perception.training.head import COPIES, CachedBits, split  # noqa: E402
from bnn_perception.training.progress import Reporter  # noqa: E402
from bnn_perception.training.run import load_state, locked, open_run, read_records, save_state  # noqa: E402
from bnn_perception.training.train import TrainingData, learning_rate, run_stages  # noqa: E402
from bnn_perception.training.validation import evaluate  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(torch.device("cpu"))

SETTINGS: dict[str, Any] = {
    "input": {"height": 12, "width": 12},
    "network": [
        {"kind": "input_conv2d", "channels": 8, "pool": 2},
        {"kind": "binary_conv2d", "channels": 8, "pool": 2},
        {"kind": "binary_dense", "features": 16},
        {"kind": "output_dense"},
    ],
    "batch": 16,
    "epoch_images": 56,
    "threads": 1,
    "float_twin": {"epochs": 2, "learning_rate": 0.01},
    "activations": {"epochs": 2, "learning_rate": 0.01},
    "binary": {"epochs": 3, "learning_rate": 0.01},
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def config(binary: dict[str, Any] | None = None, **changes: Any) -> Config:
    return configs.from_mapping({**SETTINGS, **changes, "binary": {**SETTINGS["binary"], **(binary or {})}})


def images(count: int, seed: int) -> PreparedImages:
    """Images of two classes: bright at the top, and bright at the bottom."""
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 120, (count, 12, 12, 3)), np.arange(count) % 2
    for image, label in zip(pixels, labels):
        image[6 * label : 6 * label + 6] += 100
    return PreparedImages(
        pixels.astype(np.uint8), labels.astype(np.int64), np.arange(count), ("top", "bottom")
    )


DATA = TrainingData(images(40, 0), images(20, 1))


def train(settings: Config, run: Path) -> dict[str, torch.nn.Sequential]:
    open_run(run, settings)
    return run_stages(settings, DATA, run, Reporter(), ALONE)


def states(run: Path) -> dict[str, Any]:
    return {path.stem: load_state(path) for path in sorted(run.glob("*.pt"))}


def assert_equal(first: Any, second: Any) -> None:
    """Equal to the bit, tensors inside of dictionaries and lists."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_equal(value, second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_equal(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


# -- each part of the recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"binary": {"optimizer": "lion"}}, "binary.optimizer is 'lion'; it can be adam, sgd"),
        ({"binary": {"epochs": 5, "restart": 5}}, "binary.restart is 5; it must be from 0 to 4"),
        ({"activations": {"schedule": "step"}}, "activations.schedule is 'step'; it can be cosine, constant"),
        ({"precision": "float16"}, "precision is 'float16'; it can be auto, float32, bfloat16"),
        ({"float_twin": {"patience": -1}}, "float_twin.patience is -1; it must be from 0"),
        ({"float_twin": {"epochs": 0}}, "float_twin.epochs is 0; it must be from 1"),
        ({"binary": {"latent_clipping": 1}}, "binary.latent_clipping is 1; it must be of type bool"),
    ],
)
def test_configuration_errors_name_the_field(content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configs.from_mapping(content)


def test_without_a_file_activations_become_binary_before_weights() -> None:
    config = configs.default_config("mine", "images")
    assert (config.activations.epochs, config.binary.epochs) == (20, 80)
    assert config.activations.from_float
    short = configs.override(config, epochs=1, float_epochs=None, seed=None, threads=None)
    assert (short.activations.epochs, short.binary.epochs, short.head.epochs) == (1, 1, 0)
    long = configs.override(config, epochs=200, float_epochs=None, seed=None, threads=None)
    assert (long.activations.epochs, long.binary.epochs) == (20, 200)


def test_learning_rate_by_schedule() -> None:
    spec = StageSpec(epochs=10, learning_rate=0.1, warmup=2.0)
    assert 0 < learning_rate(spec, 0.0) < 0.001
    assert learning_rate(spec, 2.0) == 0.1
    assert learning_rate(spec, 6.0) == pytest.approx(0.05)  # half of the cosine
    assert learning_rate(spec, 10.0) == pytest.approx(0.0)
    restarted = replace(spec, epochs=14, restart=10)
    assert [learning_rate(restarted, done) for done in (2.0, 6.0, 9.0)] == [
        learning_rate(spec, done) for done in (2.0, 6.0, 9.0)
    ]
    assert [learning_rate(restarted, done) for done in (10.0, 12.0, 14.0)] == pytest.approx([0.1, 0.05, 0.0])
    constant = replace(spec, schedule="constant")
    assert [learning_rate(constant, done) for done in (2.0, 6.0, 10.0)] == [0.1] * 3


def test_optimizers_decay_weights_alone() -> None:
    net = stages.build("binary", config().network, 2)
    for name, kind in (("adam", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = stages.optimizer(net, StageSpec(1, 0.1, optimizer=name, weight_decay=0.3))
        assert type(optimizer) is kind
        decayed, free = optimizer.param_groups
        assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
        assert {p.dim() for p in decayed["params"]} == {2, 4}
        assert {p.dim() for p in free["params"]} == {1}


@pytest.mark.parametrize("clipping", [True, False])
def test_latent_clipping(clipping: bool) -> None:
    net = stages.build("binary", config().network, 2)
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] = 3.0
    stages.constrain(net, "binary", StageSpec(1, 0.1, latent_clipping=clipping))
    assert net.conv2.weight.max() == (1.0 if clipping else 3.0)


def test_stages_hand_their_weights_on() -> None:
    network = config().network
    twin, activations, binary = (stages.build(stage, network, 2) for stage in configs.STAGES[:3])
    x = torch.rand(16, 3, 12, 12)
    stages.initialise(activations, twin)
    for name in ("conv1", "conv2", "dense1", "output"):
        assert torch.equal(getattr(activations, name).weight, getattr(twin, name).weight)
    seen = []
    activations.conv2.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    activations(x)
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0}  # real weights on binary activations

    torch.nn.init.normal_(activations.conv1_norm.weight)
    stages.initialise(binary, activations)
    for name in ("conv1", "conv2", "dense1", "output"):
        ours, theirs = getattr(binary, name).weight, getattr(activations, name).weight
        assert torch.equal(ours.sign(), theirs.sign())
        assert ours.abs().max() <= 1
    assert torch.equal(binary.conv1_norm.weight, activations.conv1_norm.weight)


def test_a_thermometer_starts_anew_behind_the_float_twin() -> None:
    network = config(network=[{"kind": "thermometer", "levels": 2}, *THERMOMETER_REST]).network
    twin, activations, binary = (stages.build(stage, network, 2) for stage in configs.STAGES[:3])
    before = activations.conv1.weight.clone()
    stages.initialise(activations, twin)
    assert torch.equal(activations.conv1.weight, before)
    assert torch.equal(activations.output.weight, twin.output.weight)
    stages.initialise(binary, activations)
    assert torch.equal(binary.conv1.weight.sign(), before.sign())


THERMOMETER_REST = [{"kind": "binary_conv2d", "channels": 4, "pool": 2}, {"kind": "output_dense"}]


def test_all_stages_run_in_order_and_each_can_be_left_out(tmp_path: Path) -> None:
    nets = train(config(), tmp_path / "three")
    assert list(nets) == ["float_twin", "activations", "binary"]
    assert not networks.is_binary(nets["activations"])
    assert networks.is_binary(nets["binary"])
    assert [record["stage"] for record in read_records(tmp_path / "three")] == (
        ["float_twin"] * 2 + ["activations"] * 2 + ["binary"] * 3
    )
    assert list(train(config(activations={}), tmp_path / "two")) == [
        "float_twin",
        "binary",
    ]


def test_head_stage_trains_the_matrices_alone(tmp_path: Path) -> None:
    nets = train(config(head={"epochs": 3, "learning_rate": 0.01}), tmp_path)
    assert list(nets) == ["float_twin", "activations", "binary", "head"]
    before, after = nets["binary"].state_dict(), nets["head"].state_dict()
    trunk = [name for name in before if name.startswith("conv")]
    assert len(trunk) == 12  # two of each: weights, four of the batch norm, and its counter
    for name in trunk:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["dense1.weight"], after["dense1.weight"])
    assert not torch.equal(before["output.weight"], after["output.weight"])
    assert [record["epoch"] for record in read_records(tmp_path) if record["stage"] == "head"] == [1, 2, 3]


def test_an_interrupted_head_stage_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    settings = config(head={"epochs": COPIES + 2, "learning_rate": 0.01, "distillation": 0.5})
    whole = train(settings, tmp_path)["head"].state_dict()
    for part in ("head_final.pt", "head.pt"):
        (tmp_path / part).unlink()

    class Interrupted(Reporter):
        def line(self, text: str) -> None:
            if text.startswith(f"head epoch {COPIES}/"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(settings, DATA, tmp_path, Interrupted(), ALONE)
    assert_equal(train(settings, tmp_path)["head"].state_dict(), whole)


def test_cached_bits_are_what_the_trunk_makes_of_augmented_images() -> None:
    network = config(
        network=[
            {"kind": "thermometer", "levels": 1},
            {"kind": "binary_conv2d", "channels": 3, "pool": 4},
            {"kind": "output_dense"},
        ]
    ).network
    trunk, _ = split(stages.build("binary", network, 2))  # 27 features: not whole bytes
    asked = []

    def epoch(number: int) -> Iterator[Example]:
        asked.append(number)
        rng = torch.Generator().manual_seed(number)
        for count in (5, 4):
            teacher_logits = torch.rand(count, 2, generator=rng)
            labels = torch.randint(0, 2, (count,), generator=rng)
            yield Example(torch.rand(count, 3, 12, 12, generator=rng), labels, 1.0, teacher_logits)

    cache = CachedBits(trunk, epoch)
    for number in (2, 2 + COPIES):
        first, second = cache.examples(number, 2, np.random.default_rng(number))
        assert {len(first.labels), len(second.labels)} == {5, 4}
        order = torch.from_numpy(np.random.default_rng(number).permutation(9))
        expected = [torch.cat(parts)[order] for parts in zip(*((trunk(x), y, o) for x, y, _, o in epoch(2)))]
        for got, wanted in zip(
            (
                [first.inputs, second.inputs],
                [first.labels, second.labels],
                [first.teacher_logits, second.teacher_logits],
            ),
            expected,
        ):
            assert torch.equal(torch.cat(got), wanted)
    assert asked == [2, 2, 2]  # once for the cache, which the second round took from


def test_a_finished_stage_is_loaded_as_it_was(tmp_path: Path) -> None:
    trained, loaded = (train(config(), tmp_path) for _ in range(2))
    for stage, net in trained.items():
        assert_equal(net.state_dict(), loaded[stage].state_dict())
        # Another order in memory would round sums in another way, and stages after this one would end elsewhere.
        assert [p.stride() for p in net.parameters()] == [p.stride() for p in loaded[stage].parameters()]


def test_patience_stops_a_stage_and_the_stage_stays_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = config({"epochs": 50, "patience": 3}, activations={})
    train(patient, tmp_path)
    output = capsys.readouterr().out
    records = [record for record in read_records(tmp_path) if record["stage"] == "binary"]
    accuracies = [record["validation_accuracy"] for record in records]
    assert len(records) == accuracies.index(max(accuracies)) + 1 + 3 < 50
    assert "binary: no better validation accuracy for 3 epochs" in output
    # Interrupted between the last checkpoint and the choice of weights.
    final = load_state(tmp_path / "binary_final.pt")
    (tmp_path / "binary_final.pt").unlink()
    train(patient, tmp_path)
    assert [record for record in read_records(tmp_path) if record["stage"] == "binary"] == records
    assert_equal(load_state(tmp_path / "binary_final.pt"), final)


def test_batch_norm_reestimation_can_be_left_out(tmp_path: Path) -> None:
    # The few steps of one epoch leave running statistics behind that are far from the data's.
    off = {"epochs": 1, "batch_norm_reestimation": False}
    with_it = train(config({"epochs": 1}, activations={}), tmp_path / "on")
    without = train(config(off, activations={}), tmp_path / "off")
    choices = [load_state(tmp_path / name / "binary_final.pt")["choice"] for name in ("on", "off")]  # type: ignore[index]
    assert "re-estimated" not in choices[1]
    assert evaluate(with_it["binary"], DATA.validation, ALONE) >= evaluate(
        without["binary"], DATA.validation, ALONE
    )


def test_bfloat16_trains_and_measures_in_float32(tmp_path: Path) -> None:
    dtypes = set()
    torch.nn.modules.module.register_module_forward_hook(
        lambda module, _inputs, output: dtypes.add((module.training, type(module).__name__, output.dtype))
    )
    half = config(precision="bfloat16", activations={})
    try:
        net = train(half, tmp_path)["binary"]
    finally:
        torch.nn.modules.module._global_forward_hooks.clear()
    assert (True, "BinaryWeightConv2d", torch.bfloat16) in dtypes
    assert (False, "BinaryWeightConv2d", torch.float32) in dtypes
    assert (False, "BinaryWeightConv2d", torch.bfloat16) not in dtypes
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert (
        evaluate(net, DATA.validation, ALONE) >= 0.8
    )  # half of the image is bright: anything that learns sees it
    assert not ALONE.uses_bfloat16("auto")
    assert ALONE.describe("auto") == "CPU, float32"


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(config(), tmp_path / name)
    train(config(seed=2), tmp_path / "c")
    assert_equal(states(tmp_path / "a"), states(tmp_path / "b"))
    first, other = (load_state(tmp_path / name / "binary_final.pt")["net"] for name in "ac")  # type: ignore[index]
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


# -- devices and processes


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device cuda: PyTorch sees no GPU"), join("cuda"):
        pass
    with join("auto") as world:
        assert world == ALONE


def test_processes_share_every_batch() -> None:
    indices, spec = np.arange(40), config().augmentation
    parts = [
        list(training_batches(DATA.train, indices, 15, spec, 3, World(torch.device("cpu"), rank, 2)))
        for rank in range(2)
    ]
    assert count_steps(40, 15, 2) == len(parts[0]) == len(parts[1]) == 3
    for step, (first, second) in enumerate(zip(*parts)):
        whole = torch.from_numpy(DATA.train.labels[step * 15 : step * 15 + 15])
        assert torch.equal(first.labels, whole[0::2])
        assert torch.equal(second.labels, whole[1::2])
        # The mean over all images is the mean of the parts' means, weighted so.
        assert first.share == pytest.approx(2 * len(first.labels) / len(whole))
        assert first.share + second.share == pytest.approx(2.0)
    assert count_steps(33, 16, 1) == 2  # batch norm cannot take the 33rd image alone
    assert count_steps(35, 16, 2) == 2


PROGRAM = """
import sys
from pathlib import Path

import torch

sys.path[:0] = [{tests!r}]
from test_training_recipe import DATA, config
from training_cases import Stopping

from bnn_perception.training.distributed import join
from bnn_perception.training.progress import Reporter
from bnn_perception.training.run import open_run
from bnn_perception.training.train import run_stages

folder = Path(sys.argv[1])
torch.set_num_threads(1)
with join("cpu") as world:
    for name in ("whole", "parts"):
        with world.main_first():
            open_run(folder / name, config())
    nets = run_stages(config(), DATA, folder / "whole", Reporter(quiet=not world.is_main), world)
    try:
        run_stages(config(), DATA, folder / "parts", Stopping(22), world)
        raise RuntimeError("it was not stopped")
    except KeyboardInterrupt:
        pass
    again = run_stages(config(), DATA, folder / "parts", Reporter(quiet=True), world)
    ends = [net.state_dict() for net in (*nets.values(), *again.values())]
    torch.save(ends, folder / f"rank{{world.rank}}.pt")
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def test_two_processes_train_one_net(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(program), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("binary epoch 3/3")]) == 1  # one of them prints

    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert_equal(first, second)  # each process ends with the same nets
    assert_equal(first[:3], first[3:])  # and so does the run that was stopped
    assert len(read_records(tmp_path / "whole")) == 7

    train(config(), tmp_path / "alone")
    one, two = (load_state(tmp_path / name / "binary.pt") for name in ("alone", "whole"))
    steps = [state["optimizer"]["state"][0]["step"] for state in (one, two)]  # type: ignore[index]
    assert steps == [12, 12]  # 56 images, 16 a batch, 3 epochs


def test_batch_norms_of_many_gpus_share_the_tensors_of_one() -> None:
    """What :meth:`World.parallel` relies on where it makes SyncBatchNorm, which has no CPU version to run."""
    import copy

    net = stages.build("float_twin", config().network, 2)
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    tree = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net, shared))
    assert isinstance(tree.conv1_norm, torch.nn.SyncBatchNorm)
    assert isinstance(net.conv1_norm, torch.nn.BatchNorm2d)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        assert dict((*tree.named_parameters(), *tree.named_buffers()))[name] is tensor


# -- what ends a run


def test_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "binary.pt"
    save_state(path, {"epoch": 1})
    (tmp_path / ".binary.pt.partial").symlink_to("/dev/full")  # where the next one is written first
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_state(path, {"epoch": 2})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert load_state(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["binary.pt"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".binary.pt.partial").write_bytes(b"cut sh")
    with locked(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_a_run_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with locked(run):
            os.write(writer, b"!")
            signal.pause()
    try:
        os.read(reader, 1)
        (run / ".binary.pt.partial").write_bytes(b"not yet wh")
        with pytest.raises(ConfigError, match=r"run: another process is training in it; .* --run"):
            locked(run).__enter__()
        assert (run / ".binary.pt.partial").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with locked(run):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), locked(tmp_path):
        pass


def test_a_run_of_a_version_with_fewer_fields_goes_on(tmp_path: Path) -> None:
    import yaml

    open_run(tmp_path, config(activations={}))
    path = tmp_path / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["activations"], content["precision"], content["binary"]["patience"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    open_run(tmp_path, config(activations={}))
    with pytest.raises(ConfigError, match="holds a run with activations.epochs"):
        open_run(tmp_path, config())


def test_an_interrupted_file_is_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments of ``train`` for a folder of images; its nets are large enough to be caught while they are written."""
    for module in ("brevitas", "onnx", "onnxruntime", "cv2"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra [train])")
    import cv2
    import yaml

    for index, (pixels, label) in enumerate(zip(DATA.train.images, DATA.train.labels)):
        folder = tmp_path / "images" / DATA.train.names[label]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    layers = [*SETTINGS["network"][:2], {"kind": "binary_dense", "features": 512}, {"kind": "output_dense"}]
    content = {**SETTINGS, "network": layers, "data": {"train": "images"}, "name": "tiny"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = ["--data", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "model"), "--run"]
    return [str(tmp_path / "tiny.yaml"), *arguments]


COMMAND = [sys.executable, "-m", "bnn_perception", "train"]


def test_ctrl_c_at_any_moment_loses_nothing(tmp_path: Path, words: list[str]) -> None:
    whole, run = tmp_path / "whole", tmp_path / "parts"
    assert execute(tool, "train", [*words, str(whole)]) == 0
    # Where tests run as a job of a shell SIGINT may be ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(0)
    for epochs in (1, 4):  # that are behind when it is stopped
        process = subprocess.Popen(
            [*COMMAND, *words, str(run)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and len(read_records(run)) < epochs:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))  # somewhere in an epoch, or in its checkpoint
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert "the same command goes on after the last whole epoch" in output
        assert len(read_records(run)) >= epochs
    signal.signal(signal.SIGINT, before)
    assert execute(tool, "train", [*words, str(run)]) == 0
    assert_equal(states(run), states(whole))
    records = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in read_records(folder)]
        for folder in (run, whole)
    ]
    assert records[0] == records[1]
    assert not list(run.glob(".*.partial"))


#: Runs a command that can write no file of more than so many bytes.
LIMITED = (
    "import os, resource, sys; limit = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); os.execv(sys.argv[2], sys.argv[2:])"
)


def test_a_checkpoint_that_does_not_fit_ends_with_one_line(tmp_path: Path, words: list[str]) -> None:
    """A limit on the size of files stands for the disk; writing then fails in the same way."""
    run = tmp_path / "run"
    limit = "300000"  # more than all other files need, less than a checkpoint with its two moments
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, *COMMAND, *words, str(run)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bnn_perception train:")]
    assert "run/float_twin.pt: File too large; the same command goes on after the last whole epoch" in line
    assert "Traceback" not in done.stderr
    left = sorted(file.name for file in run.iterdir())
    assert left == ["config.yaml", "data.sha256", "lock", "records.jsonl", "validation.npz"]
    assert execute(tool, "train", [*words, str(run)]) == 0
    assert [record["epoch"] for record in read_records(run)] == [1, 2, 1, 2, 1, 2, 3]
