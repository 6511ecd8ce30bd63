"""The training loop: one for training from scratch, for searching with gates, and for fine-tuning."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from pruning.data import ImageTask
from pruning.distributed import (
    average_gradients_,
    batchnorm_over_all,
    copy_from_first_,
    is_first,
    mean_over_all,
    number_from_first,
    own_share,
    require_shares,
    sum_over_all,
)
from pruning.errors import DivergenceError, SettingError
from pruning.models import class_scores
from pruning.precision import FORMATS, Precision, choose_precision
from pruning.training_state import restore_, save_state, weights_digest


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: highest learning rate; reached after `warm_up`.
        warm_up: share of the steps during which the learning rate rises.
        falls: whether it then falls to 0 along a cosine, or stays: a search leaves the fall to the fine-tuning.
        momentum: of SGD with Nesterov's momentum.
        weight_decay: of weights; not of biases, norms or gates.
        largest_gradient: norm to which the gradient of all the network's weights together is bounded. Trained
            networks differ in how steep they are: MobileNetV2 with weights dequantised from 8 bits has norms
            of 40 and falls apart at rates that others recover best at.
        label_smoothing: of the cross-entropy.
        distillation: share of the teacher in the loss, in [0, 1], where there is a teacher.
        temperature: softness of the teacher's scores.
        seed: seed of the training.
        first_epoch: passes that earlier trainings of the network have made: order and variation of the images go on
            from there, so that a fine-tuning sees other crops than the search before it.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.05
    warm_up: float = 0.15
    falls: bool = True
    momentum: float = 0.9
    weight_decay: float = 5e-4
    largest_gradient: float = 1.0
    label_smoothing: float = 0.0
    distillation: float = 0.7
    temperature: float = 3.0
    seed: int = 0
    first_epoch: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot train anything."""
        # Batches of one image have no spread for BatchNorm to divide by.
        least = {"epochs": 0, "batch_size": 2, "weight_decay": 0, "seed": 0, "first_epoch": 0}
        for name, lowest in least.items():
            _require(name, getattr(self, name), getattr(self, name) >= lowest, f"{lowest} or more")
        for name in ("warm_up", "momentum", "label_smoothing"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("learning_rate", "largest_gradient", "temperature"):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a number above 0")
        _require("distillation", self.distillation, 0 <= self.distillation <= 1, "between 0 and 1")

    def factor(self, progress: float) -> float:
        """Learning rate at a share of the training, relative to the highest."""
        if progress < self.warm_up:
            return max(progress / self.warm_up, 0.02)
        if not self.falls:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))

    def travel(self, n_steps: int) -> float:
        """How far a parameter whose gradient is 1 throughout moves in so many steps, at a highest rate of 1."""
        return sum(self.factor(step / n_steps) for step in range(n_steps)) / (1 - self.momentum)


_PROCESS_SEEDS = 1_000_003
"""Apart from the seeds of all epochs, so that no two processes draw alike."""


def _require(name: str, value: float, allowed: bool, values: str) -> None:
    if not allowed:
        raise SettingError(f"the training's {name.replace('_', ' ')} is {values}; got {value}.")


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch of a training.

    Attributes:
        epoch: epochs done.
        train_loss: mean loss.
        test_accuracy: top-1 accuracy on the test images, in [0, 1]; never used to choose anything.
        seconds: time of the epoch, evaluation included.
        latency_ms: predicted latency of the network with its gates as they are; None without gates.
    """

    epoch: int
    train_loss: float
    test_accuracy: float
    seconds: float
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingHistory:
    """What happened during a training.

    Attributes:
        rows: one an epoch.
        precision: number format trained in.
        step_seconds: seconds of a timed step in each format that was tried, by its name.
    """

    rows: tuple[EpochRow, ...]
    precision: Precision
    step_seconds: Mapping[str, float]

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as JSON values."""
        return [asdict(row) for row in self.rows]


class Objective(Protocol):
    """A further term of the loss, with parameters to train.

    Checkpoints hold the network's state only: what an objective trains, or keeps from step to step, belongs
    to a module inside the network.
    """

    def penalty(self, progress: float) -> Tensor:
        """The term, [], after the network's forward pass, at a share of the training in [0, 1]."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups for the objective's own parameters, `lr` being the highest."""
        ...

    def latency_ms(self) -> float:
        """Predicted latency as it stands, for display and history."""
        ...


def train(
    network: nn.Module,
    task: ImageTask,
    config: TrainingConfig,
    *,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    checkpoint: Path | None = None,
    title: str | None = None,
    identity: str = "",
) -> TrainingHistory:
    """Train a network in place, on the device its parameters are on.

    After every epoch the state is saved to `checkpoint`; called again with the same arguments, the
    training goes on from there and ends as if it had never been interrupted.

    Args:
        network: the network; ends in evaluation mode.
        task: the data.
        config: how to train.
        teacher: network whose scores are imitated, in evaluation mode; left as it is.
        objective: a further term of the loss.
        checkpoint: file of the training's state; None keeps none.
        title: shown beside a progress bar; None shows none.
        identity: what else decides the training, such as the budget of an objective: a checkpoint of
            another one is refused.

    Raises:
        DivergenceError: the loss is no longer a number.
        CheckpointError: the checkpoint is damaged or of another training.
        StorageError: the checkpoint cannot be written.
    """
    require_shares(min(config.batch_size, task.n_train))
    torch.manual_seed(config.seed)
    optimiser = make_optimiser(network, config, objective)
    belongs = {
        "config": asdict(config),
        "data": task.record(),
        "starting weights": weights_digest(network),
        "identity": identity,
    }
    rows, precision, seconds = _started(network, optimiser, config, task, checkpoint, belongs)
    copy_from_first_(network)
    networks = [network] if teacher is None else [network, teacher.eval()]
    for each in networks:
        precision.lay_out_(each)
    loop = TrainingLoop(network, task, config, teacher, objective, optimiser, precision)
    n_steps = task.steps_per_epoch(config.batch_size)
    bar = tqdm(
        total=n_steps * config.epochs,
        initial=n_steps * len(rows),
        desc=title,
        unit="step",
        disable=title is None or not is_first(),
    )
    with bar, batchnorm_over_all(network):
        for epoch in range(len(rows), config.epochs):
            rows.append(loop.epoch(epoch, bar))
            if checkpoint is not None and is_first():
                save_state(checkpoint, network, optimiser, belongs | _progress(rows, precision, seconds))
    for each in networks:
        Precision().lay_out_(each)
    network.eval()
    return TrainingHistory(tuple(rows), precision, seconds)


def accuracy(network: nn.Module, task: ImageTask, precision: Precision | None = None) -> float:
    """Top-1 accuracy on the task's test images, in [0, 1]; the network ends in evaluation mode."""
    network.eval()
    precision = precision or Precision()
    device = next(network.parameters()).device
    n_right = 0
    with torch.no_grad():
        for images, labels in task.test_batches(share=own_share()):
            with precision.context(device):
                scores = class_scores(network(precision.images(images.to(device))))
            n_right += int((scores.argmax(dim=1).cpu() == labels).sum())
    return sum_over_all(n_right) / task.n_test


@dataclass(slots=True)
class TrainingLoop:
    """One training's parts, and its steps.

    Attributes:
        network: the network in training, in the layout of `precision`.
        task: the data.
        config: how to train.
        teacher: network whose scores are imitated, in the same layout; None is none.
        objective: a further term of the loss; None is none.
        optimiser: with each group's highest learning rate as `highest_lr`.
        precision: number format and layout.
    """

    network: nn.Module
    task: ImageTask
    config: TrainingConfig
    teacher: nn.Module | None
    objective: Objective | None
    optimiser: torch.optim.Optimizer
    precision: Precision

    def epoch(self, epoch: int, bar: "tqdm[Any]") -> EpochRow:
        """Train for one epoch, counted from 0, and measure the accuracy."""
        start, losses = time.perf_counter(), []
        n_steps = self.task.steps_per_epoch(self.config.batch_size)
        self.network.train()
        visit = self.config.first_epoch + epoch
        # Dropout: the same whether resumed or not, another one in each process.
        torch.manual_seed(self.config.seed + visit + _PROCESS_SEEDS * own_share().index)
        batches = self.task.train_batches(visit, self.config.batch_size, own_share())
        for step, (images, labels) in enumerate(batches):
            progress = (epoch + step / n_steps) / self.config.epochs
            losses.append(self.step(images, labels, progress))
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(self._shown(losses), refresh=False)
        test_accuracy = accuracy(self.network, self.task, self.precision)
        latency_ms = self.objective.latency_ms() if self.objective else None
        bar.set_postfix(self._shown(losses) | {"accuracy": f"{test_accuracy:.4f}"})
        mean_loss = sum(losses) / len(losses)
        return EpochRow(epoch + 1, mean_loss, test_accuracy, time.perf_counter() - start, latency_ms)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> float:
        """Train on one batch, or this process's share of it, at a share of the training; the batch's loss.

        Raises:
            DivergenceError: the loss is no longer a number.
        """
        device = next(self.network.parameters()).device
        images, labels = self.precision.images(images.to(device)), labels.to(device)
        for group in self.optimiser.param_groups:
            group["lr"] = group["highest_lr"] * self.config.factor(progress)
        loss = self._loss(images, labels)
        if self.objective is not None:
            loss = loss + self.objective.penalty(progress)
        value = mean_over_all(float(loss.detach()))
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss became {value} at {progress:.0%} of the training; give a lower learning rate than "
                f"{self.config.learning_rate:g}, or check the weights and the normalisation."
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients_(p for group in self.optimiser.param_groups for p in group["params"])
        own = [p for group in self.optimiser.param_groups if group["own"] for p in group["params"]]
        nn.utils.clip_grad_norm_(own, self.config.largest_gradient)
        self.optimiser.step()
        return value

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        config, device = self.config, images.device
        with self.precision.context(device):
            scores = class_scores(self.network(images)).float()
        loss = F.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None or config.distillation == 0:
            return loss
        with torch.no_grad(), self.precision.context(device):
            wanted = class_scores(self.teacher(images)).float()
        return (1 - config.distillation) * loss + config.distillation * distillation_loss(
            scores, wanted, config.temperature
        )

    def _shown(self, losses: list[float]) -> dict[str, str]:
        recent = losses[-20:]
        shown = {"loss": f"{sum(recent) / len(recent):.3f}"}
        return shown | ({"ms": f"{self.objective.latency_ms():.3f}"} if self.objective else {})


def distillation_loss(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from a teacher's softened scores, [], times the temperature squared.

    Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.

    Args:
        scores: the network's, [n, n_classes].
        wanted: the teacher's, [n, n_classes].
        temperature: above 0.
    """
    student = F.log_softmax(scores / temperature, dim=1)
    teacher = F.log_softmax(wanted / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def make_optimiser(
    network: nn.Module, config: TrainingConfig, objective: Objective | None
) -> torch.optim.Optimizer:
    """SGD on the network's parameters and the objective's, `highest_lr` in each of its groups."""
    groups: list[dict[str, Any]] = objective.parameter_groups() if objective else []
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    own = [p for p in network.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": config.weight_decay, "own": True},
        {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, "own": True},
        *groups,
    ]
    groups = [{"lr": config.learning_rate, "own": False, **group} for group in groups if group["params"]]
    optimiser = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
    )
    for group in optimiser.param_groups:
        group["highest_lr"] = group["lr"]
    return optimiser


def _started(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: TrainingConfig,
    task: ImageTask,
    checkpoint: Path | None,
    belongs: Mapping[str, Any],
) -> tuple[list[EpochRow], Precision, dict[str, float]]:
    """Epochs done, number format and its timings, from the checkpoint or from the start."""
    record = restore_(checkpoint, network, optimiser, belongs) if checkpoint is not None else None
    if record is None:
        return [], *_timed_precision(network, task, config)
    rows = [EpochRow(**row) for row in record["rows"]]
    return rows, Precision(**record["precision"]), dict(record["step_seconds"])


def _timed_precision(
    network: nn.Module, task: ImageTask, config: TrainingConfig
) -> tuple[Precision, dict[str, float]]:
    if not config.epochs:
        return Precision(), {}
    images, _ = next(iter(task.train_batches(0, config.batch_size, own_share())))
    chosen, seconds = choose_precision(network, images.to(next(network.parameters()).device))
    return FORMATS[number_from_first(FORMATS.index(chosen))], seconds


def _progress(
    rows: Iterable[EpochRow], precision: Precision, step_seconds: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "rows": [asdict(row) for row in rows],
        "precision": precision.to_json(),
        "step_seconds": dict(step_seconds),
    }
