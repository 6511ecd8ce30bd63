import dataclasses

import numpy as np
import pytest
from profiling_minutes import Way, by_network, seconds_per_visit

from latency.profile_rows import ProfileRow
from latency.profiles import ProfileSet
from tests.latency.test_fitting import make_profile, staircase_ms

RATIOS = tuple(0.5 + 0.01 * i for i in range(16))


def visit(pass_index: int = 0, *, at_s: float = 0.0, split: str = "train") -> ProfileRow:
    """A row of 16 pairs, each of which takes 2 + 4 ms."""
    return ProfileRow(
        (8, 8),
        split,  # type: ignore[arg-type]
        pass_index,
        "ok",
        ratio=float(np.median(RATIOS)),
        ratio_stderr=0.01,
        candidate_ms=2.0,
        reference_ms=4.0,
        n_pairs=len(RATIOS),
        measured_at=at_s,
        ratios=RATIOS,
    )


@pytest.fixture
def profile() -> ProfileSet:
    profile = make_profile(staircase_ms, n_train=20)  # type: ignore[arg-type]
    header = dataclasses.replace(
        profile.header,
        group_names=("a", "b"),
        full_widths=(8, 8),
        grid=dataclasses.replace(profile.header.grid, allowed=((8,), (8,))),
    )
    return ProfileSet(header, (visit(), visit(1), visit(split="held_out")))


def test_pairs_that_are_left_out_take_no_time() -> None:
    rows = [visit(at_s=1.0), visit(1, at_s=1.2), visit(2, at_s=1.5)]

    assert seconds_per_visit(rows, 16) == pytest.approx([0.2, 0.3])
    assert seconds_per_visit(rows, 6) == pytest.approx([0.14, 0.24])


def test_a_way_takes_the_first_pairs_of_its_visits_to_training_networks(profile: ProfileSet) -> None:
    ((widths, once),) = by_network(profile, Way(pairs=6, visits=1)).items()
    (twice,) = by_network(profile, Way(pairs=6, visits=2)).values()

    assert (widths, len(once), len(twice)) == ((8, 8), 1, 2)
    assert once[0].ratio == pytest.approx(np.median(RATIOS[:6]))
    assert once[0].n_pairs == 6
    assert once[0].ratio_stderr == pytest.approx(0.05 / (2 * 1.96 * 0.525))


def test_networks_with_too_few_visits_are_left_out(profile: ProfileSet) -> None:
    assert by_network(profile, Way(pairs=6, visits=3)) == {}
