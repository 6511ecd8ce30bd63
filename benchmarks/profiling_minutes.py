"""How many minutes of profiling does LPNet need, spent on many networks or on measuring a few of them well?

    python benchmarks/profiling_minutes.py
    python benchmarks/profiling_minutes.py --minutes 0.5 --minutes 2 --seeds 2

Replays the profile of MobileNetV2 that `lpnet_accuracy.py` measured on this device. For every time and every way to
spend it (pairs a visit, visits a network) as many networks are taken from the profile, in random order, as would have
been measured in that time; LPNet is fitted to those and judged by the held-out networks. What a visit takes is read
off the profile: the time between two rows, with the pairs that the way leaves out taken off.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from environment import ROOT, write_results
from lpnet_accuracy import CASES, Judged, judged_networks, traced

from latency.device import DeviceSettings, fingerprint
from latency.errors import ProfileError
from latency.fitting import fit
from latency.measure import median_interval
from latency.metrics import prediction_metrics
from latency.profile_rows import ProfileRow
from latency.profiles import ProfileSet, read_profile
from latency.space import SearchSpace

FloatArray = npt.NDArray[np.float64]
Widths = tuple[int, ...]

CASE = "mobilenet_v2"


@dataclass(frozen=True, slots=True)
class Way:
    """How time is spent.

    Attributes:
        pairs: pairs a visit at most.
        visits: visits to each network.
    """

    pairs: int
    visits: int


WAYS = (Way(6, 1), Way(16, 1), Way(6, 2), Way(16, 2))
"""Six pairs are the fewest with a 95 % interval; sixteen in two visits are the profiler's own."""


@click.command(help=__doc__)
@click.option("--minutes", multiple=True, type=float, default=(0.25, 0.5, 1, 2, 4), show_default=True)
@click.option("--seeds", type=int, default=3, show_default=True, help="Random choices of the networks.")
def main(minutes: tuple[float, ...], seeds: int) -> None:
    """See the module's docstring."""
    folder = ROOT / "data" / "profiles" / fingerprint(DeviceSettings()).digest / CASE
    space, profile, judged = _measured(folder)
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        visits = by_network(profile, way)
        visit_seconds = float(np.median(seconds_per_visit(profile.ok_rows, way.pairs)))
        for total in minutes:
            n = int(60 * total / (way.visits * visit_seconds))
            if n > len(visits):
                continue
            found = [_errors(profile, space, judged, _choice(visits, n, seed), seed) for seed in range(seeds)]
            rows.append(
                {
                    **dataclasses.asdict(way),
                    "minutes": total,
                    "visit_seconds": visit_seconds,
                    "n_candidates": n,
                    "mape": float(np.mean(found)),
                    "mape_of_seeds": found,
                }
            )
            click.echo(
                f"{way.pairs:3} pairs, {way.visits} visit(s)  {total:5.2f} min: {n:4} networks  "
                f"MAPE {np.mean(found):.2%} ({np.min(found):.2%} to {np.max(found):.2%})"
            )
    floor = judged.noise_floor_mape
    click.echo(f"written: {write_results('profiling_minutes', rows, noise_floor_mape=floor)}")


def _measured(folder: Path) -> tuple[SearchSpace, ProfileSet, Judged]:
    try:
        profile, judging = (read_profile(folder / name) for name in ("profile.jsonl", "held_out.jsonl"))
    except ProfileError as error:
        raise click.UsageError(
            f"{error} First: python benchmarks/lpnet_accuracy.py --cases {CASE}"
        ) from error
    at_clock = dataclasses.replace(judging, fixed_reference_ms=profile.reference_ms)
    n_passes = 1 + max(row.pass_index for row in judging.ok_rows)
    return (
        SearchSpace.load(traced(CASES[CASE], folder / "base.onnx")),
        profile,
        judged_networks(at_clock, profile, n_passes),
    )


def seconds_per_visit(rows: Sequence[ProfileRow], pairs: int) -> FloatArray:
    """What visits would take with so many pairs at most, [n - 1]: the time to each row, less the pairs left out."""
    seconds = []
    for before, row in itertools.pairwise(rows):
        left_out = max(0, row.n_pairs - pairs)
        seconds.append(
            row.measured_at - before.measured_at - 1e-3 * left_out * (row.candidate_ms + row.reference_ms)
        )
    return np.array(seconds)


def by_network(profile: ProfileSet, way: Way) -> dict[Widths, list[ProfileRow]]:
    """The visits to each training network that the way makes, with its number of pairs."""
    visits: dict[Widths, list[ProfileRow]] = {}
    for row in profile.ok_rows:
        if row.split == "train" and row.pass_index < way.visits:
            visits.setdefault(row.widths, []).append(_with_pairs(row, way.pairs))
    return {widths: rows for widths, rows in visits.items() if len(rows) == way.visits}


def _with_pairs(row: ProfileRow, pairs: int) -> ProfileRow:
    ratios = row.ratios[:pairs]
    ratio = float(np.median(ratios))
    low, high = median_interval(ratios)
    stderr = (high - low) / (2 * 1.96 * ratio)
    return dataclasses.replace(row, ratios=ratios, n_pairs=len(ratios), ratio=ratio, ratio_stderr=stderr)


def _choice(visits: dict[Widths, list[ProfileRow]], n: int, seed: int) -> tuple[ProfileRow, ...]:
    """All visits to n random networks, in order of time."""
    networks = list(visits)
    chosen = np.random.default_rng(seed).permutation(len(networks))[:n]
    rows = [row for index in chosen for row in visits[networks[index]]]
    return tuple(sorted(rows, key=lambda row: row.measured_at))


def _errors(
    profile: ProfileSet, space: SearchSpace, judged: Judged, rows: tuple[ProfileRow, ...], seed: int
) -> float:
    part = dataclasses.replace(profile, rows=rows, fixed_reference_ms=profile.reference_ms)
    model = fit(part, space, seed=seed).model
    with torch.no_grad():
        predicted_ms = model(torch.from_numpy(judged.widths).float()).numpy().astype(np.float64)
    return prediction_metrics(predicted_ms, judged.latency_ms).mape


if __name__ == "__main__":
    main()
