from pathlib import Path

import pytest

from latency import adaptive
from latency.adaptive import ROUND, profile_until
from latency.device import DeviceSettings
from latency.errors import InputError
from latency.fitting import FitResult, fit
from latency.profiles import ProfileSet
from latency.profiling import ProfilePlan
from tests.latency.test_fitting import SPACE, congested_ms, make_profile

PLAN = ProfilePlan(n_candidates=180, n_held_out=60)


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of candidates that were asked for; measuring gives a device whose LPNet gets better with them."""
    numbers: list[int] = []

    def measured(
        space: Path, out: Path, settings: DeviceSettings, plan: ProfilePlan, **rest: bool
    ) -> ProfileSet:
        numbers.append(plan.n_candidates)
        return make_profile(congested_ms, n_train=plan.n_candidates)  # type: ignore[arg-type]

    monkeypatch.setattr(adaptive, "profile", measured)
    monkeypatch.setattr(adaptive.SearchSpace, "load", lambda path: SPACE)
    return numbers


def until(mape: float, plan: ProfilePlan = PLAN) -> tuple[ProfileSet, FitResult, list[str]]:
    lines: list[str] = []
    found = profile_until(Path("base"), Path("out"), DeviceSettings(), plan, mape=mape, announce=lines.append)
    return *found, lines


def test_it_ends_once_the_error_is_reached(asked_for: list[int]) -> None:
    few = fit(make_profile(congested_ms, n_train=ROUND), SPACE).metrics["LPNet"].mape  # type: ignore[arg-type]

    measured, fitted, lines = until(1.01 * few)

    assert asked_for == [ROUND]
    assert fitted.manifest.n_train == len(measured.arrays("train").latency_ms) == ROUND
    assert lines == [f"{ROUND} candidates: error {few:.2%}, noise floor {measured.noise_floor_mape:.2%}"]


def test_it_ends_where_the_plans_candidates_do(asked_for: list[int]) -> None:
    _, fitted, _ = until(1e-6)

    assert asked_for == [50, 100, 150, 180]
    assert fitted.manifest.n_train == 180


@pytest.mark.parametrize(("mape", "n_held_out"), [(0.0, 60), (1.5, 60), (0.01, 0)])
def test_an_error_that_cannot_be_seen_is_refused(mape: float, n_held_out: int) -> None:
    with pytest.raises(InputError, match="between 0 and 100 % and is seen on held-out networks"):
        until(mape, ProfilePlan(n_candidates=50, n_held_out=n_held_out))
