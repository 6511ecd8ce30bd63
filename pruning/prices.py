"""What the widths of a search space cost: latency on one device or on several, or a count.

Several budgets are one: the slowest constraint binds. With latencies lat_d of devices d and what is aimed at
there, aim_d, the price of a width vector is

    max over d of lat_d · aim_0 / aim_d

in milliseconds of the first device: within aim_0 exactly where every device is within its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from latency.encoding import Encoding
from latency.fitting import training_split
from latency.grid import Grid
from latency.profiles import ProfileSet
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.budget import FloatArray, Predict
from pruning.correction import aim_below_ms, repeatability
from pruning.errors import SettingError
from pruning.remote_lpnet import LatencyPredictor

OBJECTIVES = ("latency", "macs", "channels")
"""What a search may be charged for."""

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """A further device, or setting of a device, and the latency to meet there.

    Attributes:
        name: what the user calls it: its run directory, or the address of its LPNet.
        profile: what was measured on it.
        lpnet: the predictor fitted to that, for gradients.
        predictor: the same, for numbers.
        budget_ms: latency to meet, in ms of that device.
    """

    name: str
    profile: ProfileSet
    lpnet: nn.Module
    predictor: LatencyPredictor
    budget_ms: float


@dataclass(frozen=True, slots=True)
class PricedSpace:
    """A search space with its prices on one device, or on several at once.

    Attributes:
        space: the search space.
        profile: what was measured on the first device.
        lpnet: the predictor fitted to it, for gradients: `LatencyModel` or `RemoteLPNet`.
        predictor: the same, for numbers.
        others: further devices with their budgets.
        objective: "latency" as LPNet predicts it; or "macs" or "channels": latency as a straight line in those
            tells it, so that a search that only counts them can be held to the same budgets.
        depth: whether layers may be removed.
    """

    space: SearchSpace
    profile: ProfileSet
    lpnet: nn.Module
    predictor: LatencyPredictor
    others: tuple[DeviceBudget, ...] = ()
    objective: str = "latency"
    depth: bool = True

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SettingError(f"--objective is one of {', '.join(OBJECTIVES)}; got '{self.objective}'.")
        for other in self.others:
            found = other.predictor.manifest.structure_hash
            if found != self.space.structure_hash:
                raise SettingError(
                    f"'{other.name}' was profiled for another network ({found[:12]}, this one is "
                    f"{self.space.structure_hash[:12]}); copy base.onnx there, profile and fit again."
                )

    @property
    def grid(self) -> Grid:
        """Widths allowed on every device; without depth, 0 only where every layer stays."""
        may_be_zero = range(len(self.space.groups)) if self.depth else self.space.zero_keeps_layers
        grids = [self.predictor.manifest.grid, *(other.predictor.manifest.grid for other in self.others)]
        columns = zip(*(grid.allowed for grid in grids), strict=True)
        common = (sorted(set.intersection(*map(set, allowed))) for allowed in columns)
        return Grid(
            tuple(
                tuple(width for width in row if width or index in may_be_zero)
                for index, row in enumerate(common)
            )
        )

    def aim_ms(self, budget_ms: float) -> float:
        """Latency to aim at for a budget of the first device, so that a later measurement is within it as well."""
        return aim_below_ms(budget_ms, repeatability(self.profile, budget_ms))

    def scales(self, budget_ms: float) -> tuple[float, ...]:
        """Ms of the first device that a ms of each device stands for, the first one's 1 in front.

        Args:
            budget_ms: latency to meet on the first device.
        """
        aims = [
            aim_below_ms(other.budget_ms, repeatability(other.profile, other.budget_ms))
            for other in self.others
        ]
        return (1.0, *(self.aim_ms(budget_ms) / aim for aim in aims))

    def price(self, budget_ms: float) -> Callable[[Tensor], Tensor]:
        """Differentiable price in ms, [n], of widths [n, n_groups]; see the module."""
        scales = self.scales(budget_ms)
        models = [model.eval().requires_grad_(False) for model in self._models()]
        if len(models) == 1:
            return models[0]

        def slowest(widths: Tensor) -> Tensor:
            each = [scale * model(widths) for scale, model in zip(scales, models, strict=True)]
            return torch.stack(each).amax(dim=0)

        return slowest

    def predict_ms(self, budget_ms: float) -> Predict:
        """`price` for numbers."""
        scales, predictors = self.scales(budget_ms), self._predictors()

        def slowest(widths: npt.ArrayLike) -> FloatArray:
            each = [scale * predict(widths) for scale, predict in zip(scales, predictors, strict=True)]
            return np.asarray(np.max(each, axis=0), dtype=np.float64)

        return slowest

    def _models(self) -> list[nn.Module]:
        if self.objective == "latency":
            return [self.lpnet, *(other.lpnet for other in self.others)]
        return [counting_model(self.space, profile, self.objective) for profile in self._profiles()]

    def _predictors(self) -> list[Predict]:
        if self.objective == "latency":
            return [self.predictor.predict_ms, *(other.predictor.predict_ms for other in self.others)]
        return [_counting_predictor(self.space, profile, self.objective) for profile in self._profiles()]

    def _profiles(self) -> list[ProfileSet]:
        return [self.profile, *(other.profile for other in self.others)]


def counting_model(space: SearchSpace, profile: ProfileSet, objective: str) -> nn.Module:
    """Latency as a straight line in multiply-accumulates or channels, fitted to a profile; differentiable.

    Args:
        space: the search space.
        profile: measured candidates of it.
        objective: "macs" or "channels".
    """
    base_ms, ms_per_count = _line(space, profile, objective)
    full = space.full_widths
    encoding = Encoding.from_space(space.layers, space.groups, profile.header.grid)
    if objective == "channels":
        per_group = torch.full((len(full),), ms_per_count)
        return _CountingModel(encoding, torch.zeros(encoding.n_features), per_group, base_ms).eval()
    layer_macs = [layer.macs(full) for layer in space.layers]
    counted = [layer if term == "macs" else None for layer, term in encoding.feature_terms()]
    macs = torch.tensor([0.0 if layer is None else float(layer_macs[layer]) for layer in counted])
    constant = sum(layer_macs) - sum(layer_macs[layer] for layer in counted if layer is not None)
    bias_ms = base_ms + ms_per_count * constant
    return _CountingModel(encoding, ms_per_count * macs, torch.zeros(len(full)), bias_ms).eval()


class _CountingModel(nn.Module):
    """bias + features · ms + widths · ms_per_channel."""

    ms: Tensor
    ms_per_channel: Tensor

    def __init__(self, encoding: Encoding, ms: Tensor, ms_per_channel: Tensor, bias_ms: float) -> None:
        super().__init__()
        self.encoding, self.bias_ms = encoding, bias_ms
        self.register_buffer("ms", ms)
        self.register_buffer("ms_per_channel", ms_per_channel)

    def forward(self, widths: Tensor) -> Tensor:
        total: Tensor = self.encoding(widths) @ self.ms + widths @ self.ms_per_channel + self.bias_ms
        return total


def _counting_predictor(space: SearchSpace, profile: ProfileSet, objective: str) -> Predict:
    base_ms, ms_per_count = _line(space, profile, objective)

    def predict_ms(widths: npt.ArrayLike) -> FloatArray:
        counts = [_count(space, row, objective) for row in np.atleast_2d(np.asarray(widths, dtype=np.int64))]
        return base_ms + ms_per_count * np.array(counts, dtype=np.float64)

    return predict_ms


def _line(space: SearchSpace, profile: ProfileSet, objective: str) -> tuple[float, float]:
    """Ms at count 0 and ms per count, neither negative, of least relative error over the profile."""
    train = training_split(profile, space, _FOLDS)
    counts = np.array([_count(space, row, objective) for row in train.widths], dtype=np.float64)
    scale = counts.max()
    columns = np.stack([1.0 / train.latency_ms, counts / scale / train.latency_ms], axis=1)
    (base_ms, slope_ms), _ = nnls(columns, np.ones(len(counts)))
    return float(base_ms), float(slope_ms / scale)


def _count(space: SearchSpace, widths: IntArray, objective: str) -> int:
    return space.macs(widths) if objective == "macs" else int(space.canonical(widths).sum())
