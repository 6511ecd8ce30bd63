"""All stages in order: a trained network in, a certified smaller one out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pruning.criteria.base import SearchOptions
from pruning.device_stages import ProfileOptions, profile_stage, verification_summary
from pruning.distributed import from_first, is_first
from pruning.prune_stage import Budget, PruneOptions, feasible_budget_ms, prune_stage, recut_stage
from pruning.report_inputs import write_run_report
from pruning.run import RunDirectory, RunSettings
from pruning.stages import (
    FinetuneOptions,
    Workbench,
    finetune_stage,
    fit_stage,
    trace_stage,
    train_stage,
)
from pruning.verify import OtherVerification, Verification, certify, verify_others

MAX_CORRECTIONS = 2
"""Times that a network whose certificate misses the budget is cut again, narrower, and fine-tuned."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything a run is asked for.

    Attributes:
        settings: what is pruned.
        budget: latency to meet.
        profile: how the device is profiled.
        prune: by what channels are judged.
        search: how a method that trains searches.
        finetune: how the slim network is fine-tuned.
        command: the command that repeats the run, for the report.
    """

    settings: RunSettings
    budget: Budget
    profile: ProfileOptions = field(default_factory=ProfileOptions)
    prune: PruneOptions = field(default_factory=PruneOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    command: str = ""


def run_all(
    run: RunDirectory, options: RunOptions, announce: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run every stage that is not finished yet; the last one's figures.

    The budget is checked against the device before anything is trained. Should the finished network be measured
    above it, it is cut again.

    Args:
        run: where the files go.
        options: what is asked for.
        announce: called with one line before each stage.

    Raises:
        BudgetError: the search space cannot reach the budget.
    """
    bench = Workbench(run, options.settings)
    announce("1/7 trace: find the network's channel groups")
    from_first(lambda: trace_stage(bench))
    announce("2/7 profile: measure candidate networks on this device")
    from_first(lambda: profile_stage(run, options.profile, seed=options.settings.seed, announce=announce))
    announce("3/7 fit: train the latency predictor")
    from_first(lambda: fit_stage(run, options.settings.seed))
    budget_ms = from_first(lambda: feasible_budget_ms(bench, options.budget, options.prune))
    announce(
        f"4/7 train: the network to prune (budget {budget_ms:.4g} of {bench.profile.reference_ms:.4g} ms)"
    )
    train_stage(bench)
    announce(f"5/7 prune: search for the channels to keep ({options.prune.method}), cut, measure, correct")
    pruned = prune_stage(bench, options.budget, options.search, options.prune)
    finetune = _with_epochs_left(options, pruned["search_epochs"])
    announce(f"6/7 fine-tune: recover accuracy in {finetune.epochs} epochs, export")
    finetune_stage(bench, finetune)
    announce("7/7 verify: measure dense and pruned network side by side")
    measured = certified_within_budget(bench, finetune, announce)

    def report() -> dict[str, Any]:
        assert measured is not None, "the first process has measured"
        write_run_report(bench, measured.verification, options.command)
        return verification_summary(measured.verification, measured.others) | {
            "certificate": str(run.file("certificate.json")),
            "report": str(run.file("report.html")),
        }

    return from_first(report)


@dataclass(frozen=True, slots=True)
class Measured:
    """A certified network on its device, and on the further ones it was pruned for.

    Attributes:
        verification: the measurement that the certificate rests on.
        others: those of further devices.
    """

    verification: Verification
    others: tuple[OtherVerification, ...]

    @property
    def misses(self) -> str:
        """Latencies above their budgets, for people; empty where there is none."""
        missed = [f"{other.measured_ms:.4g} ms ({other.name})" for other in self.others if other.missed]
        if not self.verification.within_budget:
            missed.insert(0, f"{self.verification.measured_ms:.4g} ms")
        return ", ".join(missed)


def certified_within_budget(
    bench: Workbench, finetuning: FinetuneOptions, announce: Callable[[str], None] = lambda line: None
) -> Measured | None:
    """Certify the run's fine-tuned network; where it misses the budget, cut narrower and fine-tune again first.

    Args:
        bench: a run whose stages up to fine-tuning are finished.
        finetuning: how to fine-tune again.
        announce: called with one line before each correction.

    Returns:
        The last measurement; None in all processes but the first, which measures.

    Raises:
        BudgetError: no narrower cut is measured within the budget.
    """
    measured = _measured(bench)
    for _ in range(MAX_CORRECTIONS):
        misses = from_first(partial(_misses, measured))
        if not misses:
            break
        announce(f"{misses} are above the budget: cut narrower, fine-tune, measure")
        from_first(partial(_recut, bench, measured))
        finetune_stage(bench, finetuning)
        measured = _measured(bench)
    return measured


def _measured(bench: Workbench) -> Measured | None:
    return Measured(certify(bench.run), verify_others(bench.run)) if is_first() else None


def _misses(measured: Measured | None) -> str:
    return measured.misses if measured is not None else ""


def _recut(bench: Workbench, measured: Measured | None) -> dict[str, Any]:
    assert measured is not None, "the first process cuts"
    return recut_stage(bench, measured.verification.measured_ms, measured.others)


def _with_epochs_left(options: RunOptions, search_epochs: int) -> FinetuneOptions:
    """Fine-tuning with the epochs that the method did not search in, so that all methods train alike."""
    left = options.search.epochs - search_epochs
    return replace(options.finetune, epochs=options.finetune.epochs + left)
