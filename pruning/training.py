"""The training loop: one for training from scratch, for searching with gates, and for fine-tuning."""

import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.data import ImageTask
from pruning.errors import CheckpointError, DivergenceError, SettingError
from pruning.models import class_scores
from pruning.precision import Precision, choose_precision


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: highest learning rate; reached after `warm_up`, then falls to 0 along a cosine.
        warm_up: share of the steps during which the learning rate rises.
        momentum: of SGD with Nesterov's momentum.
        weight_decay: of weights; not of biases, norms or gates.
        largest_gradient: norm to which the gradient of all the network's weights together is bounded. Trained
            networks differ in how steep they are: MobileNetV2 with weights dequantised from 8 bits has norms
            of 40 and falls apart at rates that others recover best at.
        label_smoothing: of the cross-entropy.
        distillation: share of the teacher in the loss, in [0, 1], where there is a teacher.
        temperature: softness of the teacher's scores.
        seed: seed of the training.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.05
    warm_up: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    largest_gradient: float = 1.0
    label_smoothing: float = 0.0
    distillation: float = 0.7
    temperature: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot train anything."""
        # Batches of one image have no spread for BatchNorm to divide by.
        least = {"epochs": 0, "batch_size": 2, "weight_decay": 0, "seed": 0}
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
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))


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
    torch.manual_seed(config.seed)
    optimiser = _optimiser(network, config, objective)
    belongs = _belongs(network, task, config, identity)
    rows, precision, seconds = _resume(network, optimiser, config, task, checkpoint, belongs)
    networks = [network] if teacher is None else [network, teacher.eval()]
    for each in networks:
        precision.lay_out_(each)
    loop = _Loop(network, task, config, teacher, objective, optimiser, precision)
    n_steps = task.steps_per_epoch(config.batch_size)
    with tqdm(
        total=n_steps * config.epochs,
        initial=n_steps * len(rows),
        desc=title,
        unit="step",
        disable=title is None,
    ) as bar:
        for epoch in range(len(rows), config.epochs):
            rows.append(loop.epoch(epoch, bar))
            if checkpoint is not None:
                record = belongs | _progress(rows, precision, seconds)
                save_checkpoint(checkpoint, Checkpoint(_tensors(network, optimiser), record))
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
        for images, labels in task.test_batches():
            with precision.context(device):
                scores = class_scores(network(precision.images(images.to(device))))
            n_right += int((scores.argmax(dim=1).cpu() == labels).sum())
    return n_right / task.n_test


@dataclass(slots=True)
class _Loop:
    """One training's parts."""

    network: nn.Module
    task: ImageTask
    config: TrainingConfig
    teacher: nn.Module | None
    objective: Objective | None
    optimiser: torch.optim.Optimizer
    precision: Precision

    def epoch(self, epoch: int, bar: "tqdm[Any]") -> EpochRow:
        start, losses = time.perf_counter(), []
        n_steps = self.task.steps_per_epoch(self.config.batch_size)
        self.network.train()
        torch.manual_seed(self.config.seed + epoch)  # dropout: the same whether resumed or not
        for step, (images, labels) in enumerate(self.task.train_batches(epoch, self.config.batch_size)):
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
        device = next(self.network.parameters()).device
        images, labels = self.precision.images(images.to(device)), labels.to(device)
        for group in self.optimiser.param_groups:
            group["lr"] = group["highest_lr"] * self.config.factor(progress)
        loss = self._loss(images, labels)
        if self.objective is not None:
            loss = loss + self.objective.penalty(progress)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss became {value} at {progress:.0%} of the training; give a lower learning rate than "
                f"{self.config.learning_rate:g}, or check the weights and the normalisation."
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
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


def _optimiser(
    network: nn.Module, config: TrainingConfig, objective: Objective | None
) -> torch.optim.Optimizer:
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


def _belongs(network: nn.Module, task: ImageTask, config: TrainingConfig, identity: str) -> dict[str, Any]:
    """What a training is, as JSON values: a checkpoint is of this training where it holds the same."""
    start = 0
    for name, parameter in network.named_parameters():
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        start = zlib.crc32(values.numpy().data, zlib.crc32(name.encode(), start))
    return {"config": asdict(config), "data": task.record(), "starting weights": start, "identity": identity}


def _resume(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: TrainingConfig,
    task: ImageTask,
    checkpoint: Path | None,
    belongs: Mapping[str, Any],
) -> tuple[list[EpochRow], Precision, dict[str, float]]:
    """Epochs done, number format and its timings, from the checkpoint or from the start."""
    saved = load_checkpoint(checkpoint) if checkpoint is not None else None
    if saved is None:
        return [], *_timed_precision(network, task, config)
    differing = [name for name, value in belongs.items() if saved.record.get(name) != value]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"'{checkpoint}' belongs to another training, with {name} {saved.record.get(name)!r} instead of "
            f"{belongs[name]!r}; delete it to start afresh, or give the same settings to go on."
        )
    prefix = "network."
    state = {
        name.removeprefix(prefix): value for name, value in saved.tensors.items() if name.startswith(prefix)
    }
    network.load_state_dict(state)
    for index, parameter in enumerate(_parameters(optimiser)):
        momentum = saved.tensors.get(f"momentum.{index}")
        if momentum is not None:
            optimiser.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    rows = [EpochRow(**row) for row in saved.record["rows"]]
    return rows, Precision(**saved.record["precision"]), dict(saved.record["step_seconds"])


def _timed_precision(
    network: nn.Module, task: ImageTask, config: TrainingConfig
) -> tuple[Precision, dict[str, float]]:
    if not config.epochs:
        return Precision(), {}
    images, _ = next(iter(task.train_batches(0, config.batch_size)))
    return choose_precision(network, images.to(next(network.parameters()).device))


def _progress(
    rows: Iterable[EpochRow], precision: Precision, step_seconds: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "rows": [asdict(row) for row in rows],
        "precision": precision.to_json(),
        "step_seconds": dict(step_seconds),
    }


def _tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimiser)):
        momentum = optimiser.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{index}"] = momentum
    return tensors


def _parameters(optimiser: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimiser.param_groups:
        yield from group["params"]
