import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import ImageTask, MemorySplit
from pruning.data.normalisation import Normalisation
from pruning.errors import CheckpointError, DivergenceError, SettingError, StorageError
from pruning.precision import FORMATS, Precision
from pruning.training import (
    TrainingConfig,
    TrainingHistory,
    accuracy,
    distillation_loss,
    make_optimiser,
    train,
)

N_CLASSES = 3
CONFIG = TrainingConfig(epochs=4, batch_size=16, learning_rate=0.1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing is another module's matter; what it chose may differ from run to run."""
    monkeypatch.setattr(
        "pruning.training.choose_precision", lambda network, images: (Precision(), {"fp32": 1.0})
    )


def _split(n: int, seed: int) -> MemorySplit:
    """Noise, with one colour channel brightened: its number is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % N_CLASSES
    images[torch.arange(n), labels] += 60
    return MemorySplit(images, labels)


def _task(seed: int = 0) -> ImageTask:
    train_split = _split(64, 0)
    return ImageTask(
        source="colours",
        input_size=(3, 8, 8),
        n_classes=N_CLASSES,
        normalisation=Normalisation("half", (0.5,) * 3, (0.5,) * 3),
        augmentation=ShiftAndFlip(1, flip=True),
        train=train_split,
        calibration=train_split,
        test=_split(30, 1),
        seed=seed,
    )


def _net(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, N_CLASSES),
    )


class _Pull(nn.Module):
    """An objective: pulls a parameter of its own to 3; stops the training at a given step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.progress: list[float] = []
        self.stop_at = stop_at

    def penalty(self, progress: float) -> Tensor:
        self.progress.append(progress)
        if self.stop_at is not None and len(self.progress) > self.stop_at:
            raise KeyboardInterrupt
        return ((self.value - 3) ** 2).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.value], "lr": 0.2, "weight_decay": 0.0}]

    def latency_ms(self) -> float:
        return float(self.value.detach())


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _assert_same_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def _without_times(history: TrainingHistory) -> list[dict[str, Any]]:
    return [row | {"seconds": 0} for row in history.to_json()]


def test_a_network_learns() -> None:
    network, task = _net(), _task()
    before = accuracy(network, task)
    history = train(network, task, CONFIG)
    assert [row.epoch for row in history.rows] == [1, 2, 3, 4]
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    assert history.rows[-1].test_accuracy == accuracy(network, task) > max(before, 0.9)
    assert not network.training
    assert json.loads(json.dumps(history.to_json()))[0]["epoch"] == 1


def test_accuracy_is_the_share_classified_rightly() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return F.one_hot(torch.zeros(len(images), dtype=torch.int64), N_CLASSES).float()

    assert accuracy(First(), _task()) == pytest.approx(1 / N_CLASSES)


def test_the_same_seed_gives_the_same_network() -> None:
    first, second, other = _net(), _net(), _net()
    train(first, _task(), CONFIG)
    train(second, _task(), CONFIG)
    train(other, _task(), replace(CONFIG, seed=1))
    _assert_same_state(second, _state(first))
    assert not torch.equal(other.state_dict()["0.weight"], first.state_dict()["0.weight"])


@pytest.mark.parametrize("precision", FORMATS, ids=lambda precision: precision.name)
def test_every_format_trains_and_leaves_the_usual_layout(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (precision, {}))
    network, teacher = _net(), _net(1)
    history = train(network, _task(), CONFIG, teacher=teacher)
    assert history.precision == precision
    assert history.rows[-1].test_accuracy > 0.8
    for each in (network, teacher):
        assert all(parameter.is_contiguous() for parameter in each.parameters())


# Resuming


@pytest.mark.parametrize("stop_at", [2, 4, 6, 15])
def test_an_interrupted_training_ends_as_if_it_had_not_been(stop_at: int, tmp_path: Path) -> None:
    whole = nn.ModuleList([_net(), _Pull()])
    expected = train(*_parts(whole), CONFIG, objective=whole[1])
    interrupted = nn.ModuleList([_net(), _Pull(stop_at)])
    with pytest.raises(KeyboardInterrupt):
        train(*_parts(interrupted), CONFIG, objective=interrupted[1], checkpoint=tmp_path / "state")
    torch.manual_seed(99)
    resumed = nn.ModuleList([_net(), _Pull()])
    history = train(*_parts(resumed), CONFIG, objective=resumed[1], checkpoint=tmp_path / "state")
    assert len(resumed[1].progress) == 16 - stop_at // 4 * 4
    assert _without_times(history) == _without_times(expected)
    _assert_same_state(resumed, _state(whole))


class _Gated(nn.Module):
    """A network with its objective inside, so that checkpoints hold both."""

    def __init__(self, parts: nn.ModuleList) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, images: Tensor) -> Tensor:
        return self.parts[0](images)


def _parts(parts: nn.ModuleList) -> tuple[nn.Module, ImageTask]:
    return _Gated(parts), _task()


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_training as shared
import torch
from pruning.precision import Precision
import pruning.training as training

torch.set_num_threads(1)
training.choose_precision = lambda network, images: (Precision(), {"fp32": 1.0})

class Killer(shared._Pull):
    def penalty(self, progress):
        if len(self.progress) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().penalty(progress)

training.train(shared._net(), shared._task(), shared.CONFIG, objective=Killer(), checkpoint=Path(sys.argv[1]))
"""


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    path, here = tmp_path / "state", Path(__file__).resolve()
    environment = os.environ | {"PYTHONPATH": str(here.parents[2])}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path), str(here.parent)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed, whole, pull = _net(), _net(), _Pull()
    history = train(resumed, _task(), CONFIG, objective=pull, checkpoint=path)
    expected = train(whole, _task(), CONFIG, objective=_Pull())
    assert len(pull.progress) == 8
    assert [row.train_loss for row in history.rows[:2]] == [row.train_loss for row in expected.rows[:2]]
    _assert_same_state(resumed, _state(whole))


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second, pull = _net(), _net(), _Pull()
    before = train(first, _task(), CONFIG, checkpoint=tmp_path / "state")
    after = train(second, _task(), CONFIG, checkpoint=tmp_path / "state")
    assert after == before
    assert pull.progress == []
    _assert_same_state(second, _state(first))


def test_the_format_of_the_first_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(_net(), _task(), CONFIG, checkpoint=tmp_path / "state")
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (FORMATS[2], {}))
    history = train(_net(), _task(), CONFIG, checkpoint=tmp_path / "state")
    assert history.precision == Precision()
    assert history.step_seconds == {"fp32": 1.0}


@pytest.mark.parametrize(
    ("network", "task", "config", "identity", "message"),
    [
        (_net(), _task(), replace(CONFIG, epochs=5), "", "with config .*'epochs': 4"),
        (_net(), _task(1), CONFIG, "", "with data .*'seed': 0"),
        (_net(1), _task(), CONFIG, "", "with starting weights"),
        (_net(width=7), _task(), CONFIG, "", "with starting weights"),
        (_net(), _task(), CONFIG, "2 ms", "with identity '' instead of '2 ms'"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(
    network: nn.Module, task: ImageTask, config: TrainingConfig, identity: str, message: str, tmp_path: Path
) -> None:
    train(_net(), _task(), CONFIG, checkpoint=tmp_path / "state")
    with pytest.raises(CheckpointError, match=message) as caught:
        train(network, task, config, checkpoint=tmp_path / "state", identity=identity)
    assert "\n" not in str(caught.value)


def test_a_full_disk_stops_the_training_and_keeps_the_epochs_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        # Two calls an epoch, for the file and for its folder.
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        train(_net(), _task(), CONFIG, checkpoint=tmp_path / "state")
    monkeypatch.undo()
    pull = _Pull()
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (Precision(), {}))
    train(_net(), _task(), CONFIG, objective=pull, checkpoint=tmp_path / "state")
    assert len(pull.progress) == 8


# The loss


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(
        DivergenceError, match=r"the loss became (nan|inf) .* lower learning rate than 1e\+30"
    ):
        train(_net(), _task(), replace(CONFIG, learning_rate=1e30))


def test_distillation_is_the_divergence_from_the_teacher() -> None:
    scores, wanted = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert float(distillation_loss(wanted, wanted, 4.0)) == pytest.approx(0, abs=1e-6)
    soft = F.softmax(wanted / 4, 1)
    expected = (soft * (soft.log() - F.log_softmax(scores / 4, 1))).sum(1).mean() * 16
    torch.testing.assert_close(distillation_loss(scores, wanted, 4.0), expected)


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    class Shifted(nn.Module):
        """Classes moved on by one: agreeing with it is not agreeing with the labels."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, images: Tensor) -> Tensor:
            return self.scale * images.mean((2, 3)).roll(1, 1)

    student, teacher = _net(), Shifted().train()
    train(student, _task(), replace(CONFIG, epochs=6, distillation=1.0), teacher=teacher)
    assert accuracy(student, _task()) < 0.1
    assert float(teacher.scale.detach()) == 20.0
    assert teacher.scale.grad is None


def test_an_objective_has_parameters_of_its_own_and_sees_the_progress() -> None:
    pull = _Pull()
    history = train(_net(), _task(), replace(CONFIG, epochs=8), objective=pull)
    assert pull.progress == [step / 32 for step in range(32)]
    assert float(pull.value.detach()) == pytest.approx(3, abs=0.1)
    assert history.rows[-1].latency_ms == pytest.approx(3, abs=0.1)


def test_weights_decay_and_biases_norms_and_gates_do_not() -> None:
    network, pull = _net(), _Pull()
    groups = make_optimiser(network, replace(CONFIG, weight_decay=0.3), pull).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        assert decays[id(parameter)] == (0.3 if name in ("0.weight", "6.weight") else 0.0), name
    assert decays[id(pull.value)] == 0.0
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.2]


def test_frozen_parameters_stay() -> None:
    network = _net()
    network[0].requires_grad_(False)
    before = _state(network)
    train(network, _task(), CONFIG)
    assert torch.equal(network.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(network.state_dict()["6.weight"], before["6.weight"])


# Settings


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [TrainingConfig(epochs=1, warm_up=0.2).factor(step / 100) for step in range(101)]
    assert factors[0] > 0
    assert factors[20] == max(factors) == 1
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-9)


def test_a_training_without_warm_up_starts_at_the_highest_rate() -> None:
    assert TrainingConfig(epochs=1, warm_up=0).factor(0) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": -1},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warm_up": 1.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"distillation": 1.5},
        {"temperature": 0.0},
        {"seed": -1},
    ],
)
def test_settings_that_train_nothing_are_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(SettingError, match=f"the training's {name.replace('_', ' ')} is .*; got "):
        replace(CONFIG, **change)


def test_no_epochs_change_nothing() -> None:
    network = _net()
    before = _state(network)
    assert train(network, _task(), replace(CONFIG, epochs=0)).rows == ()
    _assert_same_state(network, before)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    train(_net(), _task(), CONFIG, title="training")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training: 100%" in captured.err
