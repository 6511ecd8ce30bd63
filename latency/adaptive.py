"""Profile a network until its LPNet is good enough: measure some candidates, fit, look, measure more."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from latency.bench import OpenBench, local_bench
from latency.device import DeviceSettings
from latency.errors import InputError
from latency.fitting import FitResult, fit
from latency.journal import RowSink
from latency.profiles import ProfileSet
from latency.profiling import ProfilePlan, profile
from latency.space import SearchSpace

ROUND = 50
"""Training candidates that are measured between two looks at the error."""


def profile_until(
    space_path: Path,
    out_path: Path,
    settings: DeviceSettings,
    plan: ProfilePlan,
    *,
    mape: float,
    show_progress: bool = True,
    open_bench: OpenBench = local_bench,
    announce: Callable[[str], None] = lambda line: None,
    sinks: Sequence[RowSink] = (),
) -> tuple[ProfileSet, FitResult]:
    """Measure until LPNet's error on the held-out networks is at most `mape`, or the plan's candidates are used up.

    Args:
        space_path: the base ONNX file.
        out_path: the profile set, begun or continued.
        settings: provider, threads, batch size.
        plan: candidates at most, held-out networks, how each is measured.
        mape: mean absolute relative error to reach, 0.01 is 1 %.
        show_progress: whether to show a bar for each round on stderr.
        open_bench: gives the devices to measure on, as for `latency.profiling.profile`.
        announce: called with one line after each round.
        sinks: where rows go besides the file, as for `latency.profiling.profile`.

    Returns:
        The profile and the LPNet fitted to it; what the error is its manifest says.

    Raises:
        InputError: `mape` is no error that can be reached, or no networks are held out to see it by.
        LatencyError: as `latency.profiling.profile`.
    """
    if not 0 < mape < 1 or plan.n_held_out < 1:
        raise InputError(
            f"An error to reach lies between 0 and 100 % and is seen on held-out networks; got {mape:.3%} and "
            f"{plan.n_held_out} held-out networks."
        )
    space = SearchSpace.load(space_path)
    n_candidates = 0
    while True:
        n_candidates = min(n_candidates + ROUND, plan.n_candidates)
        part = replace(plan, n_candidates=n_candidates)
        measured = profile(
            space_path,
            out_path,
            settings,
            part,
            show_progress=show_progress,
            open_bench=open_bench,
            sinks=sinks,
        )
        fitted = fit(measured, space, seed=plan.seed)
        error = fitted.metrics[fitted.manifest.kind].mape
        floor = measured.noise_floor_mape or 0.0
        announce(f"{fitted.manifest.n_train} candidates: error {error:.2%}, noise floor {floor:.2%}")
        if error <= mape or n_candidates >= plan.n_candidates:
            return measured, fitted
