from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.npz import load_npz
from pruning.errors import DataError

Arrays = dict[str, npt.NDArray[np.generic]]


def _arrays(*shape: int) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "train_images": generator.integers(0, 256, (6, *shape), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": generator.integers(0, 256, (3, *shape), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0], np.uint8),
    }


def _saved(folder: Path, arrays: Arrays) -> str:
    np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "images.npz")


def test_images_and_labels_are_read(tmp_path: Path) -> None:
    arrays = _arrays(8, 10, 3)
    source = load_npz(_saved(tmp_path, arrays), (3, 8, 10))
    assert source.n_classes == 3
    assert (source.train.n_images, source.test.n_images) == (6, 3)
    batch = next(source.test.batches(torch.arange(3), 3))
    assert np.array_equal(batch.images.numpy(), arrays["test_images"].transpose(0, 3, 1, 2))
    assert batch.labels.tolist() == [2, 1, 0]
    assert source.augmentation == ShiftAndFlip(padding=1, flip=True)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_grey_images_are_repeated_and_not_mirrored(shape: tuple[int, ...], tmp_path: Path) -> None:
    source = load_npz(_saved(tmp_path, _arrays(*shape)), (3, 8, 8))
    images = next(source.train.batches(torch.arange(6), 6)).images
    assert images.shape == (6, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])
    assert source.augmentation == ShiftAndFlip(padding=1, flip=False)


def test_labels_in_a_column_are_understood(tmp_path: Path) -> None:
    arrays = _arrays(8, 8) | {"train_labels": np.array([[0], [1], [2], [0], [1], [2]])}
    assert load_npz(_saved(tmp_path, arrays), (1, 8, 8)).n_classes == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((6, 8, 8, 3), np.float32)},
            r"train images are float32 of shape \[6, 8, 8, 3\]",
        ),
        ({"test_images": np.zeros((3, 3), np.uint8)}, r"test images are uint8 of shape \[3, 3\]"),
        (
            {"train_images": np.zeros((0, 8, 8, 3), np.uint8)},
            r"train images are uint8 of shape \[0, 8, 8, 3\]",
        ),
        (
            {"train_images": np.zeros((6, 9, 8, 3), np.uint8)},
            "train images are 9 × 8 pixels, .* says 8 × 8; give --",
        ),
        (
            {"test_images": np.zeros((3, 8, 8, 4), np.uint8)},
            "test images have 4 channels, the input size says 3",
        ),
        ({"train_labels": np.arange(5)}, r"train labels are int64 of shape \[5\] for 6 images"),
        ({"test_labels": np.zeros(3)}, r"test labels are float64 of shape \[3\] for 3 images"),
        ({"train_labels": np.arange(6) - 1}, "train labels go down to -1"),
        ({"train_labels": np.zeros(6, int)}, "all training labels are 0"),
        ({"test_labels": np.array([0, 1, 3])}, "test labels go up to 3, training labels only to 2"),
        ({"test_labels": np.array([None, 1, 3])}, "is damaged or no .npz file"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: Arrays, message: str, tmp_path: Path) -> None:
    path = _saved(tmp_path, _arrays(8, 8, 3) | change)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path, (3, 8, 8))
    assert "\n" not in str(caught.value)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, train_images=np.zeros(1), x=np.zeros(1))
    with pytest.raises(
        DataError, match="lacks train_labels, test_images, test_labels; it holds train_images, x"
    ):
        load_npz(str(path), (3, 8, 8))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz': the file does not exist"):
        load_npz(str(tmp_path / "none.npz"), (3, 8, 8))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04rubbish"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "images.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.npz' is damaged or no \.npz file"):
        load_npz(str(tmp_path / "images.npz"), (3, 8, 8))


def test_a_truncated_or_changed_file_is_refused(tmp_path: Path) -> None:
    path = Path(_saved(tmp_path, _arrays(8, 8, 3)))
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load_npz(str(path), (3, 8, 8))


def test_a_lone_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"no \.npz file"):
        load_npz(str(tmp_path / "images.npy"), (3, 8, 8))
