import json
from pathlib import Path

import pytest
from lpnet_accuracy import other_cases


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [{"case": "resnet34", "mape": 0.01}, {"case": "mobilenet_v2", "mape": 0.02}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"environment": {"fingerprint": {"digest": "here"}}, "rows": rows}))
    return path


def test_rows_of_other_cases_stay(results: Path) -> None:
    kept = other_cases(results, ["mobilenet_v2"], "here")

    assert kept == [{"case": "resnet34", "mape": 0.01}]


@pytest.mark.parametrize("name", ["results.json", "nowhere.json"])
def test_rows_of_another_device_do_not(results: Path, name: str) -> None:
    assert other_cases(results.with_name(name), ["mobilenet_v2"], "there") == []
