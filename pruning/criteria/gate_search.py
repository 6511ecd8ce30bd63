"""The search that methods with gates share: gates trained with the network under the latency term."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.budget import Choice, FloatArray, cut_with_shift
from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.criteria.base import SearchJob, SearchResult, finite
from pruning.distributed import tensor_mean_over_all
from pruning.gates import GatedNetwork, Gates
from pruning.objective import BudgetSchedule, HeldBudget, LatencyTerm, LogLatency, settled_scores
from pruning.remembered import remembered
from pruning.removal_order import distillation_rise, removal_path, shown, worth_along
from pruning.sensitivity import gate_costs
from pruning.training import TrainingConfig, TrainingHistory, train
from pruning.training_state import weights_digest

LARGEST_GRADIENT = 1.0
"""Largest norm of the gradient of each of the gates' parameters (ours)."""

SCORE_TRAVEL = {"hold": 0.3, "log": 6.0}
"""Standard deviations of the scores that a group can move during a search, however short, by latency term (ours).

A term that holds no budget has to pull the gates all the way; where it is held, what moves far comes and goes."""


WORTH_IMAGES, WORTH_TEMPERATURE = 256, 3.0
"""Images and temperature of the loss that removals are judged by (ours)."""

WORTH_FLOOR = 0.8
"""Share of the latency aimed at where no further removal is judged (ours)."""


class SearchedGates(Gates):
    """Gates that a search can start, and train at a rate of its own."""

    @abstractmethod
    def start_from(self, worth: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Set the gates' parameters so that the scores rank all slots by their worth.

        Args:
            worth: how much each slot deserves to stay, [n_slots], comparable between groups.
            parameters: the network's parameters by name.
        """

    @abstractmethod
    def levelled(self) -> tuple[nn.Parameter, ...]:
        """Parameters of which each entry moves many gates together."""

    def penalty(self) -> Tensor:
        """A further term of the loss, []."""
        return torch.zeros(())


@dataclass(frozen=True, slots=True)
class BudgetObjective:
    """Adds the latency of a gated network's open gates to its training.

    Attributes:
        gated: the network in training.
        gates: its gates.
        term: the latency term.
        gate_lr: largest learning rate of the gates' parameters.
    """

    gated: GatedNetwork
    gates: SearchedGates
    term: LatencyTerm
    gate_lr: float

    def penalty(self, progress: float) -> Tensor:
        """The latency term at the widths of the last forward pass, and the gates' own."""
        return self.term(self.gated, progress) + self.gates.penalty()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The gates' parameters, without weight decay."""
        return [{"params": list(self.gates.parameters()), "lr": self.gate_lr, "weight_decay": 0.0}]

    def latency_ms(self) -> float:
        """Predicted latency of the open gates."""
        with torch.no_grad():
            return float(self.term.predict_ms(self.gated.widths.detach().cpu().unsqueeze(0))[0])


def search_with_gates(job: SearchJob, gates: SearchedGates, *, travel: float | None = None) -> SearchResult:
    """Train gates with the network under the budget, from where their worth puts them.

    Args:
        job: what to search.
        gates: gates of its network, not started yet.
        travel: how far they can move, see `train_gates`; None is as far as suits the latency term.
    """
    device = next(job.network.parameters()).device
    gated = GatedNetwork(job.network, job.space, gates, job.device.grid).to(device)
    worth = job.stored("worth", lambda: gate_worth(gated, job))
    gates.start_from(worth, dict(job.network.named_parameters()))
    travel = SCORE_TRAVEL[job.options.latency_term] if travel is None else travel
    with torch.no_grad():
        gated.gate_values()
    holds = job.options.latency_term == "hold"
    target_ms = job.target_ms(settled_scores(gated).numpy()) if holds else None
    config = job.options.training(job.options.epochs, job.seed, falls=False)
    history = train_gates(job, gated, gates, _term(job, target_ms), config, travel, target_ms=target_ms)
    with torch.no_grad():
        gated.gate_values()
    return SearchResult(finite(settled_scores(gated)).numpy(), history, target_ms)


def train_gates(
    job: SearchJob,
    gated: GatedNetwork,
    gates: SearchedGates,
    term: LatencyTerm,
    config: TrainingConfig,
    travel: float,
    *,
    target_ms: float | None = None,
) -> TrainingHistory:
    """Train a gated network under a latency term, in place.

    Args:
        job: what to search.
        gated: its network with the gates.
        gates: the gates.
        term: the latency term.
        config: how to train.
        travel: how far a parameter of the gates whose gradient is 1 throughout moves, however short the training.
        target_ms: predicted latency that the term ends at, where it was measured: part of what the training is.
    """
    limit_gradients_(gates)
    n_steps = max(1, config.epochs * job.task.steps_per_epoch(config.batch_size))
    gate_lr = travel / config.travel(n_steps)
    return train(
        gated,
        job.task,
        config,
        teacher=job.teacher,
        objective=BudgetObjective(gated, gates, term, gate_lr),
        checkpoint=job.checkpoint,
        title=job.title,
        identity=f"{job.budget_ms:.6g} ms of {job.device.objective}"
        + ("" if target_ms is None else f", predicted {target_ms!r}"),
    )


def gate_worth(gated: GatedNetwork, job: SearchJob) -> Tensor:
    """Logarithm of what removing each channel costs in loss over what it saves in latency, [n_slots]."""
    title = None if job.title is None else f"{job.title}: what gates cost"
    space, budget_ms = job.space, job.budget_ms
    costs = _costs(gated, job, title)
    rise = distillation_rise(
        gated, costs, space, job.task, n_images=WORTH_IMAGES, temperature=WORTH_TEMPERATURE
    )
    if job.checkpoint is not None:
        rise = remembered(rise, job.checkpoint.with_name(f"rises-{_key_of_rises(job, costs)}.jsonl"))
    predict_ms, floor_ms = job.device.predict_ms(budget_ms), WORTH_FLOOR * job.device.aim_ms(budget_ms)
    with shown(rise, title) as loss:
        path = removal_path(loss, space, job.device.grid, predict_ms, floor_ms)
    return worth_along(path, costs, space)


def _costs(gated: GatedNetwork, job: SearchJob, title: str | None) -> Tensor:
    """What gates cost; kept, like the losses that are judged by them, since a GPU's sums differ from run to run."""
    if job.checkpoint is None:
        return gate_costs(gated, job.n_slots, job.task, seed=job.seed, title=title)
    decide = [weights_digest(job.network), job.task.record(), job.seed, torch.__version__]
    key = hashlib.sha256(json.dumps(decide, sort_keys=True).encode()).hexdigest()[:12]
    path = job.checkpoint.with_name(f"costs-{key}.safetensors")
    known = load_checkpoint(path)
    if known is None:
        costs = gate_costs(gated, job.n_slots, job.task, seed=job.seed, title=title)
        known = Checkpoint({"costs": costs.cpu()}, {})
        save_checkpoint(path, known)
    return known.tensors["costs"]


def _key_of_rises(job: SearchJob, costs: Tensor) -> str:
    """Hash of what decides the rise of the loss at given widths: the same for all budgets and devices."""
    decide = [
        weights_digest(job.network),
        job.task.record(),
        WORTH_IMAGES,
        WORTH_TEMPERATURE,
        torch.__version__,
    ]
    content = json.dumps(decide, sort_keys=True).encode() + costs.cpu().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


def limit_gradients_(gates: SearchedGates) -> None:
    """Bound the gates' gradients, in place.

    Closing a block raises the loss and with it all gradients; unbounded, the next steps close everything. Of
    what moves many gates together each gradient is divided by its own size plus the mean size: one group that
    saves much more than the others is pulled no faster than they are, so that worth decides. Where several
    processes train, what is bounded is the gradient of the whole batch.
    """

    def limited(gradient: Tensor) -> Tensor:
        gradient = tensor_mean_over_all(gradient)
        factor: Tensor = LARGEST_GRADIENT / gradient.norm().clamp(min=LARGEST_GRADIENT)
        return gradient * factor

    def levelled(gradient: Tensor) -> Tensor:
        gradient = tensor_mean_over_all(gradient)
        return gradient / (gradient.abs() + gradient.abs().mean() + 1e-12)

    together = {id(parameter) for parameter in gates.levelled()}
    for parameter in gates.parameters():
        hook = levelled if id(parameter) in together else limited
        parameter.register_hook(hook)  # type: ignore[no-untyped-call]


def _term(job: SearchJob, target_ms: float | None) -> LatencyTerm:
    """The latency term: the one that holds a predicted latency, if there is one to hold, or the paper's."""
    space, grid, predict_ms = job.space, job.device.grid, job.device.predict_ms(job.budget_ms)
    price = job.device.price(job.budget_ms)
    if target_ms is None:
        return LogLatency(price)

    def cut(scores: FloatArray, target_ms: float) -> tuple[Choice, float]:
        return cut_with_shift(scores, space, grid, predict_ms, target_ms)

    dense_ms = float(predict_ms([space.full_widths])[0])
    return HeldBudget(price, cut, BudgetSchedule(dense_ms, target_ms, job.options.anneal), job.options.epochs)
