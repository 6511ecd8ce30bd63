"""The search asks a method for scores; the cut keeps the best channels, corrected by measuring."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from pruning.budget import Choice, FloatArray, smallest_widths
from pruning.correction import MeasuredChoice, meet_budget
from pruning.criteria.base import Method, SearchJob, SearchOptions, SearchResult
from pruning.criteria.methods import find_method
from pruning.data import ImageTask
from pruning.errors import BudgetError
from pruning.plan import Plan, make_plan
from pruning.prices import PricedSpace
from pruning.verify import is_here, measure_candidate

DEFAULT_METHOD = "wgates"


@dataclass(frozen=True, slots=True)
class Cut:
    """Channels to keep, measured within the budget.

    Attributes:
        plan: the channels.
        predicted_ms: latency that LPNet predicts for them.
        measured_ms: latency measured for them.
        n_exports: cuts that were exported and measured.
        others: the further devices' latencies.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float
    n_exports: int
    others: tuple["OtherLatency", ...] = ()


@dataclass(frozen=True, slots=True)
class OtherLatency:
    """Latency of a cut on a further device.

    Attributes:
        name: what the user calls the device.
        budget_ms: latency to meet there.
        predicted_ms: what its LPNet predicts.
        measured_ms: what was measured; None where this is not that device.
    """

    name: str
    budget_ms: float
    predicted_ms: float
    measured_ms: float | None


def search(
    network: nn.Module,
    teacher: nn.Module,
    task: ImageTask,
    device: PricedSpace,
    budget_ms: float,
    options: SearchOptions,
    *,
    method: str = DEFAULT_METHOD,
    seed: int = 0,
    checkpoint: Path | None = None,
    title: str | None = "search",
) -> SearchResult:
    """How much each channel deserves to stay, as a method says.

    A method whose gates hold a target learns before it begins, by measuring cuts, what LPNet has to predict for the
    budget to be met: what it trains is then what is cut, and a budget that cannot be met costs no training.

    Args:
        network: the trained network; methods that train change its weights in place.
        teacher: the network as it was, to distil from.
        task: the data.
        device: the search space with its prices.
        budget_ms: latency to meet on the first device.
        options: how to search.
        method: name of the method, see `pruning.criteria.METHODS`.
        seed: seed of the search.
        checkpoint: file to keep the search's state in, to go on from after an interruption.
        title: shown beside a progress bar; None shows none.

    Raises:
        SettingError: the method is not known, or cannot judge this network.
    """
    found = find_method(method)
    device = found.restricted(device)

    def measured_target(scores: FloatArray) -> float:
        return _meet(found, scores, device, budget_ms).best.choice.predicted_ms

    job = SearchJob(
        network,
        teacher,
        task,
        device,
        budget_ms,
        options,
        seed=seed,
        checkpoint=checkpoint,
        title=title,
        measured_target=measured_target,
    )
    return found.search(job)


def cut_within(
    scores: FloatArray,
    device: PricedSpace,
    budget_ms: float,
    *,
    method: str = DEFAULT_METHOD,
    seed: int = 0,
    aim_ms: float | None = None,
    start_ms: float | None = None,
) -> Cut:
    """Keep the best-scored channels, as many as the *measured* latency allows.

    Args:
        scores: how much each slot deserves to stay, [n_slots]; comparable between groups.
        device: the search space with its prices.
        budget_ms: latency to meet on the first device.
        method: name of the method that the scores come from.
        seed: seed of the search that the scores come from.
        aim_ms: latency to aim at; None is `PricedSpace.aim_ms`.
        start_ms: predicted latency of the first cut, where the search knows it; see `SearchResult`.

    Raises:
        BudgetError: no cut is measured within it.
    """
    found = find_method(method)
    device = found.restricted(device)
    met = _meet(found, scores, device, budget_ms, aim_ms, start_ms)
    choice = met.best.choice
    predicted_ms = float(device.predictor.predict_ms([choice.widths])[0])
    plan = make_plan(
        device.space,
        choice.kept,
        criterion=method,
        budget_ms=budget_ms,
        predicted_ms=predicted_ms,
        device=device.profile.header.fingerprint.digest,
        seed=seed,
    )
    return Cut(plan, predicted_ms, met.measured_ms, met.n_exports, met.others)


@dataclass(frozen=True, slots=True)
class _Met:
    """The best cut that was measured within a budget; `measured_ms` is the first device's own."""

    best: MeasuredChoice
    measured_ms: float
    others: tuple[OtherLatency, ...]
    n_exports: int


def _meet(
    method: Method,
    scores: FloatArray,
    device: PricedSpace,
    budget_ms: float,
    aim_ms: float | None = None,
    start_ms: float | None = None,
) -> _Met:
    grid, predict_ms = device.grid, device.predict_ms(budget_ms)
    # The predictor may be wrong about the smallest network: where it alone is left, measuring decides.
    least_ms = float(predict_ms([smallest_widths(device.space, grid)])[0])

    def cut(target_ms: float) -> Choice:
        return method.cut(scores, device.space, grid, predict_ms, max(target_ms, least_ms))

    measured: dict[tuple[int, ...], tuple[float, tuple[OtherLatency, ...]]] = {}

    def measure(choice: Choice) -> tuple[float, float]:
        measured_ms, high_ms, others = _measure_everywhere(device, choice, budget_ms)
        measured[choice.widths] = (measured_ms[0], others)
        return max(measured_ms), max(high_ms)

    aim_ms = device.aim_ms(budget_ms) if aim_ms is None else aim_ms
    best, tried = meet_budget(cut, measure, budget_ms, aim_ms=aim_ms, start_ms=start_ms)
    met = _Met(best, *measured[best.choice.widths], n_exports=len(tried))
    for other in met.others:
        there_ms = other.predicted_ms if other.measured_ms is None else other.measured_ms
        if there_ms > other.budget_ms:
            raise BudgetError(
                f"{len(tried)} cuts were tried and none is within {other.budget_ms:.4g} ms on the device of "
                f"'{other.name}'; the best took {there_ms:.4g} ms there. Ask for at least that, or profile it again."
            )
    return met


def _measure_everywhere(
    device: PricedSpace, choice: Choice, budget_ms: float
) -> tuple[list[float], list[float], tuple[OtherLatency, ...]]:
    """Latencies and their upper limits in ms of the first device, one for each, and the others' own.

    Latencies are compared with what is aimed at, limits with the budgets, and devices differ in how far these lie
    apart. A device that is not this one counts with what its LPNet predicts.
    """
    widths = np.array(choice.widths)
    first_ms, first_high_ms = measure_candidate(device.space, widths, device.profile)
    measured_ms, high_ms, others = [first_ms], [first_high_ms], []
    for other, scale in zip(device.others, device.scales(budget_ms)[1:], strict=True):
        predicted_ms = float(other.predictor.predict_ms([widths])[0])
        here = is_here(other.profile)
        there_ms, there_high_ms = (
            measure_candidate(device.space, widths, other.profile) if here else (predicted_ms, predicted_ms)
        )
        measured_ms.append(scale * there_ms)
        high_ms.append(there_high_ms * budget_ms / other.budget_ms)
        others.append(OtherLatency(other.name, other.budget_ms, predicted_ms, there_ms if here else None))
    return measured_ms, high_ms, tuple(others)
