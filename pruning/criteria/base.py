"""What a pruning method is: something that says how much each channel deserves to stay.

Budget, cut, surgery, fine-tuning and verification are the same for all methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from latency.grid import Grid
from latency.space import SearchSpace
from pruning.budget import Choice, FloatArray, Predict, cut_to_target, smallest_widths
from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.correction import SAFETY
from pruning.data import ImageTask
from pruning.distributed import from_first
from pruning.errors import SettingError
from pruning.objective import TERMS
from pruning.precision import Precision
from pruning.prices import PricedSpace
from pruning.training import TrainingConfig, TrainingHistory

_ROUNDING = 1e-6

Cutter = Callable[[FloatArray, SearchSpace, Grid, Predict, float], Choice]
"""From scores to channels within a predicted latency; see `pruning.budget.cut_to_target`."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How channels are searched for.

    Attributes:
        epochs: passes over the training images, for methods that train while they search.
        batch_size: images per step.
        lr: largest learning rate of the network's weights.
        latency_term: name of the latency term of methods with gates, see `pruning.objective.TERMS`.
        anneal: share of the search after which the target is the one that it ends at.
        distillation: share of the loss that compares with the dense network's scores.
    """

    epochs: int = 4
    batch_size: int = 64
    lr: float = 0.02
    latency_term: str = "hold"
    anneal: float = 0.3
    distillation: float = 0.7

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise SettingError(f"--search-epochs is 0 or more; got {self.epochs}.")
        if self.latency_term not in TERMS:
            raise SettingError(f"--latency-term is one of {', '.join(TERMS)}; got '{self.latency_term}'.")

    def training(self, epochs: int, seed: int, *, falls: bool = True) -> TrainingConfig:
        """How a network is trained for so many epochs of the search; see `TrainingConfig` for `falls`."""
        return TrainingConfig(
            epochs=epochs,
            learning_rate=self.lr,
            falls=falls,
            batch_size=self.batch_size,
            distillation=self.distillation,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class SearchJob:
    """What a method works with.

    Attributes:
        network: the trained network; a method that trains changes its weights in place.
        teacher: the network as it was, to distil from.
        task: the data.
        device: the search space with its prices.
        budget_ms: latency to meet on the first device.
        options: how to search.
        seed: seed of everything random.
        checkpoint: file to keep the search's state in, to go on from after an interruption; None keeps none.
        title: shown beside a progress bar; None shows none.
        measured_target: from scores to the predicted latency of the cut by them that is measured within the budget;
            None where nothing can be measured.
    """

    network: nn.Module
    teacher: nn.Module
    task: ImageTask
    device: PricedSpace
    budget_ms: float
    options: SearchOptions
    seed: int = 0
    checkpoint: Path | None = None
    title: str | None = None
    measured_target: Callable[[FloatArray], float] | None = None

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.device.space

    @property
    def n_slots(self) -> int:
        """Channels that can be kept or removed."""
        return int(self.space.full_widths.sum())

    def target_ms(self, scores: FloatArray) -> float:
        """Predicted latency, in ms, for a search to end at: measured, or else `SAFETY` of what is aimed at.

        Args:
            scores: how much each slot deserves to stay as the search begins, [n_slots].

        Raises:
            BudgetError: no cut by these scores is measured within the budget.
        """
        measure, wanted_ms = self.measured_target, SAFETY * self.device.aim_ms(self.budget_ms)
        if measure is not None:
            wanted_ms = float(
                self.stored("target", lambda: torch.tensor([measure(scores)], dtype=torch.float64))
            )
        smallest = smallest_widths(self.space, self.device.grid)
        least_ms = float(self.device.predict_ms(self.budget_ms)([smallest])[0])
        # Where one network alone is within, it has to be within its own prediction, however that is rounded.
        return max(wanted_ms, least_ms) * (1 + _ROUNDING)

    def parameters(self) -> dict[str, Tensor]:
        """The network's parameters by name, without gradients, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.network.named_parameters()}

    def stored(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, float64, from beside the checkpoint where it is there.

        A resumed search has to start as the interrupted one did, to the last bit, and several processes as one: the
        first one alone computes and keeps it, while the others leave the machine to what it may measure.

        Args:
            name: what it is, part of the file's name.
            compute: called where it is not known yet; values [n], on any device.
        """
        values = from_first(lambda: self._stored(name, compute).tolist())
        return torch.tensor(values, dtype=torch.float64)

    def _stored(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if self.checkpoint is None:
            return compute().double()
        path = self.checkpoint.with_name(f"{self.checkpoint.stem}-{name}.safetensors")
        known = load_checkpoint(path)
        if known is None:
            known = Checkpoint({name: compute().double()}, {})
            save_checkpoint(path, known)
        return known.tensors[name]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        scores: how much each slot deserves to stay, [n_slots]; comparable between groups.
        history: how the search went; without rows where nothing was trained.
        target_ms: predicted latency that the search ended at; None where it held none.
    """

    scores: FloatArray
    history: TrainingHistory
    target_ms: float | None = None

    @classmethod
    def untrained(cls, scores: Tensor) -> "SearchResult":
        """Scores of a method that trains nothing, [n_slots]."""
        return cls(scores.detach().double().cpu().numpy(), TrainingHistory((), Precision(), {}))


class Method(ABC):
    """A way to say how much each channel deserves to stay; one file each.

    Attributes:
        name: what users call it.
        summary: one line for them.
        uses_depth: whether it may remove whole groups.
        leaves_rate_high: whether its search leaves the learning rate at its highest, for a fine-tuning at that rate or
            a lower one to go on from: a rate that falls to 0 and comes back undoes what the fall has gained.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    uses_depth: ClassVar[bool] = True
    leaves_rate_high: ClassVar[bool] = False

    @abstractmethod
    def search(self, job: SearchJob) -> SearchResult:
        """The scores of all slots.

        Raises:
            SettingError: the method cannot judge this network; the message says which part of it.
        """

    def search_epochs(self, epochs: int) -> int:
        """Epochs that the method trains for, of those it may; the rest belongs to the fine-tuning."""
        del epochs
        return 0

    @property
    def cut(self) -> Cutter:
        """How its scores become widths."""
        return cut_to_target

    def restricted(self, device: PricedSpace) -> PricedSpace:
        """The priced space without what this method does not use."""
        return device if self.uses_depth else replace(device, depth=False)


def finite(scores: Tensor) -> Tensor:
    """The scores, if all are numbers.

    Raises:
        SettingError: one is not.
    """
    n_wrong = int((~torch.isfinite(scores)).sum())
    if n_wrong:
        raise SettingError(
            f"{n_wrong} of {len(scores)} channels have no score: the network's weights or their gradients are no "
            "finite numbers; check the weights and the normalisation."
        )
    return scores
