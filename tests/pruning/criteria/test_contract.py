"""What every method owes to the stages after it, whatever its idea is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pruning.criteria import METHODS, find_method
from pruning.criteria.base import SearchJob
from pruning.errors import SettingError
from pruning.prices import PricedSpace
from pruning.training_state import save_state

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("name", sorted(METHODS))]

_found: dict[str, np.ndarray] = {}


@pytest.fixture
def scores_of(make_job: Callable[..., SearchJob]) -> Callable[[str], np.ndarray]:
    """Scores of a method for the usual job; each searches once."""

    def scores(name: str) -> np.ndarray:
        if name not in _found:
            _found[name] = run(name, make_job())
        return _found[name]

    return scores


def run(name: str, job: SearchJob) -> np.ndarray:
    method = find_method(name)
    return method.search(dataclasses.replace(job, device=method.restricted(job.device))).scores


def test_scores_are_finite_and_one_for_each_slot(name: str, scores_of: Callable[[str], np.ndarray]) -> None:
    scores = scores_of(name)

    assert scores.shape == (48,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert scores.std() > 0


def test_the_same_seed_gives_the_same_scores(
    name: str, scores_of: Callable[[str], np.ndarray], make_job: Callable[..., SearchJob]
) -> None:
    assert np.array_equal(run(name, make_job()), scores_of(name))


@pytest.mark.parametrize("share", [0.75, 0.5])
def test_the_cut_is_on_the_grid_and_within_any_target(
    name: str, share: float, scores_of: Callable[[str], np.ndarray], device: PricedSpace
) -> None:
    method = METHODS[name]
    device = method.restricted(device)
    target_ms = share * device.profile.reference_ms

    choice = method.cut(scores_of(name), device.space, device.grid, device.predict_ms(target_ms), target_ms)

    assert device.grid.contains(choice.widths)
    assert 0.85 * target_ms <= choice.predicted_ms <= target_ms
    assert [len(kept) for kept in choice.kept] == list(choice.widths)


def test_an_interrupted_search_ends_as_an_uninterrupted_one(
    name: str,
    scores_of: Callable[[str], np.ndarray],
    make_job: Callable[..., SearchJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = tmp_path / "state-0.safetensors"

    def save_and_stop(*arguments: object) -> None:
        save_state(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("pruning.training.save_state", save_and_stop)
    trains = METHODS[name].search_epochs(2) > 0
    if trains:
        with pytest.raises(KeyboardInterrupt):
            run(name, make_job(checkpoint=checkpoint))
    monkeypatch.setattr("pruning.training.save_state", save_state)

    again = run(name, make_job(checkpoint=checkpoint))

    assert checkpoint.exists() == trains
    assert np.array_equal(again, scores_of(name))


def test_a_method_says_how_many_epochs_it_trains_for(name: str, make_job: Callable[..., SearchJob]) -> None:
    job = make_job(epochs=1)

    history = METHODS[name].search(job).history

    assert len(history.rows) == METHODS[name].search_epochs(1) <= 1


def test_methods_are_found_by_name(name: str) -> None:
    assert find_method(name).name == name
    assert METHODS[name].summary
    with pytest.raises(SettingError, match=rf"'{name}s' is not known; known are: .*{name}"):
        find_method(f"{name}s")
