"""The stage that chooses the channels to keep: checks the budget, searches, cuts, measures; and cuts again."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latency.lpnet import load_model as load_latency_model
from latency.predictor import Predictor
from latency.profiles import ProfileSet, read_profile
from pruning.budget import smallest_widths
from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.criteria import find_method
from pruning.criteria.base import SearchOptions
from pruning.distributed import from_first, is_first, training_device
from pruning.errors import BudgetError, SettingError
from pruning.files import file_sha256
from pruning.plan import Plan
from pruning.prices import OBJECTIVES, DeviceBudget, PricedSpace
from pruning.remote_lpnet import RemoteLPNet
from pruning.run import RunDirectory
from pruning.search import DEFAULT_METHOD, Cut, cut_within, search
from pruning.stages import Workbench
from pruning.verify import OtherVerification, is_here, measure_candidate, require_profiled_device
from pruning.weights import save_weights

SCORES = "prune/scores.safetensors"
"""How much every channel deserves to stay, as the search found it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A latency budget: milliseconds of the profiled device, or a share of the dense latency.

    Attributes:
        budget_ms: latency in ms; None where `speedup` is given.
        speedup: dense latency over budget; None where `budget_ms` is given.
    """

    budget_ms: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.budget_ms, self.speedup) if value is not None]
        if len(given) != 1:
            raise SettingError("give either --budget-ms or --speedup.")
        if not (math.isfinite(given[0]) and given[0] > 0):
            name = "--budget-ms" if self.budget_ms is not None else "--speedup"
            raise BudgetError(f"{name} is a number above 0; got {given[0]}.")
        if self.speedup is not None and self.speedup < 1:
            raise BudgetError(f"--speedup is dense latency over budget, at least 1; got {self.speedup}.")

    def at(self, dense_ms: float) -> float:
        """The budget in ms for a network of the given dense latency."""
        return self.budget_ms if self.budget_ms is not None else dense_ms / (self.speedup or 1.0)


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """By what channels are judged, and where else a budget is to be met.

    Attributes:
        method: name of the method, see `pruning.criteria.METHODS`.
        objective: what the search is charged for, see `pruning.prices.OBJECTIVES`; the budget is in ms either way.
        depth: whether layers may be removed, where the method uses that.
        also: further devices: run directory with their profile and LPNet, or address of an LPNet of a service; and
            latency to meet there in ms.
    """

    method: str = DEFAULT_METHOD
    objective: str = "latency"
    depth: bool = True
    also: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        find_method(self.method)
        if self.objective not in OBJECTIVES:
            raise SettingError(f"--objective is one of {', '.join(OBJECTIVES)}; got '{self.objective}'.")
        for name, budget_ms in self.also:
            if not (math.isfinite(budget_ms) and budget_ms > 0):
                raise BudgetError(f"--also {name}: the budget is a number of ms above 0; got {budget_ms}.")


def priced_space(bench: Workbench, options: PruneOptions) -> PricedSpace:
    """The run's search space with its prices on all devices, as far as the method uses it.

    Raises:
        SettingError: a further device has not been profiled, or for another network.
    """
    device = PricedSpace(
        bench.space,
        bench.profile,
        bench.lpnet,
        bench.predictor,
        others=tuple(_other_device(bench.profile, name, budget_ms) for name, budget_ms in options.also),
        objective=options.objective,
        depth=options.depth,
    )
    return find_method(options.method).restricted(device)


def _other_device(first: ProfileSet, name: str, budget_ms: float) -> DeviceBudget:
    if "://" in name:
        from latency.client import lpnet_at

        there = lpnet_at(name)
        profile = there.profile()
        _require_same_format(first, name, profile)
        return DeviceBudget(name, profile, RemoteLPNet(there), there, budget_ms)
    run = RunDirectory(Path(name))
    profile = read_profile(
        run.require("profile.jsonl", f"run `trimms profile --out {name}` on that device first")
    )
    _require_same_format(first, name, profile)
    lpnet = run.require("lpnet", f"run `trimms fit --out {name}` first")
    return DeviceBudget(name, profile, load_latency_model(lpnet), Predictor.load(lpnet), budget_ms)


def _require_same_format(first: ProfileSet, name: str, other: ProfileSet) -> None:
    formats = [each.header.settings.precision for each in (first, other)]
    if formats[0] != formats[1]:
        raise SettingError(
            f"--also {name}: that device was profiled in {formats[1]}, the run's own in {formats[0]}; the pruned "
            "network is one file in one number format: profile both in the same."
        )


def feasible_budget_ms(bench: Workbench, budget: Budget, options: PruneOptions | None = None) -> float:
    """The budget in ms, if the space can reach it, on every device.

    Raises:
        BudgetError: the smallest network that the method can make is above the budget.
    """
    budget_ms = budget.at(bench.profile.reference_ms)
    device = priced_space(bench, options or PruneOptions())
    smallest = smallest_widths(device.space, device.grid)
    first = DeviceBudget("", device.profile, device.lpnet, device.predictor, budget_ms)
    for each in (first, *device.others):
        if float(each.predictor.predict_ms([smallest])[0]) <= 0.9 * each.budget_ms:
            continue
        if each is not first and not is_here(each.profile):
            smallest_ms = float(each.predictor.predict_ms([smallest])[0])
        else:
            smallest_ms, _ = measure_candidate(device.space, smallest, each.profile)
        if smallest_ms > each.budget_ms:
            raise _out_of_reach(each, smallest_ms, removable=device.depth)
    return budget_ms


def _out_of_reach(device: DeviceBudget, smallest_ms: float, *, removable: bool) -> BudgetError:
    place = f"the device of '{device.name}'" if device.name else "this device"
    of_kind = "" if removable else " whose branches all stay"
    return BudgetError(
        f"{device.budget_ms:.4g} ms is out of reach: the smallest network of this space{of_kind} takes "
        f"{smallest_ms:.4g} ms on {place} (dense: {device.profile.reference_ms:.4g} ms); ask for more, or start from "
        f"a smaller network{'' if removable else ', or take a method that removes branches'}."
    )


def prune_stage(
    bench: Workbench, budget: Budget, options: SearchOptions, how: PruneOptions | None = None
) -> dict[str, Any]:
    """Search for the channels to keep, cut and measure: `plan.json`, `prune/network.safetensors`.

    Args:
        bench: the run.
        budget: latency to meet.
        options: how a method that trains searches.
        how: the method, and further devices.

    Raises:
        BudgetError: the budget is out of reach.
        SettingError: the method cannot judge this network.
    """
    run, how = bench.run, how or PruneOptions()
    settings = require_profiled_device(bench.profile)
    budget_ms = from_first(lambda: feasible_budget_ms(bench, budget, how))
    device = priced_space(bench, how)
    inputs = {
        "budget_ms": budget_ms,
        "options": asdict(options),
        "how": asdict(how),
        "profiles": [bench.profile.digest, *(other.profile.digest for other in device.others)],
        "base": file_sha256(run.file("base.onnx")),
        "lpnets": [
            bench.predictor.manifest.identity,
            *(other.predictor.manifest.identity for other in device.others),
        ],
    }
    known = run.finished("prune", inputs)
    if known is not None and run.file("plan.json").is_file():
        return known
    network = bench.dense_network().to(training_device())
    found = search(
        network,
        bench.dense_network().to(training_device()),
        bench.task,
        device,
        budget_ms,
        options,
        method=how.method,
        seed=bench.settings.seed,
        checkpoint=run.checkpoint("prune", inputs),
        title="search" if is_first() else None,
    )

    def finish() -> dict[str, Any]:
        cut = cut_within(
            found.scores,
            device,
            budget_ms,
            method=how.method,
            seed=bench.settings.seed,
            start_ms=found.target_ms,
        )
        save_weights(network, run.file("prune/network.safetensors"))
        save_checkpoint(run.file(SCORES), Checkpoint({"scores": torch.from_numpy(found.scores)}, {}))
        cut.plan.write(run.file("plan.json"))
        result = {
            "method": how.method,
            "how": asdict(how),
            "budget_ms": budget_ms,
            "dense_ms": bench.profile.reference_ms,
            "threads": settings.threads,
            "precision": settings.precision,
            "search_epochs": len(found.history.rows),
            "search_lr": options.lr,
            "history": found.history.to_json(),
            "corrections": 0,
            **_summary(cut),
        }
        run.finish("prune", inputs, result)
        return result

    return from_first(finish)


def _summary(cut: Cut) -> dict[str, Any]:
    return {
        "predicted_ms": cut.predicted_ms,
        "measured_ms": cut.measured_ms,
        "exports": cut.n_exports,
        "also": [asdict(other) for other in cut.others],
        "widths": {name: len(kept) for name, kept in cut.plan.kept.items()},
    }


def recut_stage(
    bench: Workbench, certified_ms: float, others: tuple[OtherVerification, ...] = ()
) -> dict[str, Any]:
    """Cut again, narrower, with the scores of the search: the cut is slower than measured when it was chosen.

    Writes `plan.json`; the stages after pruning then have to be run again.

    Args:
        bench: a run with a result of `prune_stage`.
        certified_ms: what its network was found to take.
        others: the same of further devices; on one of all the network is above the budget.

    Raises:
        BudgetError: no narrower cut is measured within the budget.
    """
    run = bench.run
    pruned = run.result("prune", "run `trimms prune` first")
    known = load_checkpoint(run.require(SCORES, "run `trimms prune` first"))
    if known is None:
        raise SettingError(f"{run.file(SCORES)} has gone; run `trimms prune` again.")
    scores = known.tensors["scores"].numpy()
    how = _how(pruned.get("how", asdict(PruneOptions())))
    device = priced_space(bench, how)
    budget_ms: float = pruned["budget_ms"]
    widths = np.array([len(kept) for kept in Plan.read(run.file("plan.json")).positions(bench.space)])
    profiles = {other.name: other.profile for other in device.others}
    found = [(bench.profile, certified_ms, budget_ms)]
    found += [(profiles[o.name], o.measured_ms, o.budget_ms) for o in others if o.measured_ms is not None]
    # What of the miss is there now shows in the measurements to come; the rest is aimed below.
    hidden = [
        measure_candidate(bench.space, widths, profile)[0] / measured_ms
        for profile, measured_ms, allowed_ms in found
        if measured_ms > allowed_ms
    ]
    aim_ms = device.aim_ms(budget_ms) * min([1.0, *hidden])
    cut = cut_within(scores, device, budget_ms, method=how.method, seed=bench.settings.seed, aim_ms=aim_ms)
    cut.plan.write(run.file("plan.json"))
    result = pruned | _summary(cut) | {"corrections": pruned["corrections"] + 1}
    run.amend("prune", result)
    return result


def _how(record: Mapping[str, Any]) -> PruneOptions:
    also = tuple((str(name), float(budget_ms)) for name, budget_ms in record["also"])
    return PruneOptions(**{**record, "also": also})
