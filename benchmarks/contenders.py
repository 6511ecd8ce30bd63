"""Runs one configuration of the comparison to its final network: every method through the same stages.

Each stage keeps its files in the configuration's folder and goes on where it was interrupted, even by `kill -9`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations import ABLATIONS, Ablation
from configurations import Configuration, Outcome, content_key, data_digest, protocol_of
from environment import made_by
from workloads import Places, Workload, dense_weights, settings_of

from latency.device import DeviceSettings, fingerprint
from pruning.budget import smallest_widths
from pruning.certificate import Certificate
from pruning.criteria import METHODS
from pruning.criteria.base import SearchOptions
from pruning.device_stages import ProfileOptions, profile_stage
from pruning.errors import BudgetError
from pruning.pipeline import certified_within_budget
from pruning.plan import Plan, make_plan
from pruning.prune_stage import Budget, PruneOptions, priced_space, prune_stage
from pruning.run import RunDirectory
from pruning.stages import FinetuneOptions, Workbench, finetune_stage, fit_stage, trace_stage
from pruning.verify import certify, measure_candidate
from pruning.weights import save_weights

SHARED = ("base.onnx", "profile.jsonl", "lpnet")
"""Files of the device's run that every configuration starts from."""


class Ground:
    """What all methods of a workload share on this device: dense network, data, profile, LPNet.

    Args:
        workload: the workload.
        places: where data and weights lie.
        runs: folder of all runs.
    """

    def __init__(self, workload: Workload, places: Places, runs: Path) -> None:
        self.workload, self.places = workload, places
        self.device = fingerprint(DeviceSettings(batch_size=workload.input_shape[0])).digest
        self._home = runs / workload.name
        self.folder = self._home / self.device

    @cached_property
    def dense(self) -> Path:
        """Weights of the network that every method prunes."""
        return dense_weights(self.workload, self.places, self._home)

    @cached_property
    def shared(self) -> Workbench:
        """The dense network, traced, profiled and fitted on this device."""
        run = RunDirectory(self.folder / "device")
        bench = Workbench(run, settings_of(self.workload, self.places, self.dense, seed=0))
        trace_stage(bench)
        profiling = ProfileOptions(
            n_candidates=self.workload.n_candidates, n_held_out=self.workload.n_held_out
        )
        profile_stage(run, profiling, seed=0)
        fit_stage(run, seed=0)
        return bench

    @property
    def dense_ms(self) -> float:
        """Latency of the dense network by the device's profile."""
        return self.shared.profile.reference_ms

    def budget_ms(self, configuration: Configuration) -> float:
        """The configuration's budget."""
        return configuration.budget_share * self.dense_ms

    def folder_of(self, configuration: Configuration) -> Path:
        """The configuration's own folder."""
        key = content_key(configuration, self._deciding(configuration))
        return self.folder / f"{configuration.name}-{key}"

    def _deciding(self, configuration: Configuration) -> Mapping[str, Any]:
        schedule = schedule_of(configuration)
        return {
            "weights": self.shared.settings.weights_sha256,
            "data": self._data_digest,
            "device": self.device,
            "profile": self.shared.profile.digest,
            "schedule": [asdict(part) for part in schedule],
        }

    @cached_property
    def _data_digest(self) -> str:
        _, _, location = self.shared.settings.data.partition(":")
        return data_digest(Path(location) if location else None)

    def workbench(self, configuration: Configuration) -> Workbench:
        """A run of the configuration's own, with what is shared copied into it."""
        folder = self.folder_of(configuration)
        folder.mkdir(parents=True, exist_ok=True)
        for name in SHARED:
            source = self.shared.run.file(name)
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
            elif not (folder / name).is_file():
                shutil.copyfile(source, folder / name)
        settings = settings_of(self.workload, self.places, self.dense, configuration.seed)
        return ablation_of(configuration).bench(RunDirectory(folder), settings)

    def outcome(self, configuration: Configuration, **found: Any) -> Outcome:
        """An outcome of the configuration, made here and now."""
        return Outcome(
            workload=self.workload.name,
            method=configuration.method,
            ablation=configuration.ablation,
            budget_share=configuration.budget_share,
            budget_ms=self.budget_ms(configuration),
            dense_ms=self.dense_ms,
            epochs=configuration.workload.epochs,
            learning_rate=configuration.learning_rate,
            seed=configuration.seed,
            device=self.device,
            protocol=protocol_of(configuration.method),
            made_by=made_by(),
            **found,
        )


def ablation_of(configuration: Configuration) -> Ablation:
    """What differs from the method as it is; nothing, where it is no ablation."""
    return ABLATIONS[configuration.ablation] if configuration.ablation else Ablation("nothing")


def schedule_of(configuration: Configuration) -> tuple[SearchOptions, FinetuneOptions]:
    """How is searched and fine-tuned: together as many epochs for every method of a workload."""
    workload, ablation = configuration.workload, ablation_of(configuration)
    method = METHODS.get(configuration.method)  # None for those of other packages, which only fine-tune
    searches = method is not None and ablation.choose is None
    size, rate = workload.batch_size, configuration.learning_rate
    search = ablation.search(SearchOptions(epochs=workload.search_epochs, batch_size=size, lr=rate))
    n_search = method.search_epochs(search.epochs) if method is not None and searches else 0
    tuning = FinetuneOptions(epochs=workload.epochs - n_search, batch_size=size, learning_rate=rate)
    return search, ablation.finetune(tuning)


def prune_options(configuration: Configuration) -> PruneOptions:
    """By what channels are judged."""
    return ablation_of(configuration).prune(PruneOptions(method=configuration.method))


def run_configuration(ground: Ground, configuration: Configuration) -> Outcome:
    """The configuration's outcome: from its folder if it is finished, else by running what is left of it."""
    folder = ground.folder_of(configuration)
    known = Outcome.read(folder)
    if known is not None:
        return known
    if configuration.method.startswith("torch-pruning"):
        from torch_pruning_contender import run_torch_pruning

        outcome = run_torch_pruning(ground, configuration)
    elif ablation_of(configuration).choose is not None:
        outcome = _run_other_filters(ground, configuration)
    else:
        outcome = _run_method(ground, configuration)
    outcome.write(folder)
    return outcome


def _run_method(ground: Ground, configuration: Configuration) -> Outcome:
    bench = ground.workbench(configuration)
    search, tuning = schedule_of(configuration)
    how = prune_options(configuration)
    try:
        pruned = prune_stage(bench, Budget(budget_ms=ground.budget_ms(configuration)), search, how)
        if pruned["search_epochs"] + tuning.epochs != configuration.workload.epochs:
            raise RuntimeError(
                f"{configuration.name} searched for {pruned['search_epochs']} epochs, which leaves other than the "
                f"{tuning.epochs} of its fine-tuning: its total would not be the others'."
            )
        return _finished(ground, configuration, bench, tuning)
    except BudgetError as error:
        return _out_of_reach(ground, configuration, bench, str(error))


def _run_other_filters(ground: Ground, configuration: Configuration) -> Outcome:
    """Filters chosen in another way at the widths that the method itself has found."""
    plain = replace(configuration, ablation=None)
    if not run_configuration(ground, plain).has_network:
        return ground.outcome(configuration, note="the method itself does not reach the budget")
    bench = ground.workbench(configuration)
    run, space = bench.run, bench.space
    source = RunDirectory(ground.folder_of(plain))
    widths = Plan.read(source.file("plan.json")).widths(space)
    choose = ablation_of(configuration).choose
    assert choose is not None
    network = bench.dense_network()
    pruned = source.result("prune", "it is finished")
    if not run.file("plan.json").is_file():
        kept = choose(space, network, widths, configuration.seed)
        make_plan(space, kept, criterion=configuration.ablation, seed=configuration.seed).write(
            run.file("plan.json")
        )
    save_weights(network, run.file("prune/network.safetensors"))
    run.finish("prune", {}, pruned | {"history": [], "search_epochs": 0})
    return _finished(ground, configuration, bench, schedule_of(configuration)[1], may_recut=False)


def _finished(
    ground: Ground,
    configuration: Configuration,
    bench: Workbench,
    tuning: FinetuneOptions,
    *,
    may_recut: bool = True,
) -> Outcome:
    run = bench.run
    finetune_stage(bench, tuning)
    if may_recut:
        certified_within_budget(bench, tuning)
    else:
        certify(run)
    certificate = Certificate.read(run.file("certificate.json"))
    histories = [run.result(stage, "it is finished")["history"] for stage in ("prune", "finetune")]
    return ground.outcome(
        configuration,
        predicted_ms=certificate.predicted_ms,
        certified_ms=certificate.measured_ms,
        accuracy=certificate.accuracy,
        dense_accuracy=certificate.dense_accuracy,
        macs=certificate.macs,
        params=certificate.params,
        wall_seconds=sum(row["seconds"] for history in histories for row in history),
    )


def _out_of_reach(ground: Ground, configuration: Configuration, bench: Workbench, reason: str) -> Outcome:
    device = priced_space(bench, prune_options(configuration))
    smallest = smallest_widths(bench.space, device.grid)
    smallest_ms, _ = measure_candidate(bench.space, smallest, bench.profile)
    return ground.outcome(configuration, smallest_ms=smallest_ms, note=reason)
