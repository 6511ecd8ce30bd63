import json
from pathlib import Path

import numpy as np
import pytest

from latency.space import SearchSpace
from pruning.errors import PlanError
from pruning.plan import ModuleChange, Plan, make_plan


def test_a_plan_survives_writing_and_reading(tmp_path: Path) -> None:
    plan = Plan(
        "abc",
        {"stem": (0, 3), "inner": ()},
        {"stem": 8, "inner": 12},
        (
            ModuleChange("stem", {"out_channels": 2}, {"weight": (2, 3, 3, 3)}),
            ModuleChange("inner", {"out_channels": 0}, replaced_by="zeros"),
            ModuleChange("shortcut", select=(0, 5)),
        ),
        {"criterion": "wgates", "budget_ms": 2.5},
    )

    plan.write(tmp_path / "plan.json")

    assert Plan.read(tmp_path / "plan.json") == plan


def test_widths_count_the_kept_positions(residual_space: SearchSpace) -> None:
    plan = make_plan(residual_space, (np.array([0, 4]), np.array([], dtype=np.int64)))

    assert plan.widths(residual_space).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 1}', "is damaged"),
        ('{"format_version": 99}', "has format 99; this version reads 1"),
    ],
)
def test_a_damaged_plan_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)

    with pytest.raises(PlanError, match=message):
        Plan.read(path)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist; run `trimms prune` first"):
        Plan.read(tmp_path / "plan.json")


def test_the_file_is_readable_json(tmp_path: Path, residual_space: SearchSpace) -> None:
    make_plan(residual_space, (np.arange(3), np.arange(2))).write(tmp_path / "plan.json")

    record = json.loads((tmp_path / "plan.json").read_text())

    assert record["groups"]["stem"] == {"kept": [0, 1, 2], "of": 8}
