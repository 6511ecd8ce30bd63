import pytest
import torch

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.digits import load_digits
from pruning.errors import DataError


def test_digits_are_enlarged_and_repeated_over_the_channels() -> None:
    source = load_digits("", (3, 32, 24))
    images = next(source.train.batches(torch.arange(100), 100)).images
    assert images.shape == (100, 3, 32, 24)
    assert images.dtype == torch.uint8
    assert int(images.max()) > 240
    assert torch.equal(images[:, 0], images[:, 2])
    assert source.notes == ("8 × 8 images enlarged to 32 × 24 with bilinear interpolation",)


def test_the_split_is_fixed_and_has_a_fifth_of_every_class() -> None:
    source = load_digits("", (1, 8, 8))
    assert (source.train.n_images, source.test.n_images, source.n_classes) == (1437, 360, 10)
    batch = next(source.test.batches(torch.arange(360), 360))
    assert torch.bincount(batch.labels).min() >= 34
    again = next(load_digits("", (1, 8, 8)).test.batches(torch.arange(360), 360))
    assert torch.equal(batch.images, again.images)


def test_digits_are_never_mirrored() -> None:
    assert load_digits("", (3, 32, 32)).augmentation == ShiftAndFlip(padding=2, flip=False)


def test_digits_are_in_no_place() -> None:
    with pytest.raises(DataError, match="'digits:x' is not understood"):
        load_digits("x", (3, 32, 32))
