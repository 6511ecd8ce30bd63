"""scikit-learn's handwritten digits: 1,797 grey images of 8 × 8 pixels, installed with the library."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import MemorySplit, SourceImages
from pruning.errors import DataError

# Pixels of the original are counts of 0 to 16.
_LARGEST_PIXEL = 16


def load_digits(location: str, input_size: tuple[int, int, int]) -> SourceImages:
    """The digits, enlarged to `input_size`; always the same four fifths of every class to train on.

    Args:
        location: what followed `digits:`; there is nothing to say, so it has to be empty.
        input_size: (channels, height, width); grey is repeated over the channels.
    """
    if location:
        raise DataError(f"Data 'digits:{location}' is not understood; give digits alone.")
    import sklearn.datasets
    import sklearn.model_selection

    digits = sklearn.datasets.load_digits()
    images = _enlarged(digits.images, input_size)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0
    )
    _, height, width = input_size
    train_split = MemorySplit(images[train], labels[train])
    return SourceImages(
        train=train_split,
        calibration=train_split,
        test=MemorySplit(images[test], labels[test]),
        n_classes=10,
        # A sixteenth of the side: 2 of 32 pixels, half a pixel of the original. A mirrored digit is no digit.
        augmentation=ShiftAndFlip(padding=max(1, min(height, width) // 16), flip=False),
        normalisation="half",
        notes=(f"8 × 8 images enlarged to {height} × {width} with bilinear interpolation",),
    )


def _enlarged(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float64]], size: tuple[int, int, int]
) -> Tensor:
    pixels = torch.from_numpy(np.round(images * (255 / _LARGEST_PIXEL)).astype(np.uint8))
    enlarged = F.interpolate(pixels[:, None], size=size[1:], mode="bilinear", antialias=True)
    return enlarged.repeat(1, size[0], 1, 1)
