"""Do training networks that are chosen where LPNet's ensemble disagrees teach it more than random ones?

    python benchmarks/active_rounds.py

Replays the committed profile of MobileNetV2. From a random start the next 50 of the networks that were measured are
chosen, in two rounds with a fit before each, in several ways. LPNet is fitted to both together and judged by the
networks of another profile, six visits to each. What is chosen from is what is left of the profile, some 250 networks;
`trimms profile --active` has 1,000 to choose from in each round.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from environment import ROOT, write_results
from lpnet_accuracy import CASES, judged_networks, traced

from latency.active import spread_out
from latency.fitting import FitResult, fit
from latency.lpnet import LPNet
from latency.metrics import prediction_metrics
from latency.profiles import ProfileSet, read_profile
from latency.space import SearchSpace
from latency.structure import IntArray

FloatArray = npt.NDArray[np.float64]

CASE = "mobilenet_v2"
FOLDER = ROOT / "data" / "profiles" / "2fb28af174715d23" / CASE
N_MORE, N_ROUNDS, PASSES = 50, 2, 6
VISIT_ERROR = 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """What a round chooses from.

    Attributes:
        shares: widths relative to the full ones, [n, n_groups].
        known: those of the networks that are trained on already, [n_known, n_groups].
        deviations: what each of the ensemble says beyond their mean, relative to the latency, scaled so that the
            sum of the squares is the variance of the latency, [n, n_members].
    """

    shares: FloatArray
    known: FloatArray
    deviations: FloatArray

    @property
    def spread(self) -> FloatArray:
        """The ensemble's relative standard error, [n]."""
        return np.asarray(np.sqrt((self.deviations**2).sum(axis=1)), dtype=np.float64)


Choose = Callable[[Pool, int, np.random.Generator], list[int]]


def at_random(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    """Any of the pool."""
    return [int(index) for index in rng.choice(len(pool.shares), n, replace=False)]


def largest_spread(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    """Where the ensemble disagrees most, near-twins or not."""
    return [int(index) for index in np.argsort(-pool.spread)[:n]]


def spread_and_far(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    """As `trimms profile --active` chooses."""
    return spread_out(pool.shares, pool.known, pool.spread, n)


def still_unknown(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    """Where the ensemble would disagree most once those taken before are measured with an error of `VISIT_ERROR`."""
    taken: list[int] = []
    precision = np.eye(pool.deviations.shape[1])
    for _ in range(n):
        variance = ((pool.deviations @ np.linalg.inv(precision)) * pool.deviations).sum(axis=1)
        variance[taken] = -1.0
        taken.append(int(np.argmax(variance)))
        precision += np.outer(pool.deviations[taken[-1]], pool.deviations[taken[-1]]) / VISIT_ERROR**2
    return taken


def far(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    """Far from each other, whatever the ensemble says."""
    return spread_out(pool.shares, pool.known, np.ones(len(pool.shares)), n)


WAYS: Mapping[str, Choose] = {
    "random": at_random,
    "largest spread": largest_spread,
    "spread x distance": spread_and_far,
    "spread once the others are known": still_unknown,
    "distance": far,
}


@click.command(help=__doc__)
@click.option("--seeds", type=int, default=8, show_default=True, help="Random starts.")
@click.option("--starts", default="50,100", show_default=True, help="Networks to start with.")
@click.option("--base", type=click.Path(path_type=Path), default=FOLDER / "base.onnx", help="Its base.onnx.")
def main(seeds: int, starts: str, base: Path) -> None:
    """See the module's docstring."""
    space = SearchSpace.load(traced(CASES[CASE], base))
    profile, judging = (read_profile(FOLDER / name) for name in ("profile.jsonl", "held_out.jsonl"))
    judged = judged_networks(
        dataclasses.replace(judging, fixed_reference_ms=profile.reference_ms), profile, PASSES
    )
    seen = {row.widths for row in judging.ok_rows}
    every = np.array(
        [widths for widths in dict.fromkeys(r.widths for r in profile.ok_rows) if widths not in seen]
    )
    rows: list[dict[str, Any]] = []
    for n_start in (int(text) for text in starts.split(",")):
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(every))
            first = fit(_part(profile, every[order[:n_start]]), space, seed=seed)
            for name, choose in WAYS.items():
                fitted = _after_rounds(first, profile, space, every[order], n_start, choose, seed)
                found = prediction_metrics(_predict_ms(fitted, judged.widths), judged.latency_ms)
                rows.append(
                    {"way": name, "n_start": n_start, "n_more": N_MORE, "seed": seed, **found.to_json()}
                )
                click.echo(f"{n_start:4} + {N_MORE}  seed {seed}  {name:32} MAPE {found.mape:.3%}")
    summary = _summary(rows)
    for row in summary:
        click.echo(
            f"{row['n_start']:4} + {N_MORE}  {row['way']:32} MAPE {row['mape']:.3%}, less than at random by "
            f"{row['gain']:+.3%} ± {row['gain_stderr']:.3%}"
        )
    floor = judged.noise_floor_mape
    click.echo(f"written: {write_results('active_rounds', rows, summary=summary, noise_floor_mape=floor)}")


def _after_rounds(
    first: FitResult,
    profile: ProfileSet,
    space: SearchSpace,
    widths: IntArray,
    n_start: int,
    choose: Choose,
    seed: int,
) -> FitResult:
    """LPNet of the first networks and those that rounds chose of the others."""
    fitted, known, pool = first, widths[:n_start], widths[n_start:]
    rng = np.random.default_rng(seed)
    for _ in range(N_ROUNDS):
        shares = Pool(pool / space.full_widths, known / space.full_widths, _deviations(fitted, pool))
        taken = choose(shares, N_MORE // N_ROUNDS, rng)
        known, pool = np.concatenate([known, pool[taken]]), np.delete(pool, taken, axis=0)
        fitted = fit(_part(profile, known), space, seed=seed)
    return fitted


def _part(profile: ProfileSet, widths: IntArray) -> ProfileSet:
    """The profile of those networks alone, all of them to train on."""
    wanted = {tuple(row) for row in widths.tolist()}
    rows = [dataclasses.replace(row, split="train") for row in profile.ok_rows if row.widths in wanted]
    return dataclasses.replace(profile, rows=tuple(rows), fixed_reference_ms=profile.reference_ms)


def _deviations(fitted: FitResult, widths: IntArray) -> FloatArray:
    model = fitted.model
    assert isinstance(model, LPNet)
    with torch.no_grad():
        features = model.encoding(torch.from_numpy(widths).float())
        each_ms = features @ model.members[:, :-1].T + model.members[:, -1]
        relative = (each_ms - each_ms.mean(1, keepdim=True)) / model.physics_ms(features)[:, None]
    n_members = len(model.members)
    return np.asarray(relative, dtype=np.float64) * np.sqrt((n_members - 1) / n_members)


def _predict_ms(fitted: FitResult, widths: IntArray) -> FloatArray:
    with torch.no_grad():
        return np.asarray(fitted.model(torch.from_numpy(widths).float()), dtype=np.float64)


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean error of each way, and by how much it is below that of random networks from the same starts."""
    summary = []
    for n_start, way in dict.fromkeys((row["n_start"], row["way"]) for row in rows):
        same = {w: _errors(rows, n_start, w) for w in (way, "random")}
        gain = same["random"] - same[way]
        summary.append(
            {
                "n_start": n_start,
                "way": way,
                "mape": float(same[way].mean()),
                "gain": float(gain.mean()),
                "gain_stderr": float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0,
            }
        )
    return summary


def _errors(rows: list[dict[str, Any]], n_start: int, way: str) -> FloatArray:
    return np.array([row["mape"] for row in rows if (row["n_start"], row["way"]) == (n_start, way)])


if __name__ == "__main__":
    main()
