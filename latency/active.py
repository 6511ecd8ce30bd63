"""Active rounds: the last networks of a profile are chosen where LPNet's ensemble disagrees.

Each round fits LPNet to what has been measured, draws a pool of new networks as `latency.sampling` does, and takes
from it, one after the other, the network with the largest

    spread · distance

where the spread is the ensemble's standard error of the latency, relative, and the distance that to the nearest network
already measured or taken: root mean square of the differences of the widths' shares. So a round is no bundle of
near-twins.

It is no default: on MobileNetV2 the error with 100 networks falls from 0.95 to 0.93 %, with 150 from 0.87 to
0.86 %, both within what the draw of the first networks makes (`benchmarks/active_rounds.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from latency.bench import OpenBench, local_bench
from latency.device import DeviceSettings
from latency.errors import InputError
from latency.fitting import fit
from latency.journal import RowSink
from latency.lpnet import LPNet
from latency.profiles import ProfileSet, Round
from latency.profiling import ProfilePlan, profile
from latency.sampling import stream_widths
from latency.space import SearchSpace

FloatArray = npt.NDArray[np.float64]

LARGEST_ROUND = 50
"""Networks chosen by one fit."""

POOL = 1000
"""Networks that a round chooses from."""

FEWEST_SAMPLED = 20
"""Networks below which a fit tells nothing about where to measure."""


def profile_actively(
    space_path: Path,
    out_path: Path,
    settings: DeviceSettings,
    plan: ProfilePlan,
    *,
    share: float,
    show_progress: bool = True,
    open_bench: OpenBench = local_bench,
    sinks: Sequence[RowSink] = (),
    announce: Callable[[str], None] = lambda line: None,
) -> ProfileSet:
    """As `latency.profiling.profile`, with the last share of the training candidates chosen in active rounds.

    What a round chose is written to the profile before it is measured, so that an interrupted one is continued.
    The later passes come last, over all networks.

    Args:
        space_path: the base ONNX file.
        out_path: the profile set, begun or continued.
        settings: provider, threads, batch size, number format.
        plan: how many candidates in all, measured how.
        share: the rounds' part of the training candidates, in (0, 1).
        show_progress: whether to show a bar for each round on stderr.
        open_bench: gives the devices to measure on.
        sinks: where rows go besides the file.
        announce: called with one line before each round.

    Raises:
        InputError: too few candidates are left to fit to, or the plan ends by time.
        LatencyError: as `latency.profiling.profile`.
    """
    n_active = round(share * plan.n_candidates)
    n_sampled = plan.n_candidates - n_active
    if not 0 < share < 1 or n_sampled < FEWEST_SAMPLED:
        raise InputError(
            f"Active rounds take a share between 0 and 100 % and leave at least {FEWEST_SAMPLED} candidates to begin "
            f"with; got {share:.0%} of {plan.n_candidates}."
        )
    if plan.minutes is not None:
        raise InputError("Active rounds are a share of a number of candidates: give candidates, not minutes.")
    space = SearchSpace.load(space_path)

    def measure(part: ProfilePlan) -> ProfileSet:
        return profile(
            space_path,
            out_path,
            settings,
            part,
            show_progress=show_progress,
            open_bench=open_bench,
            sinks=sinks,
        )

    one_pass = replace(plan, n_candidates=n_sampled, passes=1, precision=None)
    measured = measure(one_pass)
    while (n_missing := n_active - sum(map(len, measured.rounds))) > 0:
        chosen = choose_round(measured, space, min(LARGEST_ROUND, n_missing), seed=plan.seed)
        if not chosen:
            announce("no further active round: the space has no more networks")
            break
        announce(f"active round {len(measured.rounds) + 1}: {len(chosen)} networks where LPNet is least sure")
        measured = measure(replace(one_pass, new_round=chosen))
    return measure(replace(plan, n_candidates=n_sampled))


def choose_round(measured: ProfileSet, space: SearchSpace, n: int, *, seed: int) -> Round:
    """Networks to measure next, at most `n`, none of which has been measured; none where the space is so small.

    Args:
        measured: what there is, one pass at least.
        space: the network that it was measured for.
        n: how many to choose.
        seed: seed of the pool and of the fit.
    """
    known = {row.widths for row in measured.rows}
    # Another pool for each round, none of them the stream that the profile's own networks come from.
    pool_seed = np.random.SeedSequence((seed, len(measured.rounds) + 1)).generate_state(1)[0]
    stream = stream_widths(space, measured.header.grid, int(pool_seed))
    new = [widths for widths in islice(stream, POOL + len(known)) if tuple(widths.tolist()) not in known]
    if not new or len(measured.arrays("train").latency_ms) < FEWEST_SAMPLED:
        return ()
    pool = np.array(new[:POOL])
    model = fit(measured, space, seed=seed).model
    assert isinstance(model, LPNet)
    with torch.no_grad():
        spread = model.spread(torch.from_numpy(pool).float()).double().numpy()
    taken = spread_out(pool / space.full_widths, np.array(list(known)) / space.full_widths, spread, n)
    return tuple(tuple(pool[index].tolist()) for index in taken)


def spread_out(pool: FloatArray, known: FloatArray, weight: FloatArray, n: int) -> list[int]:
    """Rows of the pool with a large weight, far from each other and from what is known.

    Args:
        pool: points to choose from, [n_pool, n_axes].
        known: points that are there, [n_known, n_axes].
        weight: how much each point of the pool is wanted, [n_pool].
        n: how many to choose.

    Returns:
        Different rows, at most `n`, the most wanted first.
    """
    distance = np.min([_rms(pool - point) for point in known], axis=0)
    taken: list[int] = []
    while len(taken) < min(n, len(pool)):
        value = distance * weight
        value[taken] = -1.0
        taken.append(int(np.argmax(value)))
        distance = np.minimum(distance, _rms(pool - pool[taken[-1]]))
    return taken


def _rms(differences: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.mean(differences**2, axis=1)), dtype=np.float64)
