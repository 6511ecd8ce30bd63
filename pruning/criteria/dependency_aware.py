"""Dependency-aware filter pruning: importance over two layers, sparsity under a controller.

Zhao, Zhang, Han, Cheng: "Dependency Aware Filter Pruning", arXiv 2005.02634, and the first author's script:

- importance of channel i: S_i = |γ_i| · mean over (out, kh, kw) of |W_next[:, i]|;
- sparsity: P = share of channels with S ≤ 0.02 · (largest S in the network);
- training adds λ · sign(γ) to the gradient of γ. Of T times, at time t, towards a target R: with
  gain = P_t − P_{t−1} and expected = (R − P_t) / (T − t), λ rises by δ where P < R and gain < expected, and falls by
  δ, not below 0, where P > R and P rose; λ starts at 0;
- the channels of smallest S go.

Ours:

- P may be the saving of latency, or of multiply-accumulates, were those channels gone, and R the saving that the
  budget asks for (`--objective`);
- a channel with several BatchNorms (residual stages) or readers takes the mean of each;
- the paper steers once in each of 160 epochs, by δ = 1e-5. Here T ≤ 160 times are spread over the search however
  short, ten steps apart at least, and δ is larger where λ, if it only rose, would not take a γ from 1 to 0 in half
  of the search. In a short one more may become sparse than R asks for; the cut ranks by S and keeps the best of it;
- γ are trained by a group of their own, so that the bound on the other weights' gradient does not weaken λ;
- the floor of 8 channels a layer is the device's grid instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latency.space import SearchSpace
from pruning.criteria.base import Method, SearchJob, SearchResult, finite
from pruning.criteria.magnitudes import norm_parameters, norm_scales, reading_magnitudes
from pruning.training import TrainingConfig, train

RELATIVE_THRESHOLD = 0.02
"""Share of the largest importance below which a channel counts as gone (the paper's)."""

N_UPDATES, STEP = 160, 1e-5
"""How often λ is changed at most, and by how much at least (the paper's)."""

LEAST_STEPS = 10
"""Steps between two changes of λ: what a momentum of 0.9 takes to show what the last one did (ours)."""


class DynamicStrength(nn.Module):
    """λ, raised and lowered so that the sparsity reaches a target at the end.

    Its state is in buffers, so that it is part of a training's checkpoint.

    Args:
        target: sparsity R to reach.
        sparsity: sparsity before the first update.
        step: δ.
        n_updates: T.
    """

    strength: Tensor
    sparsity: Tensor
    n_done: Tensor

    def __init__(
        self, target: float, sparsity: float, *, step: float = STEP, n_updates: int = N_UPDATES
    ) -> None:
        super().__init__()
        self.target, self.step, self.n_updates = target, step, n_updates
        self.register_buffer("strength", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sparsity", torch.tensor(sparsity, dtype=torch.float64))
        self.register_buffer("n_done", torch.zeros((), dtype=torch.int64))

    def update_(self, sparsity: float) -> None:
        """Change λ by what the sparsity has become."""
        gain = sparsity - float(self.sparsity)
        expected = (self.target - sparsity) / (self.n_updates - int(self.n_done))
        if sparsity < self.target and gain < expected:
            self.strength += self.step
        elif sparsity > self.target and gain > 0:
            self.strength.sub_(self.step).clamp_(min=0.0)
        self.sparsity.fill_(sparsity)
        self.n_done += 1


class SteeredNetwork(nn.Module):
    """A network together with the state of what steers its training."""

    def __init__(self, network: nn.Module, strength: DynamicStrength) -> None:
        super().__init__()
        self.network, self.strength = network, strength

    def forward(self, images: Tensor) -> Any:
        """The network's output."""
        return self.network(images)


@dataclass(frozen=True, slots=True)
class SparsityObjective:
    """Adds λ Σ |γ| to a training, whose gradient is λ · sign(γ).

    Attributes:
        steered: the network and its λ.
        scales: its γ.
        sparsity: share that is gone as the network stands.
        price_ms: latency without what is gone.
        lr: largest learning rate of γ.
    """

    steered: SteeredNetwork
    scales: list[nn.Parameter]
    sparsity: Callable[[], float]
    price_ms: Callable[[], float]
    lr: float

    def penalty(self, progress: float) -> Tensor:
        """λ Σ |γ|; λ changes as often as the progress has come to."""
        strength = self.steered.strength
        while int(strength.n_done) < math.floor(progress * strength.n_updates):
            strength.update_(self.sparsity())
        total = torch.stack([scale.abs().sum() for scale in self.scales]).sum()
        return float(strength.strength) * total

    def parameter_groups(self) -> list[dict[str, Any]]:
        """γ, without weight decay."""
        return [{"params": self.scales, "lr": self.lr, "weight_decay": 0.0}]

    def latency_ms(self) -> float:
        """Predicted latency without what is gone."""
        return self.price_ms()


class DependencyAware(Method):
    """BatchNorm scales times the weights that read them, made sparse under a controller."""

    name = "dependency-aware"
    summary = "BatchNorm scale times the weights that read it, made sparse by a controlled penalty"

    def search(self, job: SearchJob) -> SearchResult:
        """Importances after the sparse training; see `Method.search`."""
        space, network = job.space, job.network
        finite(importance(space, network))  # refuses before anything is trained
        price = job.device.price(job.budget_ms)
        full = torch.from_numpy(space.full_widths)
        with torch.no_grad():
            dense_ms = float(price(full[None].float())[0])

        def price_ms() -> float:
            with torch.no_grad():
                return float(price(remaining_widths(importance(space, network), full)[None].float())[0])

        def sparsity() -> float:
            return 1 - price_ms() / dense_ms

        config = job.options.training(job.options.epochs, job.seed)
        target = 1 - job.device.aim_ms(job.budget_ms) / dense_ms
        n_steps = config.epochs * job.task.steps_per_epoch(config.batch_size)
        n_updates, step = steering(config, n_steps)
        strength = DynamicStrength(target, sparsity(), step=step, n_updates=n_updates)
        scales = _scales(space, network)
        steered = SteeredNetwork(network, strength)
        history = train(
            steered,
            job.task,
            config,
            teacher=job.teacher,
            objective=SparsityObjective(steered, scales, sparsity, price_ms, config.learning_rate),
            checkpoint=job.checkpoint,
            title=job.title,
            identity=f"{self.name} {job.budget_ms} {job.device.objective}",
        )
        return SearchResult(finite(importance(space, network)).numpy(), history)

    def search_epochs(self, epochs: int) -> int:
        """All of them."""
        return epochs


def steering(config: TrainingConfig, n_steps: int) -> tuple[int, float]:
    """T and δ for a training of so many steps: the paper's, or what λ needs in the time there is.

    λ = δ T s after a share s of the training moves γ by δ T s² / 2 · Σ lr / (1 − momentum); at s = ½ that is to be 1.
    """
    n_updates = max(1, min(N_UPDATES, n_steps // LEAST_STEPS))
    travel = config.learning_rate * config.travel(n_steps)
    return n_updates, max(STEP, 8 / (n_updates * max(travel, 1e-12)))


def importance(space: SearchSpace, network: nn.Module) -> Tensor:
    """S of all slots, [n_slots].

    Raises:
        SettingError: a group has no BatchNorm.
    """
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    return norm_scales(space, network, DependencyAware.name) * reading_magnitudes(space, parameters)


def remaining_widths(importances: Tensor, full_widths: Tensor) -> Tensor:
    """Channels of each group above the relative threshold, [n_groups].

    Args:
        importances: S, [n_slots].
        full_widths: [n_groups].
    """
    stays = importances > RELATIVE_THRESHOLD * importances.max()
    return torch.stack([part.sum() for part in torch.split(stays, full_widths.tolist())])


def _scales(space: SearchSpace, network: nn.Module) -> list[nn.Parameter]:
    """γ of the BatchNorms behind prunable channels."""
    prunable = {axis.parameter for axis in space.parameter_axes if axis.role == "out"}
    return [
        scale
        for name, scale in norm_parameters(network, "weight").items()
        if name in prunable and isinstance(scale, nn.Parameter)
    ]
