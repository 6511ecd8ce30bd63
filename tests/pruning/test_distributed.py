"""Two processes train as one does: the same weights, statistics and figures, up to rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pruning.training
from pruning.checkpoint import Checkpoint, load_checkpoint
from pruning.data import load_data
from pruning.data.share import Share
from pruning.distributed import from_first, is_first, process_group, require_shares, sum_over_all
from pruning.errors import SettingError
from pruning.trace import save_base, trace
from tests.pruning.train_together import made, train_small

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def train_in_two_processes(base: Path, folder: Path) -> None:
    """What torchrun does: two processes that learn of each other from the environment."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pruning.train_together", str(base), str(folder)],
            cwd=ROOT,
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.onnx"
    save_base(trace(made(seed=0), (1, 3, 8, 8)), path)
    return path


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("alone")
    n_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning.training, "choose_precision", pruning.training.choose_precision)
        train_small(base, folder)
    torch.set_num_threads(n_threads)
    result = load_checkpoint(folder / "trained-0.safetensors")
    assert result is not None
    return result


@pytest.fixture(scope="module")
def together(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    train_in_two_processes(base, folder)
    return folder


@pytest.mark.parametrize("index", [0, 1])
def test_two_processes_end_as_one_does(alone: Checkpoint, together: Path, index: int) -> None:
    result = load_checkpoint(together / f"trained-{index}.safetensors")

    assert result is not None
    for name, expected in alone.tensors.items():
        torch.testing.assert_close(result.tensors[name], expected, rtol=2e-3, atol=2e-5, msg=name)
    assert result.record["losses"] == pytest.approx(alone.record["losses"], rel=1e-4)
    assert result.record["accuracies"] == pytest.approx(alone.record["accuracies"], abs=0.003)


def test_the_first_process_alone_measures_what_a_search_ends_at(together: Path) -> None:
    results = [load_checkpoint(together / f"trained-{index}.safetensors") for index in range(2)]

    assert [result and result.record["target_ms"] for result in results] == pytest.approx(
        [1.2, 1.2], rel=1e-5
    )
    assert [path.name for path in together.glob("measured-*")] == ["measured-0"]


def test_the_training_moves_what_is_compared(alone: Checkpoint) -> None:
    # Otherwise the test above would pass for want of anything to compare.
    start = made(seed=0).state_dict()["first.weight"]
    moved = alone.tensors["network.first.weight"] - start
    assert moved.norm() > 0.05 * start.norm()
    assert alone.record["losses"][0] != pytest.approx(alone.record["losses"][1], rel=0.02)
    assert int(alone.tensors["network.norm.num_batches_tracked"]) == 2 * (1437 // 96)


def test_the_shares_of_a_batch_together_are_the_batch() -> None:
    task = load_data("digits", (3, 16, 16))
    whole = next(iter(task.train_batches(1, 32)))
    shares = [next(iter(task.train_batches(1, 32, Share(index, 4)))) for index in range(4)]

    for index, share in enumerate(shares):
        assert torch.equal(share.images, whole.images[index::4])
        assert torch.equal(share.labels, whole.labels[index::4])


def test_the_shares_of_the_test_images_are_each_seen_once() -> None:
    task = load_data("digits", (3, 8, 8))

    n_seen = [sum(len(batch.labels) for batch in task.test_batches(share=Share(i, 3))) for i in range(3)]

    assert n_seen == [120, 120, 120]


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.distributed.own_share", lambda: Share(0, 4))

    with pytest.raises(SettingError, match=r"multiple of the 4 processes .* got 30"):
        require_shares(30)


def test_a_single_process_is_left_as_it_is() -> None:
    assert is_first()
    assert sum_over_all(1.5) == 1.5
    assert from_first(lambda: {"done": 1}) == {"done": 1}


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    refused = pytest.raises(
        SettingError, match=r"2 processes on a machine with 1 GPU: .* --nproc-per-node 1, or"
    )
    with refused, process_group():
        pass
