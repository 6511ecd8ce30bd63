"""Losses that are found once, whatever happens in between."""

import errno
from pathlib import Path

import numpy as np
import pytest

from latency.structure import IntArray
from pruning.errors import CheckpointError, StorageError
from pruning.remembered import Loss, remembered


class Counted:
    """A loss that counts how often it is computed."""

    def __init__(self) -> None:
        self.n_computed = 0

    def __call__(self, widths: IntArray) -> float:
        self.n_computed += 1
        return float(np.sqrt(widths.sum()) / 3)


def asked(loss: Loss, *widths: tuple[int, ...]) -> list[float]:
    return [loss(np.array(vector)) for vector in widths]


def test_what_was_found_before_is_not_computed_again_and_the_same_to_the_last_bit(tmp_path: Path) -> None:
    loss, path = Counted(), tmp_path / "prune" / "rises.jsonl"
    first = asked(remembered(loss, path), (16, 32), (16, 16), (16, 32))

    again = asked(remembered(loss, path), (16, 16), (16, 32), (0, 32))

    assert loss.n_computed == 3
    assert again[:2] == [first[1], first[0]]
    assert again[2] == float(np.sqrt(32) / 3)


def test_a_line_that_a_kill_cut_short_is_computed_again(tmp_path: Path) -> None:
    loss, path = Counted(), tmp_path / "rises.jsonl"
    asked(remembered(loss, path), (16, 32), (16, 16))
    path.write_bytes(path.read_bytes()[:-5])

    asked(remembered(loss, path), (16, 16), (8, 8))
    asked(remembered(loss, path), (16, 32), (16, 16), (8, 8))

    assert loss.n_computed == 4


@pytest.mark.parametrize(
    "line", ["nonsense", '{"loss": 0.5}', '{"widths": "ab", "loss": 0.5}', "[1, 2]", "\xff"]
)
def test_a_damaged_file_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rises.jsonl"
    asked(remembered(Counted(), path), (16, 32))
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")

    with pytest.raises(CheckpointError, match=r"rises\.jsonl' is damaged in line 2; delete it"):
        remembered(Counted(), path)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found = remembered(Counted(), tmp_path / "rises.jsonl")
    monkeypatch.setattr(Path, "open", full)

    with pytest.raises(StorageError, match="No space left to write"):
        asked(found, (16, 32))
