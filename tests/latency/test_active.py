import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from latency import active
from latency._residual import MlpSettings
from latency.active import choose_round, profile_actively, spread_out
from latency.bench import row_of
from latency.device import DeviceSettings, fingerprint
from latency.errors import InputError
from latency.fitting import FitSettings, fit
from latency.grid import Grid
from latency.journal import open_journal
from latency.measure import PairedMeasurement, Protocol
from latency.profiles import ProfileSet, read_profile
from latency.profiling import ProfilePlan
from latency.space import SearchSpace
from latency.worker import CandidateResult
from tests.latency.test_profiling import Sink
from tests.nets import NETS

ROUND = 6


class FakeBench:
    """Measures at once: latency grows with the sum of the widths, and a little with what they leave modulo 7."""

    fingerprint = fingerprint(DeviceSettings())

    def rows(self, keys):
        for key in keys:
            ratio = (0.1 + sum(key[0]) / 40) * (
                1 + 0.01 * (np.dot(key[0], range(3, 3 + len(key[0]))) % 7) / 7
            )
            sample = PairedMeasurement(
                ratio,
                (ratio, ratio),
                ratio,
                1.0,
                ratio,
                1.0,
                6,
                0,
                True,
                0.02,
                (ratio,) * 6,
                (1.0,) * 6,
                (1.0,) * 7,
            )
            yield row_of(key, CandidateResult(sample))

    def __enter__(self):
        return self

    def __exit__(self, *details) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def _small_rounds_and_quick_fits() -> Iterator[None]:
    quick = FitSettings(strengths=(1e-2,), mlp=MlpSettings(max_steps=20, check_every=10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active, "LARGEST_ROUND", ROUND)
        patch.setattr(active, "POOL", 60)
        patch.setattr(active, "fit", partial(fit, settings=quick))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.onnx"
    onnx.save(NETS["two_block_residual"]().model, path)
    return path


@pytest.fixture(scope="module")
def run(base: Path) -> Callable[..., ProfileSet]:
    space = SearchSpace.load(base)
    grid = Grid(tuple(tuple(range(0 if g.zero_allowed else 1, g.n_channels + 1)) for g in space.groups))

    def profiled(out: Path, *, share: float = 0.3, sink: Sink | None = None, **plan) -> ProfileSet:
        wanted = {"n_candidates": 30, "n_held_out": 5, "grid": grid, "protocol": Protocol()} | plan
        return profile_actively(
            base,
            out,
            DeviceSettings(),
            ProfilePlan(**wanted),
            share=share,
            show_progress=False,
            open_bench=lambda setup: FakeBench(),
            sinks=[sink] if sink else [],
        )

    return profiled


@pytest.fixture(scope="module")
def finished_path(run: Callable[..., ProfileSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "profile.jsonl"
    run(path)
    return path


@pytest.fixture
def finished(finished_path: Path) -> ProfileSet:
    return read_profile(finished_path)


def test_the_last_share_is_chosen_in_rounds_and_every_network_is_visited_twice(finished: ProfileSet) -> None:
    chosen = [widths for one in finished.rounds for widths in one]
    train = {row.widths for row in finished.rows if row.split == "train"}
    assert [len(one) for one in finished.rounds] == [ROUND, 3]
    assert len(set(chosen)) == 9
    assert set(chosen) < train
    assert len(train) == 30
    assert len(finished.rows) == len({row.key for row in finished.rows}) == 2 * (30 + 5)


def test_no_held_out_network_is_chosen(finished: ProfileSet) -> None:
    held_out = {row.widths for row in finished.rows if row.split == "held_out"}
    assert len(held_out) == 5
    assert not held_out & {widths for one in finished.rounds for widths in one}


@pytest.mark.parametrize(("n_rows", "n_rounds"), [(56, 1), (91, 2)])
def test_interrupted_rounds_are_continued_as_they_were_chosen(
    run: Callable[..., ProfileSet], finished: ProfileSet, tmp_path: Path, n_rows: int, n_rounds: int
) -> None:
    """A sink gets the rows of earlier steps again: 26 before the rounds, then 26 + 6, then 32 + 3."""
    out = tmp_path / "profile.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(out, sink=Sink(stop_after=n_rows))
    begun = read_profile(out).rounds
    assert len(begun) == n_rounds
    continued = run(out)
    assert continued.rounds[: len(begun)] == begun
    assert continued.rounds == finished.rounds
    assert sorted(row.key for row in continued.rows) == sorted(row.key for row in finished.rows)
    assert run(out).digest == continued.digest


def test_a_larger_profile_keeps_the_rounds_that_it_had(
    run: Callable[..., ProfileSet], tmp_path: Path, finished: ProfileSet, finished_path: Path
) -> None:
    out = Path(shutil.copy(finished_path, tmp_path))
    more = run(out, n_candidates=40)
    assert more.rounds[:2] == finished.rounds
    assert sum(map(len, more.rounds)) == 12
    assert len({row.widths for row in more.rows if row.split == "train"}) == 40


def test_a_round_is_written_before_it_is_measured_and_survives_reading(
    finished: ProfileSet, tmp_path: Path
) -> None:
    path = tmp_path / "profile.jsonl"
    with open_journal(path) as journal:
        journal.start(finished.header)
        journal.begin_round(finished.rounds[0])
    assert read_profile(path).rounds == finished.rounds[:1]


def test_the_choice_is_where_the_ensemble_disagrees(finished: ProfileSet, base: Path) -> None:
    """Chosen networks have a larger spread than the pool that they are chosen from."""
    space = SearchSpace.load(base)
    spreads: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            active,
            "spread_out",
            lambda pool, known, weight, n: spreads.append(weight) or spread_out(pool, known, weight, n),
        )
        chosen = choose_round(finished, space, ROUND, seed=0)
    taken = spread_out(np.zeros((60, 1)), np.ones((1, 1)), spreads[0], 1)
    assert len(chosen) == ROUND
    assert not {row.widths for row in finished.rows} & set(chosen)
    assert spreads[0][taken[0]] == spreads[0].max()


def test_the_most_wanted_comes_first_and_its_near_twins_are_passed_over() -> None:
    pool = np.array([[0.50], [0.51], [0.90], [0.05]])
    known = np.array([[0.0]])
    assert spread_out(pool, known, np.array([1.0, 1.0, 0.4, 1.0]), 2) == [1, 2]
    assert spread_out(pool, known, np.ones(4), 9) == [2, 0, 3, 1]


@pytest.mark.parametrize("share", [0.5, 1.0, 0.0])
def test_too_few_networks_to_fit_to_are_refused(
    run: Callable[..., ProfileSet], tmp_path: Path, share: float
) -> None:
    with pytest.raises(
        InputError, match=f"leave at least 20 candidates to begin with; got {share:.0%} of 30"
    ):
        run(tmp_path / "profile.jsonl", share=share)
    assert not list(tmp_path.iterdir())


def test_a_time_is_refused(run: Callable[..., ProfileSet], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give candidates, not minutes"):
        run(tmp_path / "profile.jsonl", minutes=3.0)


def test_a_small_space_ends_the_rounds(tmp_path: Path, run: Callable[..., ProfileSet], base: Path) -> None:
    space = SearchSpace.load(base)
    grid = Grid(tuple((0, g.n_channels) if g.zero_allowed else (4, g.n_channels) for g in space.groups))
    found = run(tmp_path / "profile.jsonl", n_candidates=60, share=0.6, grid=grid, n_held_out=0)
    assert len({row.widths for row in found.rows}) < 60
    assert not found.rounds
