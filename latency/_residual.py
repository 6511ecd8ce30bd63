"""Training of the small MLPs of `latency.lpnet`, stopped where their cross-validated error is lowest."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latency.lpnet import small_mlp
from latency.structure import IntArray

FloatArray = npt.NDArray[np.float64]
Folds = list[tuple[IntArray, IntArray]]


@dataclass(frozen=True, slots=True)
class MlpSettings:
    """How an MLP is trained.

    Attributes:
        n_hidden: hidden units.
        learning_rate: Adam's.
        weight_decay: decay of the weights (AdamW).
        max_steps: steps at most, each on all samples at once.
        check_every: steps between looks at the cross-validated error.
    """

    n_hidden: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    max_steps: int = 1000
    check_every: int = 25


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator for a while and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True, slots=True)
class MlpTask:
    """What an MLP is to learn.

    Attributes:
        inputs: standardised, [n, n_inputs].
        targets: [n].
        error_weights: weight of each sample's squared error, [n].
        head: the MLP's output [n] → what is compared with the targets, [n].
    """

    inputs: Tensor
    targets: Tensor
    error_weights: Tensor
    head: Callable[[Tensor], Tensor]

    def at(self, rows: IntArray) -> "MlpTask":
        """The task on some of the samples."""
        index = torch.from_numpy(rows)
        return MlpTask(self.inputs[index], self.targets[index], self.error_weights[index], self.head)


def train_mlp(
    task: MlpTask, settings: MlpSettings, *, n_steps: int, seed: int, watched: Tensor | None = None
) -> tuple[nn.Sequential, FloatArray]:
    """An MLP after `n_steps` steps, and what it said on the way.

    Args:
        task: what to learn.
        settings: how.
        n_steps: steps of training.
        seed: seed of the initial weights.
        watched: inputs to look at every `check_every` steps, first before any, [m, n_inputs].

    Returns:
        The MLP, and its head's output on the watched inputs, [n_checks, m].
    """
    with seeded(seed):
        mlp = small_mlp(task.inputs.shape[1], settings.n_hidden).to(task.inputs.dtype)
    optimiser = torch.optim.AdamW(
        mlp.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    looks = []
    for step in range(n_steps + 1):
        if watched is not None and step % settings.check_every == 0:
            with torch.no_grad():
                looks.append(task.head(mlp(watched).squeeze(1)).numpy())
        if step == n_steps:
            break
        optimiser.zero_grad()
        error = task.head(mlp(task.inputs).squeeze(1)) - task.targets
        (task.error_weights * error**2).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return mlp, np.array(looks)


def out_of_fold_looks(task: MlpTask, folds: Folds, settings: MlpSettings, seed: int) -> FloatArray:
    """The head's output for each sample from training on the other folds, [n_checks, n].

    The first row is before any training, each further one `check_every` steps later.
    """
    looks = np.empty((settings.max_steps // settings.check_every + 1, len(task.targets)))
    for fitted, left_out in folds:
        watched = task.inputs[torch.from_numpy(left_out)]
        _, looks[:, left_out] = train_mlp(
            task.at(fitted), settings, n_steps=settings.max_steps, seed=seed, watched=watched
        )
    return looks
