"""CIFAR-10 from the files that torchvision keeps on disk; nothing is downloaded."""

from pathlib import Path

import numpy as np

from pruning.data.arrays import ImageArrays, splits_from_arrays
from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import SourceImages
from pruning.errors import DataError


def load_cifar10(location: str, input_size: tuple[int, int, int]) -> SourceImages:
    """CIFAR-10 of 32 × 32 pixels, in its own split.

    Args:
        location: the folder that holds `cifar-10-batches-py`, or that folder itself.
        input_size: (3, 32, 32); images are not resized.

    Raises:
        DataError: the files are missing or damaged, or the input size is another.
    """
    from torchvision.datasets import CIFAR10

    root = Path(location)
    if root.name == CIFAR10.base_folder:
        root = root.parent
    try:
        # torchvision compares checksums first, so the pickles it then reads are the published ones.
        train, test = (CIFAR10(str(root), train=part, download=False) for part in (True, False))
    except RuntimeError as error:
        raise DataError(
            f"Data 'cifar10:{location}': the files of CIFAR-10 are missing or damaged; "
            f"unpack cifar-10-python.tar.gz so that '{root / CIFAR10.base_folder}' holds data_batch_1 to 5."
        ) from error
    arrays = ImageArrays(train.data, np.asarray(train.targets), test.data, np.asarray(test.targets))
    splits = splits_from_arrays(arrays, input_size, f"cifar10:{location}")
    return SourceImages(
        train=splits.train,
        calibration=splits.train,
        test=splits.test,
        n_classes=splits.n_classes,
        augmentation=ShiftAndFlip(padding=4, flip=True),
        normalisation="imagenet",
    )
