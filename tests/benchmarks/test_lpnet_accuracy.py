import dataclasses
import json
from pathlib import Path

import pytest
from lpnet_accuracy import other_cases, profile_seconds
from predictors import first_candidates

from tests.latency.test_fitting import make_profile, staircase_ms


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [{"case": "resnet34", "mape": 0.01}, {"case": "mobilenet_v2", "mape": 0.02}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"environment": {"fingerprint": {"digest": "here"}}, "rows": rows}))
    return path


def test_rows_of_other_cases_stay(results: Path) -> None:
    kept = other_cases(results, "mobilenet_v2", "here")

    assert kept == [{"case": "resnet34", "mape": 0.01}]


@pytest.mark.parametrize("name", ["results.json", "nowhere.json"])
def test_rows_of_another_device_do_not(results: Path, name: str) -> None:
    assert other_cases(results.with_name(name), "mobilenet_v2", "there") == []


def test_profiling_takes_the_usual_time_between_rows_whatever_came_between_two_of_them() -> None:
    profile = make_profile(staircase_ms, n_train=40)  # type: ignore[arg-type]
    rows = [dataclasses.replace(row, measured_at=0.5 * i) for i, row in enumerate(profile.rows)]
    rows[-1] = dataclasses.replace(rows[-1], measured_at=rows[-2].measured_at + 3600.0)
    profile = dataclasses.replace(profile, rows=tuple(rows))

    assert profile_seconds(first_candidates(profile, 10), profile) == pytest.approx(10 * 0.5)
    assert profile_seconds(profile, profile) == pytest.approx(40 * 0.5)
