"""The comparison's arithmetic: what is run again, how rows become a table, which networks are chosen."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ablations import ABLATIONS, FreeGates, largest_filters, random_filters
from compare_methods import write_rows
from comparison_table import Measured, plot, row_of, table
from configurations import (
    OUTCOME_FILE,
    USUAL_RATE,
    Configuration,
    Outcome,
    content_key,
    data_digest,
    finished,
    protocol_of,
)
from contenders import ablation_of, prune_options, schedule_of
from torch import nn
from workloads import WORKLOADS

from latency.space import SearchSpace
from pruning.criteria import METHODS
from pruning.criteria.wgates import INITIAL_BIAS
from tests.conftest import SmallResidualNet

ROOT = Path(__file__).parents[2]
CONFIGURATION = Configuration(WORKLOADS["cifar10-resnet20"], "wgates", 0.5)
DECIDING: dict[str, Any] = {"weights": "abc", "data": "def", "profile": "0123"}
OUTCOME = Outcome(
    workload="cifar10-resnet20",
    method="wgates",
    ablation=None,
    budget_share=0.5,
    budget_ms=0.5,
    dense_ms=1.0,
    predicted_ms=0.48,
    certified_ms=0.49,
    accuracy=0.90,
    dense_accuracy=0.92,
    macs=20_000_000,
    params=100_000,
    epochs=8,
    seed=0,
    wall_seconds=100.0,
    device="here",
    made_by={"commit": "c0ffee"},
)


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIGURATION, seed=1),
        replace(CONFIGURATION, budget_share=0.7),
        replace(CONFIGURATION, method="uniform"),
        replace(CONFIGURATION, ablation="no-depth"),
        replace(CONFIGURATION, workload=replace(CONFIGURATION.workload, epochs=9)),
    ],
)
def test_another_configuration_is_run_anew(other: Configuration) -> None:
    assert content_key(other, DECIDING) != content_key(CONFIGURATION, DECIDING)


@pytest.mark.parametrize("name", sorted(DECIDING))
def test_other_data_weights_and_profiles_are_run_anew(name: str) -> None:
    assert content_key(CONFIGURATION, DECIDING | {name: "x"}) != content_key(CONFIGURATION, DECIDING)


def test_where_the_code_lies_decides_nothing() -> None:
    moved = replace(CONFIGURATION.workload, model="elsewhere/cifar_resnet.py:resnet20")

    assert content_key(replace(CONFIGURATION, workload=moved), DECIDING) == content_key(
        CONFIGURATION, DECIDING
    )


def test_torch_prunings_version_decides_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = replace(CONFIGURATION, method="torch-pruning-bn")
    before = content_key(CONFIGURATION, DECIDING), content_key(peer, DECIDING)
    known = dict.fromkeys(("torch", "torchvision", "onnxruntime"), "1")
    keys = []
    for version in ("1", "2"):
        versions = known | {"torch-pruning": version}
        monkeypatch.setattr("configurations.metadata.version", versions.__getitem__)
        keys.append((content_key(CONFIGURATION, DECIDING), content_key(peer, DECIDING)))

    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]
    assert before[0] != before[1]


def test_other_data_have_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1234")
    before = data_digest(tmp_path)
    (tmp_path / "b.png").write_bytes(b"5")

    assert data_digest(tmp_path) != before
    assert data_digest(tmp_path / "a.png") != data_digest(tmp_path / "b.png")


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Outcome.read(tmp_path) is None
    OUTCOME.write(tmp_path)

    assert Outcome.read(tmp_path) == OUTCOME


def rows(*measured: Measured) -> list[dict[str, Any]]:
    return [row_of(one, "here") for one in measured]


def test_seeds_are_one_line_with_mean_and_spread() -> None:
    seeds = [
        Measured(replace(OUTCOME, seed=seed, accuracy=accuracy), ms, (ms, ms))
        for seed, accuracy, ms in ((0, 0.90, 0.48), (1, 0.91, 0.49), (2, 0.92, 0.50))
    ]

    *_, line = table(rows(*seeds)).splitlines()

    assert "| 8 | 0.02 | 3 | 0.490 ± 0.010 ms | 0.480 ms | 91.00 ± 1.00 % | -1.00 |" in line


def test_other_epochs_are_another_line() -> None:
    short = Measured(replace(OUTCOME, epochs=2, accuracy=0.80), 0.49, (0.49, 0.49))

    lines = table(rows(short, Measured(OUTCOME, 0.49, (0.49, 0.49)))).splitlines()[2:]

    assert ["| 2 | 0.02 | 1 |" in lines[0], "| 8 | 0.02 | 1 |" in lines[1]] == [True, True]


def test_a_seed_out_of_reach_is_counted() -> None:
    missed = replace(OUTCOME, seed=1, certified_ms=None, accuracy=None, smallest_ms=0.61)

    *_, line = table(rows(Measured(OUTCOME, 0.49, (0.49, 0.49)), Measured(missed))).splitlines()

    assert "| 8 | 0.02 | 1 of 2 | 0.490 ms |" in line


def test_superseded_outcomes_are_no_further_seeds(tmp_path: Path) -> None:
    protocol = protocol_of(OUTCOME.method)
    made = {
        "old-protocol": replace(OUTCOME, protocol=protocol - 1),
        "old-profile": replace(OUTCOME, protocol=protocol, accuracy=0.5),
        "now": replace(OUTCOME, protocol=protocol),
        "seed": replace(OUTCOME, protocol=protocol, seed=1),
        "rate": replace(OUTCOME, protocol=protocol, learning_rate=0.05),
        "other": replace(OUTCOME, method="l1", protocol=protocol_of("l1")),
    }
    for age, (name, outcome) in enumerate(made.items()):
        folder = tmp_path / OUTCOME.workload / "here" / name
        folder.mkdir(parents=True)
        outcome.write(folder)
        os.utime(folder / OUTCOME_FILE, (age, age))

    found = {folder.name: outcome for folder, outcome in finished(tmp_path, OUTCOME.workload)}

    assert found == {name: made[name] for name in ("now", "seed", "rate", "other")}


def test_a_network_over_its_budget_is_told() -> None:
    assert "| 0.510 ms (over) |" in table(rows(Measured(OUTCOME, 0.51, (0.5, 0.52))))


def test_a_budget_out_of_reach_shows_the_smallest_latency() -> None:
    missed = replace(OUTCOME, certified_ms=None, accuracy=None, smallest_ms=0.61, note="too deep")

    *_, line = table(rows(Measured(missed))).splitlines()

    assert "| at least 0.610 ms |" in line
    assert line.endswith("| too deep |")


def test_networks_made_for_another_device_are_shown_and_not_counted() -> None:
    found = rows(
        Measured(OUTCOME, 0.49, (0.48, 0.5)), Measured(replace(OUTCOME, device="there"), 0.6, (0.6, 0.6))
    )

    assert [row["counted"] for row in found] == [True, False]
    assert [line.endswith("made for another device |") for line in table(found).splitlines()[2:]] == [
        False,
        True,
    ]


def test_the_plot_holds_the_counted_methods(tmp_path: Path) -> None:
    found = rows(
        Measured(OUTCOME, 0.49, (0.48, 0.5)),
        Measured(replace(OUTCOME, method="uniform", device="there"), 0.6, (0.6, 0.6)),
    )

    plot(found, tmp_path / "plot.svg")

    drawing = (tmp_path / "plot.svg").read_text()

    assert "wgates" in drawing
    assert "uniform" not in drawing


def test_random_filters_are_as_many_as_wanted_and_differ_by_seed(residual_space: SearchSpace) -> None:
    widths = np.array([5, 7])
    first, again, other = (random_filters(residual_space, nn.Identity(), widths, seed) for seed in (0, 0, 1))

    assert [len(kept) for kept in first] == [5, 7]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_largest_filters_are_those_of_all_layers_that_make_a_channel(residual_space: SearchSpace) -> None:
    network = SmallResidualNet()
    with torch.no_grad():
        for layer in (network.stem, network.outer, network.depthwise, network.inner):
            layer.weight.fill_(0.1)
        network.stem.weight[2] = network.outer.weight[5] = network.inner.weight[11] = 1.0
    stem = next(group.index for group in residual_space.groups if group.n_channels == 8)
    widths = np.where(np.arange(2) == stem, 2, 1)

    kept = largest_filters(residual_space, network, widths, 0)

    assert kept[stem].tolist() == [2, 5]
    assert kept[1 - stem].tolist() == [11]


def test_free_gates_start_where_the_worth_of_their_slots_puts_them(residual_space: SearchSpace) -> None:
    worth = torch.arange(20.0)
    gates = FreeGates(residual_space)
    gates.start_from(worth, {})

    scores = gates.scores({})

    torch.testing.assert_close(scores, (worth - worth.mean()) / worth.std() + INITIAL_BIAS)
    assert gates.open(scores).sum() == 20


def test_a_table_of_another_device_is_set_aside_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = rows(Measured(OUTCOME, 0.49, (0.48, 0.5)))
    there, here = row | {"budget_of_device": "there"}, row | {"workload": "other"}
    for device, own in [("there", there), ("here", here), ("there", there), ("here", row)]:
        described = {"fingerprint": {"digest": device}}
        monkeypatch.setattr("environment.environment", lambda settings, described=described: described)
        write_rows([own], device, tmp_path)

    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("compare_methods-there.json", "compare_methods-there.svg"),
        *("compare_methods.json", "compare_methods.svg"),
    ]
    found = {
        file: [
            (row["workload"], row["budget_of_device"])
            for row in json.loads((tmp_path / file).read_text())["rows"]
        ]
        for file in ("compare_methods.json", "compare_methods-there.json")
    }
    assert found == {
        "compare_methods.json": [("other", "here"), ("cifar10-resnet20", "here")],
        "compare_methods-there.json": [("cifar10-resnet20", "there")],
    }


def test_all_ablations_are_of_the_one_method_and_differ_from_it() -> None:
    plain = replace(CONFIGURATION, ablation=None)
    for name in ABLATIONS:
        ablated = replace(CONFIGURATION, ablation=name)
        search, tuning = schedule_of(ablated)
        same = (
            (search, tuning) == schedule_of(plain)
            and prune_options(ablated) == prune_options(plain)
            and ablation_of(ablated).bench is ablation_of(plain).bench
        )
        assert not same, name


@pytest.mark.parametrize("method", ["wgates", "uniform", "torch-pruning-bn"])
def test_all_methods_train_for_the_same_number_of_epochs(method: str) -> None:
    search, tuning = schedule_of(replace(CONFIGURATION, method=method))
    searched = METHODS[method].search_epochs(search.epochs) if method in METHODS else 0

    assert searched + tuning.epochs == CONFIGURATION.workload.epochs


def test_another_learning_rate_is_that_of_search_and_fine_tuning_and_another_configuration() -> None:
    plain, faster = CONFIGURATION, replace(CONFIGURATION, learning_rate=0.05)
    search, tuning = schedule_of(faster)
    keys = {content_key(each, {"schedule": repr(schedule_of(each))}) for each in (plain, faster)}

    assert (search.lr, tuning.learning_rate) == (0.05, 0.05)
    assert schedule_of(plain)[1].learning_rate == USUAL_RATE
    assert len(keys) == 2
    assert faster.name == "wgates-0.5-s0-lr0.05"


def test_rows_of_different_learning_rates_are_no_seeds_of_each_other() -> None:
    faster = replace(OUTCOME, learning_rate=0.05)

    lines = table(
        rows(Measured(OUTCOME, 0.49, (0.49, 0.49)), Measured(faster, 0.49, (0.49, 0.49)))
    ).splitlines()[2:]

    assert ["| 0.02 | 1 |" in lines[0], "| 0.05 | 1 |" in lines[1]] == [True, True]


@pytest.mark.parametrize(("ablation", "n_search"), [(None, 3), ("short-search", 1), ("no-search", 0)])
def test_a_shorter_search_leaves_its_epochs_to_the_fine_tuning(ablation: str | None, n_search: int) -> None:
    search, tuning = schedule_of(replace(CONFIGURATION, method="wgates", ablation=ablation))

    assert (search.epochs, tuning.epochs) == (n_search, CONFIGURATION.workload.epochs - n_search)


@pytest.mark.long
def test_a_killed_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "compare_methods.py"), "--workload", "digits-smoke"),
        *("--method", "wgates", "--method", "torch-pruning-bn", "--ablation", "no-depth"),
        *("--budget", "0.85", "--runs", str(tmp_path), "--no-results"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    outcomes = "digits-smoke/*/wgates-*/outcome.json"
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob(outcomes)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (first,) = tmp_path.glob(outcomes)
    made = first.stat().st_mtime_ns

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == made
    assert sum(line.startswith("| digits-smoke") for line in done.stdout.splitlines()) == 3
