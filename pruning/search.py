"""The search trains a gated network under the budget; the cut keeps its best channels, corrected by measuring."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latency.lpnet import LatencyModel
from latency.predictor import Predictor
from latency.profiles import ProfileSet
from latency.space import SearchSpace
from pruning.budget import Choice, FloatArray, cut_to_target, smallest_widths
from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.correction import aim_below_ms, meet_budget
from pruning.criteria.wgates import WGates
from pruning.data import ImageTask
from pruning.gates import GatedNetwork
from pruning.objective import BudgetSchedule, LatencyHinge
from pruning.plan import Plan, make_plan
from pruning.sensitivity import gate_costs
from pruning.training import TrainingConfig, TrainingHistory, train
from pruning.verify import measure_candidate

LARGEST_GRADIENT = 1.0
"""Largest norm of the gradient of each of the gates' parameters (ours)."""

SCORE_TRAVEL = 6.0
"""Standard deviations of the scores that a group can move during a search, however short (ours)."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How the gates are searched for.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: largest learning rate of the network's weights.
        latency_weight: strength of the latency term.
        anneal: share of the search after which the target is the budget.
        distillation: share of the loss that compares with the dense network's scores.
    """

    epochs: int = 4
    batch_size: int = 64
    lr: float = 0.01
    latency_weight: float = 200.0
    anneal: float = 0.7
    distillation: float = 0.7


@dataclass(frozen=True, slots=True)
class PricedSpace:
    """A search space with its prices on one device.

    Attributes:
        space: the search space.
        profile: what was measured on the device.
        lpnet: the predictor fitted to it, for gradients.
        predictor: the same, for numbers.
    """

    space: SearchSpace
    profile: ProfileSet
    lpnet: LatencyModel
    predictor: Predictor

    def aim_ms(self, budget_ms: float) -> float:
        """Latency to aim at for a budget, so that a later measurement is within it as well."""
        return aim_below_ms(budget_ms, self.profile.repeatability(budget_ms))


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        scores: how much each slot deserves to stay, [n_slots]; comparable between groups.
        history: how the search went.
    """

    scores: FloatArray
    history: TrainingHistory


@dataclass(frozen=True, slots=True)
class Cut:
    """Channels to keep, measured within the budget.

    Attributes:
        plan: the channels.
        predicted_ms: latency that LPNet predicts for them.
        measured_ms: latency measured for them.
        n_exports: cuts that were exported and measured.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float
    n_exports: int


@dataclass(frozen=True, slots=True)
class BudgetObjective:
    """Adds the latency of a gated network's open gates to its training.

    Attributes:
        gated: the network in training.
        hinge: the latency term.
        gate_lr: largest learning rate of the gates' parameters.
    """

    gated: GatedNetwork
    hinge: LatencyHinge
    gate_lr: float

    def penalty(self, progress: float) -> Tensor:
        """The latency term at the widths of the last forward pass."""
        return self.hinge(self.gated.widths, progress)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The gates' parameters, without weight decay."""
        return [{"params": list(self.gated.gates.parameters()), "lr": self.gate_lr, "weight_decay": 0.0}]

    def latency_ms(self) -> float:
        """Predicted latency of the open gates."""
        with torch.no_grad():
            return float(self.hinge.predict_ms(self.gated.widths.detach().unsqueeze(0))[0])


def search_gates(
    network: nn.Module,
    teacher: nn.Module,
    task: ImageTask,
    device: PricedSpace,
    budget_ms: float,
    options: SearchOptions,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    title: str | None = "search",
) -> SearchResult:
    """Train gates with the network under the budget.

    Args:
        network: the trained network; its weights go on training, in place.
        teacher: the network as it was, to distil from.
        task: the data.
        device: the search space with its prices on one device.
        budget_ms: latency to meet.
        options: how to search.
        seed: seed of the search.
        checkpoint: file to keep the search's state in, to go on from after an interruption.
        title: shown beside a progress bar; None shows none.
    """
    grid = device.predictor.manifest.grid
    gates = WGates(network, device.space)
    gated = GatedNetwork(network, device.space, gates, grid)
    worth = _stored(checkpoint, lambda: _worth(gated, task, device, seed, title))
    gates.start_from(worth, dict(network.named_parameters()))
    _limit_gradients_(gates)
    config = TrainingConfig(
        epochs=options.epochs,
        learning_rate=options.lr,
        batch_size=options.batch_size,
        distillation=options.distillation,
        seed=seed,
    )
    history = train(
        gated,
        task,
        config,
        teacher=teacher,
        objective=_objective(gated, device, budget_ms, options, config, task),
        checkpoint=checkpoint,
        title=title,
    )
    with torch.no_grad():
        scores = gated.gates.scores(dict(network.named_parameters())).double().cpu().numpy()
    return SearchResult(scores, history)


def _stored(checkpoint: Path | None, compute: Callable[[], Tensor]) -> Tensor:
    """The worth of all slots, from beside the checkpoint where it is there.

    A resumed search has to start as the interrupted one did, to the last bit.
    """
    if checkpoint is None:
        return compute()
    path = checkpoint.with_name(f"{checkpoint.stem}-worth.safetensors")
    known = load_checkpoint(path)
    if known is None:
        known = Checkpoint({"worth": compute()}, {})
        save_checkpoint(path, known)
    return known.tensors["worth"]


def _worth(gated: GatedNetwork, task: ImageTask, device: PricedSpace, seed: int, title: str | None) -> Tensor:
    """Logarithm of what closing each gate costs in loss over what it saves in latency, [n_slots]."""
    title = None if title is None else f"{title}: what gates cost"
    costs = gate_costs(gated, int(device.space.full_widths.sum()), task, seed=seed, title=title)
    full = torch.from_numpy(device.space.full_widths).float().requires_grad_()
    (saved_ms,) = torch.autograd.grad(device.lpnet(full.unsqueeze(0))[0], full)
    per_slot = saved_ms.repeat_interleave(torch.from_numpy(device.space.full_widths))
    floor_cost, floor_ms = 1e-3 * costs.median() + 1e-12, 1e-3 * per_slot.mean() + 1e-12
    return torch.log((costs + floor_cost) / per_slot.clamp(min=float(floor_ms)))


def _limit_gradients_(gates: WGates) -> None:
    """Bound the gates' gradients, in place.

    Closing a block raises the loss and with it all gradients; unbounded, the next steps close everything. Of the
    groups' biases each gradient is divided by its own size plus the mean size: one group that
    saves much more than the others is pulled no faster than they are, so that worth decides.
    """

    def limited(gradient: Tensor) -> Tensor:
        factor: Tensor = LARGEST_GRADIENT / gradient.norm().clamp(min=LARGEST_GRADIENT)
        return gradient * factor

    def levelled(gradient: Tensor) -> Tensor:
        return gradient / (gradient.abs() + gradient.abs().mean() + 1e-12)

    for parameter in gates.parameters():
        hook = levelled if parameter is gates.bias else limited
        parameter.register_hook(hook)  # type: ignore[no-untyped-call]


def _objective(
    gated: GatedNetwork,
    device: PricedSpace,
    budget_ms: float,
    options: SearchOptions,
    config: TrainingConfig,
    task: ImageTask,
) -> BudgetObjective:
    lpnet = device.lpnet.eval().requires_grad_(False)
    full = torch.from_numpy(device.space.full_widths).float()
    with torch.no_grad():
        dense_ms = float(lpnet(full.unsqueeze(0))[0])
    schedule = BudgetSchedule(dense_ms, device.aim_ms(budget_ms), options.anneal)
    n_steps = max(1, options.epochs * task.steps_per_epoch(options.batch_size))
    # Momentum sums up 1 / (1 - momentum) gradients; the learning rate's mean is half of its highest.
    gate_lr = SCORE_TRAVEL * (1 - config.momentum) / (0.5 * n_steps)
    return BudgetObjective(gated, LatencyHinge(lpnet, schedule, options.latency_weight), gate_lr)


def cut_within(
    scores: FloatArray, device: PricedSpace, budget_ms: float, *, seed: int = 0, aim_ms: float | None = None
) -> Cut:
    """Keep the best-scored channels, as many as the *measured* latency allows.

    Args:
        scores: how much each slot deserves to stay, [n_slots]; comparable between groups.
        device: the search space with its prices on one device.
        budget_ms: latency to meet.
        seed: seed of the search that the scores come from.
        aim_ms: latency to aim at; None is `PricedSpace.aim_ms`.

    Raises:
        BudgetError: no cut is measured within it.
    """
    grid, predict_ms = device.predictor.manifest.grid, device.predictor.predict_ms
    # The predictor may be wrong about the smallest network: where it alone is left, measuring decides.
    least_ms = float(predict_ms([smallest_widths(device.space, grid)])[0])

    def cut(target_ms: float) -> Choice:
        return cut_to_target(scores, device.space, grid, predict_ms, max(target_ms, least_ms))

    def measure(choice: Choice) -> tuple[float, float]:
        return measure_candidate(device.space, np.array(choice.widths), device.profile)

    aim_ms = device.aim_ms(budget_ms) if aim_ms is None else aim_ms
    best, tried = meet_budget(cut, measure, budget_ms, aim_ms=aim_ms)
    plan = make_plan(
        device.space,
        best.choice.kept,
        criterion="wgates",
        budget_ms=budget_ms,
        predicted_ms=best.choice.predicted_ms,
        device=device.profile.header.fingerprint.digest,
        seed=seed,
    )
    return Cut(plan, best.choice.predicted_ms, best.measured_ms, len(tried))
