"""What the widths of a search space cost: latency on one device or on several, or multiply-accumulates.

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
from torch import Tensor

from latency.encoding import Encoding
from latency.fitting import macs_baseline, training_split
from latency.grid import Grid
from latency.lpnet import LatencyModel, LPNet
from latency.predictor import Predictor
from latency.profiles import ProfileSet
from latency.space import SearchSpace
from pruning.budget import FloatArray, Predict
from pruning.correction import aim_below_ms
from pruning.errors import SettingError

OBJECTIVES = ("latency", "macs")
"""What a search may be charged for."""

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """A further device, or setting of a device, and the latency to meet there.

    Attributes:
        name: what the user calls it: its run directory.
        profile: what was measured on it.
        lpnet: the predictor fitted to that, for gradients.
        predictor: the same, for numbers.
        budget_ms: latency to meet, in ms of that device.
    """

    name: str
    profile: ProfileSet
    lpnet: LatencyModel
    predictor: Predictor
    budget_ms: float


@dataclass(frozen=True, slots=True)
class PricedSpace:
    """A search space with its prices on one device, or on several at once.

    Attributes:
        space: the search space.
        profile: what was measured on the first device.
        lpnet: the predictor fitted to it, for gradients.
        predictor: the same, for numbers.
        others: further devices with their budgets.
        objective: "latency" as LPNet predicts it; or "macs": latency as a straight line in multiply-accumulates
            tells it, so that a search that only counts those can be held to the same budgets.
        depth: whether groups may vanish.
    """

    space: SearchSpace
    profile: ProfileSet
    lpnet: LatencyModel
    predictor: Predictor
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
        """Widths allowed on every device; without 0 where groups may not vanish."""
        grids = [self.predictor.manifest.grid, *(other.predictor.manifest.grid for other in self.others)]
        columns = zip(*(grid.allowed for grid in grids), strict=True)
        common = (sorted(set.intersection(*map(set, allowed))) for allowed in columns)
        return Grid(tuple(tuple(width for width in row if width or self.depth) for row in common))

    def aim_ms(self, budget_ms: float) -> float:
        """Latency to aim at for a budget of the first device, so that a later measurement is within it as well."""
        return aim_below_ms(budget_ms, self.profile.repeatability(budget_ms))

    def scales(self, budget_ms: float) -> tuple[float, ...]:
        """Ms of the first device that a ms of each device stands for, the first one's 1 in front.

        Args:
            budget_ms: latency to meet on the first device.
        """
        aims = [
            aim_below_ms(other.budget_ms, other.profile.repeatability(other.budget_ms))
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

    def _models(self) -> list[LatencyModel]:
        if self.objective == "latency":
            return [self.lpnet, *(other.lpnet for other in self.others)]
        profiles = [self.profile, *(other.profile for other in self.others)]
        return [macs_model(self.space, profile) for profile in profiles]

    def _predictors(self) -> list[Predict]:
        if self.objective == "latency":
            return [self.predictor.predict_ms, *(other.predictor.predict_ms for other in self.others)]
        return [
            _macs_line(self.space, profile) for profile in (self.profile, *(o.profile for o in self.others))
        ]


def macs_model(space: SearchSpace, profile: ProfileSet) -> LatencyModel:
    """Latency as a straight line in multiply-accumulates, a + b · MACs, fitted to a profile; differentiable.

    Args:
        space: the search space.
        profile: measured candidates of it.

    Returns:
        An LPNet whose only features are the layers' multiply-accumulates.
    """
    line = _macs_line(space, profile)
    full = space.full_widths
    narrow = profile.arrays("train").widths[
        int(np.argmin([space.macs(w) for w in profile.arrays("train").widths]))
    ]
    ends_ms, ends = line([full, narrow]), [space.macs(full), space.macs(narrow)]
    ms_per_mac = float(ends_ms[0] - ends_ms[1]) / (ends[0] - ends[1])
    encoding = Encoding.from_space(space.layers, space.groups, profile.header.grid)
    model = LPNet(encoding, n_directions=1, n_hidden=1, n_members=1)
    layer_macs = [layer.macs(full) for layer in space.layers]
    priced = [(i, layer) for i, (layer, term) in enumerate(encoding.feature_terms()) if term == "macs"]
    for index, layer in priced:
        model.weight[index] = ms_per_mac * layer_macs[layer]
    constant = sum(layer_macs) - sum(layer_macs[layer] for _, layer in priced)
    model.bias.fill_(float(ends_ms[0]) - ms_per_mac * (ends[0] - constant))
    return model.eval().requires_grad_(False)


def _macs_line(space: SearchSpace, profile: ProfileSet) -> Predict:
    line = macs_baseline(space, training_split(profile, space, _FOLDS))
    return lambda widths: line(np.atleast_2d(np.asarray(widths, dtype=np.int64)))
