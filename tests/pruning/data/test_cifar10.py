import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning.data.cifar10 import load_cifar10
from pruning.errors import DataError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of torchvision's layout with 2 images in each file, whose checksums pass."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {
            "data": np.full((2, 3072), index, np.uint8),
            "labels": [index, index + 4 if index < 5 else 0],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"] * 10}))
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file()
    )
    return tmp_path


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_the_files_of_torchvision_are_read(root: Path, inside: str) -> None:
    source = load_cifar10(str(root / inside), (3, 32, 32))
    assert (source.train.n_images, source.test.n_images, source.n_classes) == (10, 2, 9)
    batch = next(source.train.batches(torch.arange(10), 10))
    assert batch.images.shape == (10, 3, 32, 32)
    assert batch.images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_another_input_size_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="images are 32 × 32 pixels, the input size says 64 × 64"):
        load_cifar10(str(root), (3, 64, 64))


def test_missing_files_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing or damaged; unpack cifar-10-python\.tar\.gz"):
        load_cifar10(str(tmp_path), (3, 32, 32))
