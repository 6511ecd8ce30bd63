from predictors import first_candidates, fit_all

from tests.latency.test_fitting import SPACE, make_profile, staircase_ms


def test_every_method_learns_from_the_same_first_candidates() -> None:
    profile = make_profile(staircase_ms, n_train=120)  # type: ignore[arg-type]
    few = first_candidates(profile, 60)

    assert len(few.arrays("train").latency_ms) == 60
    assert few.reference_ms == profile.reference_ms
    held_out = profile.arrays("held_out")
    errors = {
        name: abs(predict(held_out.widths) / held_out.latency_ms - 1).mean()
        for name, predict in fit_all(few, SPACE, seed=0).items()
    }
    assert set(errors) >= {"LPNet", "plain MLP on widths", "MACs-linear", "random forest"}
    assert errors["LPNet"] == min(errors.values())
