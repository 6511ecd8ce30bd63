"""How stages follow from the ones before them."""

from pathlib import Path

import pytest

from pruning.errors import WeightsError
from pruning.files import file_sha256
from pruning.run import RunDirectory, RunSettings
from pruning.stages import FinetuneOptions, Workbench, finetuning
from pruning.training import TrainingConfig


@pytest.mark.parametrize(
    ("method", "search_epochs", "warms_up"),
    [
        ("wgates", 3, False),
        ("scaling-factors", 1, False),
        ("wgates", 0, True),  # nothing was trained
        ("dependency-aware", 3, True),  # its rate has fallen to 0
        ("prunenet", 1, True),
        ("l1", 0, True),
    ],
)
def test_the_fine_tuning_goes_on_at_the_rate_that_the_search_has_left(
    method: str, search_epochs: int, *, warms_up: bool
) -> None:
    pruned = {"method": method, "search_epochs": search_epochs, "search_lr": 0.01}

    config = finetuning(FinetuneOptions(epochs=5, learning_rate=0.01), pruned, seed=3)

    assert (config.factor(0.0) < 1) == warms_up
    assert (config.epochs, config.learning_rate, config.seed) == (5, 0.01, 3)
    assert config.first_epoch == search_epochs
    assert config.falls
    assert TrainingConfig(epochs=1).warm_up > 0


def test_a_rate_above_the_searchs_is_warmed_up_to() -> None:
    pruned = {"method": "wgates", "search_epochs": 3, "search_lr": 0.01}

    rates = [finetuning(FinetuneOptions(learning_rate=lr), pruned, seed=0).factor(0.0) for lr in (0.01, 0.04)]

    assert rates[0] == 1
    assert rates[1] < 1


def test_weights_that_changed_since_the_run_was_begun_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "best.pth"
    weights.write_bytes(b"as they were")
    settings = RunSettings(
        model="torchvision:resnet18",
        data="digits",
        input_shape=(1, 3, 16, 16),
        weights=str(weights),
        weights_sha256=file_sha256(weights),
    )
    bench = Workbench(RunDirectory(tmp_path / "run"), settings)
    weights.write_bytes(b"after another epoch")

    with pytest.raises(WeightsError, match=r"best\.pth' has changed since this run was begun"):
        bench.new_network()
