"""The two stages of training: the float twin, then the binary net with the float twin as its teacher.

Distillation is that of Hinton et al., arXiv 1503.02531. Everything random of an epoch follows from the seed, the
stage and the epoch, so a resumed run goes on as an uninterrupted one would
(:mod:`bnn_perception.training.run` keeps it).
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bnn_perception.training import data as datasets
from bnn_perception.training import networks
from bnn_perception.training.config import Config, ConfigError, StageSpec, resolve_data
from bnn_perception.training.curves import draw_curves
from bnn_perception.training.data import Dataset
from bnn_perception.training.progress import Reporter
from bnn_perception.training.run import (
    append_record,
    drop_records,
    load_state,
    read_records,
    replacing,
    save_state,
)

#: How often the curves are drawn while a stage runs, epochs.
CURVES_EVERY = 10


@dataclass(frozen=True)
class TrainingData:
    """What one run trains on and chooses by.

    Attributes:
        train: real images, and behind them ``rendered`` rendered ones.
        validation: real images only.
    """

    train: Dataset
    validation: Dataset
    rendered: int = 0


def load_data(config: Config, root: str | None, run: Path, reporter: Reporter) -> TrainingData:
    """Read and split the data, render what is to be rendered (once a run)."""
    if not config.data.train:
        raise ConfigError("data.train: names no folder or .npz file to train on")
    everything = datasets.load(
        resolve_data(config.data.train, root), config.input, config.data.labels, config.data.ignore
    )
    train, validation = datasets.split(everything, config.data.validation, config.seed)
    text = (
        f"data: {len(train)} images of {len(train.names)} classes to train on, {len(validation)} to validate"
    )
    if config.data.rendered:
        train = datasets.concatenate(train, _rendered(config, run, reporter))
        text += f", {config.data.rendered} rendered"
    reporter.line(text)
    path = run / "validation.npz"
    if not path.exists():
        with replacing(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, x=validation.images, y=validation.labels)
    return TrainingData(train, validation, config.data.rendered)


def _rendered(config: Config, run: Path, reporter: Reporter) -> Dataset:
    path = run / "rendered.npz"
    if not path.exists():
        reporter.line(f"rendering {config.data.rendered} road signs")
        drawn = datasets.render_road_signs(config.data.rendered, config.input, config.seed)
        with replacing(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, x=drawn.images, y=drawn.labels)
    return datasets.load(path, config.input, config.data.labels)


def run_stage(
    stage: str, config: Config, data: TrainingData, run: Path, teacher: nn.Module | None, reporter: Reporter
) -> nn.Sequential:
    """Train one stage from its checkpoint, or from the start, to its last epoch.

    Args:
        stage: ``float_twin`` or ``binary``: a field of the configuration.
        run: the folder of the run.
        teacher: the trained float twin, for distillation; None where there is none.

    Returns:
        The net with the weights that were chosen by validation accuracy, in evaluation mode.

    Raises:
        ConfigError: where a checkpoint cannot be read or the loss is not finite.
    """
    spec: StageSpec = getattr(config, stage)
    classes = len(data.train.names)
    torch.manual_seed(config.seed)  # of the initial weights
    build = networks.build_binary if stage == "binary" else networks.build_float
    net = build(config.network, classes)
    final = load_state(run / f"{stage}_final.pt")
    if final is not None:
        reporter.line(f"{stage}: is finished, {final['choice']}")
        net.load_state_dict(final["net"])
        return net.eval()
    if stage == "binary" and spec.from_float and teacher is not None:
        networks.initialise_from_float(net, teacher)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed, free = networks.parameter_groups(net)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=spec.learning_rate,
    )
    start, best = 0, {"accuracy": -1.0, "epoch": 0, "net": copy.deepcopy(net.state_dict())}
    checkpoint = load_state(run / f"{stage}.pt")
    if checkpoint is not None:
        net.load_state_dict(checkpoint["net"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start, best = checkpoint["epoch"], checkpoint["best"]
        reporter.line(f"{stage}: goes on after epoch {start} of {spec.epochs}")
    drop_records(run, stage, start)
    trainer = _Trainer(stage, config, data, net, optimizer, teacher)
    with reporter.bar(stage, spec.epochs * trainer.steps, start * trainer.steps) as advance:
        for epoch in range(start, spec.epochs):
            began = time.perf_counter()
            loss, train_accuracy = trainer.train_epoch(epoch, advance)
            accuracy = evaluate(net, data.validation)
            if accuracy >= best["accuracy"]:  # the later of two equals: its learning rate is lower
                best = {"accuracy": accuracy, "epoch": epoch + 1, "net": copy.deepcopy(net.state_dict())}
            save_state(
                run / f"{stage}.pt",
                {
                    "net": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch + 1,
                    "best": best,
                },
            )
            seconds = time.perf_counter() - began
            record = {
                "stage": stage,
                "epoch": epoch + 1,
                "learning_rate": learning_rate(spec, epoch + 1.0),
                "loss": round(loss, 5),
                "train_accuracy": round(train_accuracy, 5),
                "validation_accuracy": accuracy,
                "seconds": round(seconds, 2),
            }
            append_record(run, record)
            reporter.line(
                f"{stage} epoch {epoch + 1}/{spec.epochs}: loss {loss:.4f}, accuracy in training "
                f"{train_accuracy:.4f}, in validation {accuracy:.4f}, {seconds:.1f} s"
            )
            if (epoch + 1) % CURVES_EVERY == 0 or epoch + 1 == spec.epochs:
                draw_curves(read_records(run), run / "curves.png", config.name)
    choice = trainer.choose(best)
    reporter.line(f"{stage}: {choice}")
    save_state(run / f"{stage}_final.pt", {"net": net.state_dict(), "choice": choice})
    return net


def learning_rate(spec: StageSpec, epochs_done: float) -> float:
    """Linear warm-up, then cosine to 0; ``epochs_done`` may be fractional."""
    if epochs_done < spec.warmup:
        return spec.learning_rate * (epochs_done + 0.01) / (spec.warmup + 0.01)
    rest = max(1e-9, spec.epochs - spec.warmup)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (epochs_done - spec.warmup) / rest)))


class _Trainer:
    """Trains one net, epoch by epoch."""

    def __init__(
        self,
        stage: str,
        config: Config,
        data: TrainingData,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        teacher: nn.Module | None,
    ) -> None:
        self.stage, self.config, self.data, self.net = stage, config, data, net
        self.spec: StageSpec = getattr(config, stage)
        self.optimizer, self.teacher = optimizer, teacher
        self.distillation = self.spec.distillation if teacher is not None else 0.0
        self.steps = math.ceil(len(self.epoch_indices(np.random.default_rng(0))) / config.batch)

    def epoch_indices(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """The images of one epoch: the real ones, partly balanced, and a share of the rendered ones."""
        config, rendered = self.config, self.data.rendered
        real = len(self.data.train) - rendered
        count = max(real, config.epoch_images)
        indices = datasets.epoch_indices(self.data.train.labels[:real], config.sampling, count, rng)
        share = config.data.rendered_share
        drawn = rng.permutation(rendered)[: round(len(indices) * share / (1 - share))]
        return rng.permutation(np.concatenate([indices, real + drawn]))

    def train_epoch(self, epoch: int, advance: Any) -> tuple[float, float]:
        """One pass; returns the mean loss and the accuracy on the augmented images."""
        seed = _seed(self.config.seed, self.stage, epoch)
        indices = self.epoch_indices(np.random.default_rng(seed))
        batches = datasets.batches(
            self.data.train, indices, self.config.batch, self.config.augmentation, seed
        )
        self.net.train()
        loss_sum = correct = seen = 0.0
        for step, (images, labels) in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, epoch + step / self.steps)
            logits = self.net(images)
            loss = self._loss(images, logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            networks.clip(self.net)
            loss_sum += loss.item() * len(labels)
            correct += float((logits.argmax(dim=1) == labels).sum())
            seen += len(labels)
            advance()
        if not math.isfinite(loss_sum):
            raise ConfigError(
                f"{self.stage}: the loss is not finite any more; lower {self.stage}.learning_rate"
            )
        return loss_sum / seen, correct / seen

    def _loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        spec = self.spec
        loss = functional.cross_entropy(logits, labels, label_smoothing=spec.label_smoothing)
        if not self.distillation or self.teacher is None:
            return loss
        with torch.no_grad():
            target = functional.log_softmax(self.teacher(images) / spec.temperature, dim=1)
        student = functional.log_softmax(logits / spec.temperature, dim=1)
        # The gradients of soft targets shrink with the square of the temperature; this makes up for it.
        soft = (
            functional.kl_div(student, target, reduction="batchmean", log_target=True) * spec.temperature**2
        )
        return (1 - self.distillation) * loss + self.distillation * soft

    def choose(self, best: dict[str, Any]) -> str:
        """Give the net the best weights by validation, of: the last and the best epoch, each with its batch norm as
        it is and re-estimated. Returns which they were."""
        candidates: list[tuple[float, str, dict[str, Tensor]]] = []
        last = copy.deepcopy(self.net.state_dict())
        for name, state in (("the last epoch", last), (f"epoch {best['epoch']}", best["net"])):
            self.net.load_state_dict(state)
            candidates.append((evaluate(self.net, self.data.validation), name, state))
            order = self.epoch_indices(np.random.default_rng(self.config.seed))
            reestimate_batch_norm(self.net, self.data.train, order)
            accuracy, estimated = (
                evaluate(self.net, self.data.validation),
                copy.deepcopy(self.net.state_dict()),
            )
            candidates.append((accuracy, f"{name} with batch norm re-estimated", estimated))
        accuracy, name, state = max(candidates, key=lambda candidate: candidate[0])  # the first of equals
        self.net.load_state_dict(state)
        self.net.eval()
        return f"{name} is best in validation, {accuracy:.4f}"


def _seed(seed: int, stage: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed} {stage} {epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@torch.no_grad()
def predict(net: nn.Module, data: Dataset, batch: int = 256) -> Tensor:
    """(N, classes) logits of each image, in evaluation mode."""
    net.eval()
    everything = np.arange(len(data))
    return torch.cat([net(images) for images, _ in datasets.batches(data, everything, batch, None, 0)])


def evaluate(net: nn.Module, data: Dataset) -> float:
    """Accuracy, 0 to 1, in evaluation mode."""
    return float((predict(net, data).argmax(dim=1) == torch.from_numpy(data.labels)).float().mean())


@torch.no_grad()
def reestimate_batch_norm(net: nn.Module, data: Dataset, order: NDArray[np.intp], batch: int = 256) -> None:
    """Replace the running means and variances by those of the training images as the final weights see them.

    While the weights move, the running averages lag behind; in a binary net a threshold that lags is a wrong bit.
    The images are taken as they are, without augmentation, as the camera will show them.

    Args:
        net: left in evaluation mode.
        data, order: which images, in random order.
        batch: their number at a time; a smaller last batch is left out, because every batch counts the same.
    """
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    net.train()
    for images, _ in datasets.batches(data, order[: len(order) // batch * batch or None], batch, None, 0):
        net(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()
