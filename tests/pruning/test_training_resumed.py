"""A training that was interrupted, killed or ran out of disk goes on where it was."""

import errno
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

from pruning.data.base import ImageTask
from pruning.errors import CheckpointError, StorageError
from pruning.precision import FORMATS, Precision
from pruning.training import TrainingConfig, TrainingHistory, train
from tests.small_training import CONFIG, Pull, assert_same_state, coloured_task, small_net, state_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing is another module's matter; what it chose may differ from run to run."""
    monkeypatch.setattr(
        "pruning.training.choose_precision", lambda network, images: (Precision(), {"fp32": 1.0})
    )


def _without_times(history: TrainingHistory) -> list[dict[str, Any]]:
    return [row | {"seconds": 0} for row in history.to_json()]


@pytest.mark.parametrize("stop_at", [2, 4, 6, 15])
def test_an_interrupted_training_ends_as_if_it_had_not_been(stop_at: int, tmp_path: Path) -> None:
    whole = nn.ModuleList([small_net(), Pull()])
    expected = train(*_parts(whole), CONFIG, objective=whole[1])
    interrupted = nn.ModuleList([small_net(), Pull(stop_at)])
    with pytest.raises(KeyboardInterrupt):
        train(*_parts(interrupted), CONFIG, objective=interrupted[1], checkpoint=tmp_path / "state")
    torch.manual_seed(99)
    resumed = nn.ModuleList([small_net(), Pull()])
    history = train(*_parts(resumed), CONFIG, objective=resumed[1], checkpoint=tmp_path / "state")
    assert len(resumed[1].progress) == 16 - stop_at // 4 * 4
    assert _without_times(history) == _without_times(expected)
    assert_same_state(resumed, state_of(whole))


class _Gated(nn.Module):
    """A network with its objective inside, so that checkpoints hold both."""

    def __init__(self, parts: nn.ModuleList) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, images: Tensor) -> Tensor:
        return self.parts[0](images)


def _parts(parts: nn.ModuleList) -> tuple[nn.Module, ImageTask]:
    return _Gated(parts), coloured_task()


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pruning.precision import Precision
import pruning.training as training
from tests.small_training import CONFIG, Pull, coloured_task, small_net

torch.set_num_threads(1)
training.choose_precision = lambda network, images: (Precision(), {"fp32": 1.0})

class Killer(Pull):
    def penalty(self, progress):
        if len(self.progress) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().penalty(progress)

training.train(small_net(), coloured_task(), CONFIG, objective=Killer(), checkpoint=Path(sys.argv[1]))
"""


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed, whole, pull = small_net(), small_net(), Pull()
    history = train(resumed, coloured_task(), CONFIG, objective=pull, checkpoint=path)
    expected = train(whole, coloured_task(), CONFIG, objective=Pull())
    assert len(pull.progress) == 8
    assert [row.train_loss for row in history.rows[:2]] == [row.train_loss for row in expected.rows[:2]]
    assert_same_state(resumed, state_of(whole))


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second, pull = small_net(), small_net(), Pull()
    before = train(first, coloured_task(), CONFIG, checkpoint=tmp_path / "state")
    after = train(second, coloured_task(), CONFIG, checkpoint=tmp_path / "state")
    assert after == before
    assert pull.progress == []
    assert_same_state(second, state_of(first))


def test_the_format_of_the_first_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small_net(), coloured_task(), CONFIG, checkpoint=tmp_path / "state")
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (FORMATS[2], {}))
    history = train(small_net(), coloured_task(), CONFIG, checkpoint=tmp_path / "state")
    assert history.precision == Precision()
    assert history.step_seconds == {"fp32": 1.0}


@pytest.mark.parametrize(
    ("network", "task", "config", "identity", "message"),
    [
        (small_net(), coloured_task(), replace(CONFIG, epochs=5), "", "with config .*'epochs': 4"),
        (small_net(), coloured_task(1), CONFIG, "", "with data .*'seed': 0"),
        (small_net(1), coloured_task(), CONFIG, "", "with starting weights"),
        (small_net(width=7), coloured_task(), CONFIG, "", "with starting weights"),
        (small_net(), coloured_task(), CONFIG, "2 ms", "with identity '' instead of '2 ms'"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(
    network: nn.Module, task: ImageTask, config: TrainingConfig, identity: str, message: str, tmp_path: Path
) -> None:
    train(small_net(), coloured_task(), CONFIG, checkpoint=tmp_path / "state")
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
        train(small_net(), coloured_task(), CONFIG, checkpoint=tmp_path / "state")
    monkeypatch.undo()
    pull = Pull()
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (Precision(), {}))
    train(small_net(), coloured_task(), CONFIG, objective=pull, checkpoint=tmp_path / "state")
    assert len(pull.progress) == 8
