"""The stages of a training, one after the other, each epoch by epoch, with a checkpoint after every epoch.

Everything random of an epoch follows from the seed, the stage and the epoch, so a resumed run goes on as an
uninterrupted one would (:mod:`bnn_perception.training.run` keeps it). Distillation is that of Hinton et al.,
arXiv 1503.02531.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bnn_perception.files import replacing
from bnn_perception.training import data as datasets
from bnn_perception.training import head, stages
from bnn_perception.training.batches import Example, count_steps, training_batches
from bnn_perception.training.config import STAGES, Config, ConfigError, StageSpec, resolve_data
from bnn_perception.training.curves import draw_curves
from bnn_perception.training.data import PreparedImages
from bnn_perception.training.distributed import World
from bnn_perception.training.progress import Reporter, duration
from bnn_perception.training.run import (
    VALIDATION,
    append_record,
    drop_records,
    is_new,
    keep_digest,
    load_state,
    read_records,
    save_state,
)
from bnn_perception.training.validation import evaluate, reestimate_batch_norm

#: Epochs between two drawings of the curves while a stage runs.
CURVES_EVERY = 10

#: Steps by which the time of a whole run is first foretold; the ones before them, which warm up, are left out.
WARM_UP, TIMED = 2, 10


@dataclass(frozen=True)
class TrainingData:
    """The images that a run trains on, and those that it chooses weights by.

    Attributes:
        train: real images, followed by ``rendered`` rendered ones.
        validation: real images only.
    """

    train: PreparedImages
    validation: PreparedImages
    rendered: int = 0


def load_data(config: Config, root: str | None, run: Path, reporter: Reporter, world: World) -> TrainingData:
    """Read and split the data, render what is to be rendered (once a run)."""
    if not config.data.train:
        raise ConfigError("data.train: names no folder or .npz file to train on")
    everything = _read(config, root)
    train, validation = datasets.split(everything, config.data.validation, config.seed)
    text = (
        f"data: {len(train)} images of {len(train.names)} classes to train on, {len(validation)} to validate"
    )
    if config.data.rendered:
        with world.main_first():
            train = datasets.concatenate(train, _rendered(config, run, reporter))
        text += f", {config.data.rendered} rendered"
    reporter.line(text)
    path = run / VALIDATION
    if world.is_main:
        keep_digest(run, everything.digest, config.data.train)
    if world.is_main and (is_new(run) or not path.exists()):
        with replacing(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, x=validation.images, y=validation.labels)
    return TrainingData(train, validation, config.data.rendered)


def _read(config: Config, root: str | None) -> PreparedImages:
    """The images of ``data.train`` and ``data.also`` together."""

    def load(path: str, names: Sequence[str]) -> PreparedImages:
        return datasets.load(resolve_data(path, root), config.input, names, config.data.ignore)

    first = load(config.data.train, config.data.labels)
    if not config.data.also:
        return first
    # By the names of the first: folders of other names than its own are refused and not taken for its classes.
    return datasets.concatenate(first, *(load(path, first.names) for path in config.data.also))


def _rendered(config: Config, run: Path, reporter: Reporter) -> PreparedImages:
    path = run / "rendered.npz"
    if not path.exists():
        reporter.line(f"rendering {config.data.rendered} road signs")
        drawn = datasets.render_road_signs(config.data.rendered, config.input, config.seed)
        with replacing(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, x=drawn.images, y=drawn.labels)
    return datasets.load(path, config.input, config.data.labels)


def run_stages(
    config: Config, data: TrainingData, run: Path, reporter: Reporter, world: World
) -> dict[str, nn.Sequential]:
    """Train every stage that has epochs, each from what the one before has learnt.

    Returns:
        The net of each stage, as :func:`run_stage` gives it.
    """
    nets: dict[str, nn.Sequential] = {}
    for stage in STAGES:
        if getattr(config, stage).epochs:
            source = next(reversed(nets.values()), None)
            nets[stage] = run_stage(stage, config, data, run, reporter, world, source, nets.get("float_twin"))
    return nets


def run_stage(
    stage: str,
    config: Config,
    data: TrainingData,
    run: Path,
    reporter: Reporter,
    world: World,
    source: nn.Module | None = None,
    teacher: nn.Module | None = None,
) -> nn.Sequential:
    """Train one stage from its checkpoint, or from the start, to its last epoch.

    Args:
        stage: one of :data:`STAGES`.
        run: the folder of the run.
        source: the trained net of the stage before, to start from; None for the first stage.
        teacher: the trained float twin, for distillation; None where there is none.

    Returns:
        The net with the weights that were chosen by validation accuracy, in evaluation mode, on the CPU.

    Raises:
        ConfigError: where a checkpoint cannot be read or the loss is not finite.
    """
    spec: StageSpec = getattr(config, stage)
    torch.manual_seed(config.seed)  # the initial weights follow from it
    net = stages.build(stage, config.network, len(data.train.names))
    # The order in memory decides how sums are rounded: that of a net which is loaded must be that of a trained one.
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    final = load_state(run / f"{stage}_final.pt")
    if final is not None:
        reporter.line(f"{stage}: is finished, {final['choice']}")
        net.load_state_dict(final["net"])
        return net.eval()
    if source is not None and (spec.from_float or stage == "head"):
        stages.initialise(net, source)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(world.device)
    net = net.to(world.device)
    trainer = _Trainer(stage, config, data, net, teacher, world)
    trainer.resume(run)
    if trainer.epoch:
        reporter.line(f"{stage}: goes on after epoch {trainer.epoch} of {spec.epochs}")
    if world.is_main:
        drop_records(run, stage, trainer.epoch)
    clock = _Clock(trainer, config, reporter)
    with reporter.bar(stage, spec.epochs * trainer.steps, trainer.epoch * trainer.steps) as advance:
        while not trainer.is_done:
            record = trainer.run_epoch(clock.timed(advance))
            if world.is_main:
                append_record(run, record)
                trainer.save(run)
                if trainer.epoch % CURVES_EVERY == 0 or trainer.is_done:
                    draw_curves(read_records(run), run / "curves.png", config.name)
            reporter.line(
                f"{stage} epoch {trainer.epoch}/{spec.epochs}: loss {record['loss']:.4f}, accuracy in training "
                f"{record['train_accuracy']:.4f}, in validation {record['validation_accuracy']:.4f}, "
                f"{record['seconds']:.1f} s{clock.left(record['seconds'])}"
            )
    if trainer.epoch < spec.epochs:
        reporter.line(f"{stage}: no better validation accuracy for {spec.patience} epochs")
    choice = trainer.choose()
    reporter.line(f"{stage}: {choice}")
    net = net.cpu()
    if world.is_main:
        save_state(run / f"{stage}_final.pt", {"net": net.state_dict(), "choice": choice})
    return net


class _Clock:
    """Foretells how long the epochs that are left will take, those of later stages as long as those of this one."""

    def __init__(self, trainer: _Trainer, config: Config, reporter: Reporter) -> None:
        self._trainer, self._config, self._reporter = trainer, config, reporter
        # An epoch of the stage head is a small part of another's.
        later = STAGES[STAGES.index(trainer.stage) + 1 :]
        self._later = sum(getattr(config, stage).epochs for stage in later if stage != "head")
        self._told = trainer.steps <= WARM_UP + TIMED or trainer.epoch >= trainer.spec.epochs

    def timed(self, advance: Callable[[], None]) -> Callable[[], None]:
        """``advance``, which also tells the time once, after the first steps."""
        if self._told:
            return advance
        done, began = 0, 0.0

        def count() -> None:
            nonlocal done, began
            advance()
            done += 1
            if done == WARM_UP:
                began = time.perf_counter()
            if done == WARM_UP + TIMED:
                self._told = True
                epoch = (time.perf_counter() - began) / TIMED * self._trainer.steps
                self._reporter.line(
                    f"{self._trainer.stage}: about {duration(epoch)} an epoch{self.left(epoch)}"
                )

        return count

    def left(self, seconds: float) -> str:
        """A clause on the time that is left, by the seconds of one epoch; empty at the end."""
        trainer = self._trainer
        epochs = self._later + (0 if trainer.is_done else trainer.spec.epochs - trainer.epoch)
        return f", {epochs} epochs, about {duration(epochs * seconds)}, left" if epochs else ""


def learning_rate(spec: StageSpec, epochs_done: float) -> float:
    """Linear warm-up, then by ``spec.schedule``; ``epochs_done`` may be fractional."""
    if epochs_done < spec.warmup:
        return spec.learning_rate * (epochs_done + 0.01) / (spec.warmup + 0.01)
    if spec.schedule == "constant":
        return spec.learning_rate
    begin, end = spec.warmup, float(spec.epochs)
    if spec.restart and epochs_done < spec.restart:
        end = spec.restart
    elif spec.restart:
        begin = spec.restart
    part = min(1.0, (epochs_done - begin) / max(1e-9, end - begin))
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


class _Trainer:
    """Trains the net of one stage, epoch by epoch.

    Attributes:
        epoch: how many epochs have been trained.
        trained: the part of the net that the stage trains: all of it, or its head.
        best: the epoch of the highest validation accuracy: ``accuracy``, ``epoch``, weights ``net``, and ``improved``,
            the first epoch that reached this accuracy. The last of equal epochs is kept: its learning rate is lower.
        steps: batches an epoch.
    """

    def __init__(
        self,
        stage: str,
        config: Config,
        data: TrainingData,
        net: nn.Sequential,
        teacher: nn.Module | None,
        world: World,
    ) -> None:
        self.stage, self.config, self.data, self.net = stage, config, data, net
        self.trained, self.cache = net, None
        if stage == "head":
            trunk, self.trained = head.split(net)
            self.cache = head.CachedBits(trunk, self._augmented)
        self.spec: StageSpec = getattr(config, stage)
        self.teacher, self.world = teacher, world
        self.distillation = self.spec.distillation if teacher is not None else 0.0
        self.optimizer = stages.optimizer(self.trained, self.spec)
        self.parallel = world.parallel(self.trained)
        images = len(self.epoch_indices(np.random.default_rng(0)))
        self.steps = count_steps(images, config.batch, world.size)
        if not self.steps:
            raise ConfigError(
                f"batch: {min(images, config.batch)} images are too few for {world.size} processes; it takes 2 each"
            )
        self.epoch = 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "improved": 0}

    @property
    def is_done(self) -> bool:
        """Whether the last epoch has been trained, or ``patience`` is exhausted."""
        patience = self.spec.patience
        return self.epoch >= self.spec.epochs or 0 < patience <= self.epoch - self.best["improved"]

    def resume(self, run: Path) -> None:
        """Continue from the checkpoint of the run, if there is one."""
        state = load_state(run / f"{self.stage}.pt")
        if state is not None:
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.best = state["epoch"], {**self.best, **state["best"]}

    def save(self, run: Path) -> None:
        """Replace the checkpoint of the run."""
        state = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
        }
        save_state(run / f"{self.stage}.pt", state)

    def epoch_indices(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """The images of one epoch: the real ones, partly balanced, and a share of the rendered ones."""
        config, rendered = self.config, self.data.rendered
        real = len(self.data.train) - rendered
        count = max(real, config.epoch_images)
        indices = datasets.epoch_indices(self.data.train.labels[:real], config.sampling, count, rng)
        share = config.data.rendered_share
        drawn = rng.permutation(rendered)[: round(len(indices) * share / (1 - share))]
        return rng.permutation(np.concatenate([indices, real + drawn]))

    def run_epoch(self, advance: Callable[[], None]) -> dict[str, Any]:
        """Train for one epoch and validate; returns its record.

        Args:
            advance: called after every step.
        """
        began = time.perf_counter()
        loss, train_accuracy = self._train_epoch(advance)
        accuracy = evaluate(self.net, self.data.validation, self.world)
        self.epoch += 1
        if accuracy >= self.best["accuracy"]:
            improved = self.epoch if accuracy > self.best["accuracy"] else self.best["improved"]
            weights = copy.deepcopy(self.net.state_dict())
            self.best = {"accuracy": accuracy, "epoch": self.epoch, "improved": improved, "net": weights}
        return {
            "stage": self.stage,
            "epoch": self.epoch,
            "learning_rate": learning_rate(self.spec, float(self.epoch)),
            "loss": round(loss, 5),
            "train_accuracy": round(train_accuracy, 5),
            "validation_accuracy": accuracy,
            "device": self.world.device_name,
            "seconds": round(time.perf_counter() - began, 2),
        }

    def _train_epoch(self, advance: Callable[[], None]) -> tuple[float, float]:
        """One pass; returns the mean loss and the accuracy on the augmented images."""
        config, world = self.config, self.world
        if self.cache is None:
            examples = self._augmented(self.epoch)
        else:
            rng = np.random.default_rng([_seed(config.seed, "order", self.epoch), world.rank])
            examples = self.cache.examples(self.epoch, self.steps, rng)
        self.parallel.train()
        # Loss and hits are summed on the device: reading them after every step would make it wait.
        sums, seen = torch.zeros(3, dtype=torch.float64, device=world.device), 0
        for step, (inputs, labels, share, teacher_logits) in enumerate(examples):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, self.epoch + step / self.steps)
            with world.autocast(config.precision):
                logits = self.parallel(inputs)
                loss = self._loss(logits, labels, teacher_logits)
            self.optimizer.zero_grad(set_to_none=True)
            (loss * share).backward()
            self.optimizer.step()
            stages.constrain(self.net, self.stage, self.spec)
            sums[0] += loss.detach().double() * len(labels)
            sums[1] += (logits.argmax(dim=1) == labels).sum()
            seen += len(labels)
            advance()
        sums[2] = seen
        world.average_buffers(self.trained)
        loss_sum, correct, count = world.sum(sums).tolist()
        if not math.isfinite(loss_sum):
            raise ConfigError(
                f"{self.stage}: the loss is not finite any more; lower {self.stage}.learning_rate"
            )
        return loss_sum / count, correct / count

    def _augmented(self, epoch: int) -> Iterator[Example]:
        """The augmented examples of an epoch, which follow from its number."""
        config = self.config
        seed = _seed(config.seed, self.stage, epoch)
        indices = self.epoch_indices(np.random.default_rng(seed))
        for images, labels, share in training_batches(
            self.data.train, indices, config.batch, config.augmentation, seed, self.world
        ):
            teacher_logits = None
            if self.teacher is not None and self.distillation:
                with torch.no_grad(), self.world.autocast(config.precision):
                    teacher_logits = self.teacher(images)
            yield Example(images, labels, share, teacher_logits)

    def _loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        spec = self.spec
        loss = functional.cross_entropy(logits, labels, label_smoothing=spec.label_smoothing)
        if teacher_logits is None:
            return loss
        target = functional.log_softmax(teacher_logits / spec.temperature, dim=1)
        student = functional.log_softmax(logits / spec.temperature, dim=1)
        # The gradients of soft targets shrink with the square of the temperature; this makes up for it.
        soft = (
            functional.kl_div(student, target, reduction="batchmean", log_target=True) * spec.temperature**2
        )
        return (1 - self.distillation) * loss + self.distillation * soft

    def choose(self) -> str:
        """Give the net the best weights by validation, and say which they are.

        The candidates are the last epoch and the best one, each with its batch norm as it is and, where the stage says
        so, re-estimated. The best of many epochs is partly the luckiest, and the last has the lowest learning rate:
        another one has to be better by more than one standard error of the validation accuracy.
        """
        candidates: list[tuple[float, str, dict[str, Tensor]]] = []
        last = copy.deepcopy(self.net.state_dict())
        for name, state in (("the last epoch", last), (f"epoch {self.best['epoch']}", self.best["net"])):
            self.net.load_state_dict(state)
            candidates.append((evaluate(self.net, self.data.validation, self.world), name, state))
            if not self.spec.batch_norm_reestimation:
                continue
            order = self.epoch_indices(np.random.default_rng(self.config.seed))
            reestimate_batch_norm(self.net, self.trained, self.data.train, order)
            self.world.average_buffers(self.trained)  # nothing but rounding on machines that differ
            accuracy = evaluate(self.net, self.data.validation, self.world)
            estimated = copy.deepcopy(self.net.state_dict())
            candidates.append((accuracy, f"{name} with batch norm re-estimated", estimated))
        highest = max(accuracy for accuracy, _, _ in candidates)
        error = math.sqrt(highest * (1 - highest) / len(self.data.validation))
        accuracy, name, state = max(  # the first of equals
            candidates, key=lambda candidate: candidate[0] + error * candidate[1].startswith("the last")
        )
        self.net.load_state_dict(state)
        self.net.eval()
        return f"{name} is taken, {accuracy:.4f} in validation"


def _seed(seed: int, stage: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed} {stage} {epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
