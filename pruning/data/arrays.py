"""Image sets that arrive as arrays: checked once, then trusted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruning.data.base import MemorySplit
from pruning.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageArrays:
    """Images and labels of both splits, as found.

    Attributes:
        train_images: [n, height, width, channels] or [n, height, width], uint8.
        train_labels: [n] or [n, 1], integers from 0.
        test_images: as `train_images`.
        test_labels: as `train_labels`.
    """

    train_images: npt.NDArray[Any]
    train_labels: npt.NDArray[Any]
    test_images: npt.NDArray[Any]
    test_labels: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArraySplits:
    """Both splits of an image set in memory, and its number of classes."""

    train: MemorySplit
    test: MemorySplit
    n_classes: int


def splits_from_arrays(arrays: ImageArrays, input_size: tuple[int, int, int], source: str) -> ArraySplits:
    """The splits that `arrays` describe, for a network that takes images of `input_size`.

    Grey images are repeated over the channels; nothing is resized.

    Args:
        arrays: as found in a file.
        input_size: (channels, height, width).
        source: names the data in messages.

    Raises:
        DataError: an array of the wrong type, shape or range.
    """
    train = _split(arrays.train_images, arrays.train_labels, input_size, f"Data '{source}': train")
    test = _split(arrays.test_images, arrays.test_labels, input_size, f"Data '{source}': test")
    n_classes = int(train.labels.max()) + 1
    if n_classes < 2:
        raise DataError(f"Data '{source}': all training labels are 0; give images of at least two classes.")
    if int(test.labels.max()) >= n_classes:
        raise DataError(
            f"Data '{source}': test labels go up to {int(test.labels.max())}, training labels only to "
            f"{n_classes - 1}; every class needs training images."
        )
    return ArraySplits(train, test, n_classes)


def _split(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], input_size: tuple[int, int, int], what: str
) -> MemorySplit:
    pixels = _checked_images(images, input_size, what)
    classes = _checked_labels(labels, len(images), what)
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return MemorySplit(torch.from_numpy(channels_first), torch.from_numpy(classes.astype(np.int64)))


def _checked_images(
    images: npt.NDArray[Any], input_size: tuple[int, int, int], what: str
) -> npt.NDArray[np.uint8]:
    channels, height, width = input_size
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise DataError(
            f"{what} images are {images.dtype} of shape {list(images.shape)}; "
            "give uint8 [images, height, width, channels] or [images, height, width]."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1:3] != (height, width):
        raise DataError(
            f"{what} images are {images.shape[1]} × {images.shape[2]} pixels, the input size says "
            f"{height} × {width}; give --input-size 1x{channels}x{images.shape[1]}x{images.shape[2]}, "
            "or resize the images."
        )
    if images.shape[3] not in (1, channels):
        raise DataError(
            f"{what} images have {images.shape[3]} channels, the input size says {channels}; "
            f"give --input-size 1x{images.shape[3]}x{height}x{width}, or convert the images."
        )
    return np.repeat(images, channels // images.shape[3], axis=3)


def _checked_labels(labels: npt.NDArray[Any], n_images: int, what: str) -> npt.NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{what} labels are {labels.dtype} of shape {list(labels.shape)} for {n_images} images; "
            "give one integer an image."
        )
    if int(labels.min()) < 0:
        raise DataError(f"{what} labels go down to {int(labels.min())}; give classes numbered from 0.")
    return labels
