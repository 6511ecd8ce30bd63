import errno
import json
import os
from pathlib import Path

import pytest
import torch

from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.errors import CheckpointError, StorageError


def _checkpoint(epoch: int = 3) -> Checkpoint:
    torch.manual_seed(epoch)
    tensors = {
        "model.weight": torch.randn(4, 3, 2),
        "model.count": torch.tensor(7),
        "model.mask": torch.tensor([True, False]),
        "model.empty": torch.zeros(0, 2),
    }
    return Checkpoint(tensors, {"epoch": epoch, "history": [{"loss": 0.5, "note": "größer"}]})


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = _checkpoint()
    save_checkpoint(tmp_path / "c.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded is not None
    assert loaded.record == saved.record
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none.safetensors") is None


def test_tied_and_channels_last_tensors_are_stored(tmp_path: Path) -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c", Checkpoint({"a": weight, "b": weight}, {}))
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded is not None
    assert torch.equal(loaded.tensors["a"], weight)
    assert torch.equal(loaded.tensors["b"], weight)


def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, _checkpoint())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"c\.safetensors' is damaged") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, _checkpoint())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(json.dumps({"epoch": 1}).encode())
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_another_format_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.checkpoint._VERSION", "0")
    save_checkpoint(tmp_path / "c", _checkpoint())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format version 0, this release reads 1"):
        load_checkpoint(tmp_path / "c")


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, _checkpoint(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left to write .* the previous one is kept") as caught:
        save_checkpoint(path, _checkpoint(2))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded.record["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write '.*file/c'"):
        save_checkpoint(tmp_path / "file" / "c", _checkpoint(1))
