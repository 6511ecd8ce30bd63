"""What a network is trained and tested on: an image task, its splits, and the order they are visited in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pruning.data.augmentation import Augmentation
from pruning.data.normalisation import Normalisation
from pruning.data.share import WHOLE, Share

# Images that are only read, not trained on, go through in batches of this size.
_READING_BATCH = 256


class Batch(NamedTuple):
    """Images and their classes: pixels or normalised images [N, channels, H, W], labels [N] int64."""

    images: Tensor
    labels: Tensor


class ImageSplit(Protocol):
    """The images of one split, as 8-bit pixels of one size; where they lie is its own affair."""

    @property
    def n_images(self) -> int:
        """Number of images."""
        ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """The images of `order`, [n] int64, one after another: uint8 pixels and labels."""
        ...


@dataclass(frozen=True, slots=True)
class MemorySplit:
    """A split that lies in memory.

    Attributes:
        images: [n, channels, height, width], uint8.
        labels: [n], int64.
    """

    images: Tensor
    labels: Tensor

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.images)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """The images of `order`, [n] int64, one after another: uint8 pixels and labels."""
        for indices in torch.split(order, batch_size):
            # NumPy gathers on one core, see `augmentation`.
            yield Batch(torch.from_numpy(self.images.numpy()[indices.numpy()]), self.labels[indices])


@dataclass(frozen=True, slots=True)
class SourceImages:
    """What a source of images gives; with the choices that are usual for its kind of images.

    Attributes:
        train: images to train on; they may be larger than the network's input.
        calibration: the same images in the same order, prepared as test images are.
        test: images to measure accuracy on.
        n_classes: number of classes; labels are 0 … n_classes - 1.
        augmentation: random variation that suits the images.
        normalisation: name of the normalisation that suits them.
        notes: what was done to the images, for the record.
    """

    train: ImageSplit
    calibration: ImageSplit
    test: ImageSplit
    n_classes: int
    augmentation: Augmentation
    normalisation: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageTask:
    """A classification task: training and test images, and how they reach a network.

    Attributes:
        source: what the data was asked for by, such as `digits` or `folder:PATH`.
        input_size: (channels, height, width) of what the network gets.
        n_classes: number of classes; labels are 0 … n_classes - 1.
        normalisation: from pixels to the network's input.
        augmentation: random variation of training images.
        train: images to train on; they may be larger than the network's input.
        calibration: the same images in the same order, prepared as test images are.
        test: images to measure accuracy on; never trained on, never used to choose anything.
        seed: decides the order of training images and their variations, together with the epoch.
        notes: what was done to the images, for the record.
    """

    source: str
    input_size: tuple[int, int, int]
    n_classes: int
    normalisation: Normalisation
    augmentation: Augmentation
    train: ImageSplit
    calibration: ImageSplit
    test: ImageSplit
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def n_train(self) -> int:
        """Number of training images."""
        return self.train.n_images

    @property
    def n_test(self) -> int:
        """Number of test images."""
        return self.test.n_images

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches that `train_batches` gives."""
        return max(1, self.n_train // batch_size)

    def train_batches(self, epoch: int, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass over the training images, shuffled and varied, normalised, in float32.

        The same seed and epoch give the same batches, whatever came before. Images that do not fill the
        last batch are left out: BatchNorm over a few images would disturb the training.

        Args:
            epoch: number of the pass, from 0.
            batch_size: images in a batch, all shares together.
            share: the part of each batch to give; the parts together are the batch as it would be whole.
        """
        generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
        n_visited = min(self.n_train, self.steps_per_epoch(batch_size) * batch_size)
        order = torch.randperm(self.n_train, generator=generator)[:n_visited]
        size = self.input_size[1:]
        own = torch.cat([share.of(batch) for batch in torch.split(order, batch_size)])
        for images, labels in self.train.batches(own, len(share.of(order[:batch_size]))):
            varied = self.augmentation(images, size, generator, share)
            yield Batch(self.normalisation.apply(varied), labels)

    def calibration_batches(self, n_images: int, batch_size: int = _READING_BATCH) -> Iterator[Batch]:
        """The same `n_images` training images at every call, drawn at random, not varied, normalised."""
        generator = torch.Generator().manual_seed(_mixed(self.seed, -1))
        order = torch.randperm(self.n_train, generator=generator)[:n_images]
        return self._plain_batches(self.calibration, order, batch_size)

    def test_batches(self, batch_size: int = _READING_BATCH, share: Share = WHOLE) -> Iterator[Batch]:
        """All test images of a share in their own order, normalised, in float32."""
        return self._plain_batches(self.test, share.of(torch.arange(self.n_test)), batch_size)

    def record(self) -> dict[str, object]:
        """What the task is, as JSON values, to be kept with a result."""
        return {
            "source": self.source,
            "input_size": list(self.input_size),
            "n_classes": self.n_classes,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "normalisation": {
                "name": self.normalisation.name,
                "mean": list(self.normalisation.mean),
                "deviation": list(self.normalisation.deviation),
            },
            "augmentation": repr(self.augmentation),
            "seed": self.seed,
            "notes": list(self.notes),
        }

    def _plain_batches(self, split: ImageSplit, order: Tensor, batch_size: int) -> Iterator[Batch]:
        for images, labels in split.batches(order, batch_size):
            yield Batch(self.normalisation.apply(images), labels)


def _mixed(seed: int, epoch: int) -> int:
    """A seed of its own for every (seed, epoch), sharing nothing; epoch -1 is calibration."""
    return int(np.random.SeedSequence([seed, epoch + 1]).generate_state(1, np.uint64)[0] >> 1)
