"""Random variations of batches of 8-bit training images, drawn from a given generator.

They work image by image in NumPy and Pillow, on one core: torch would share every one of these small
operations out over its threads, and where something else keeps a core busy, each waits for the last
thread. An epoch of CIFAR-10 took 25 s that way, and takes 0.5 s like this.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pruning.data.share import WHOLE, Share

Pixels = npt.NDArray[np.uint8]


class Augmentation(Protocol):
    """A random variation of a batch; equal generator states give equal results."""

    def __call__(
        self, images: Tensor, size: tuple[int, int], generator: torch.Generator, share: Share = WHOLE
    ) -> Tensor:
        """Images varied and brought to `size`.

        Args:
            images: [N, channels, height, width], uint8; left as they are.
            size: (height, width) of the result in pixels.
            generator: the source of randomness.
            share: the part of a batch that `images` are; they are varied as they would be in the whole batch.

        Returns:
            Pixels, uint8, [N, channels, *size].
        """
        ...


@dataclass(frozen=True, slots=True)
class ShiftAndFlip:
    """Shift by up to `padding` pixels over a black border, and mirror every other image where `flip` says so.

    The usual augmentation of CIFAR (He et al., arXiv 1512.03385, section 4.2); images keep their size.
    """

    padding: int
    flip: bool

    def __call__(
        self, images: Tensor, size: tuple[int, int], generator: torch.Generator, share: Share = WHOLE
    ) -> Tensor:
        """Shifted and mirrored images; see `Augmentation`."""
        n_images, (height, width) = len(images), size
        n_batch = n_images * share.count
        drawn = torch.randint(2 * self.padding + 1, (n_batch, 2), generator=generator)
        offsets = share.of(drawn).tolist()
        mirrored = self.flip & share.of(torch.rand(n_batch, generator=generator) < 0.5)
        borders = (0, 0), (0, 0), (self.padding, self.padding), (self.padding, self.padding)
        padded = np.pad(images.numpy(), borders)
        varied = np.empty((n_images, images.shape[1], height, width), np.uint8)
        for index, (top, left) in enumerate(offsets):
            window = padded[index, :, top : top + height, left : left + width]
            varied[index] = window[:, :, ::-1] if mirrored[index] else window
        return torch.from_numpy(varied)


@dataclass(frozen=True, slots=True)
class ResizedCropAndFlip:
    """A crop of random area and aspect, resized with bilinear interpolation; every other image mirrored.

    Inception's augmentation (Szegedy et al., arXiv 1409.4842, section 6), with a larger smallest area: a
    pruned network that is trained for a few epochs only has to recover, not to be regularised.

    Attributes:
        smallest_area: share of the image's area that a crop covers at least.
        largest_aspect: width over height of the widest crop; its inverse is that of the tallest.
    """

    smallest_area: float = 0.35
    largest_aspect: float = 4 / 3

    def __call__(
        self, images: Tensor, size: tuple[int, int], generator: torch.Generator, share: Share = WHOLE
    ) -> Tensor:
        """Cropped, resized and mirrored images; see `Augmentation`."""
        n_batch = len(images) * share.count
        boxes = share.of(self._boxes(n_batch, images.shape[2], images.shape[3], generator)).tolist()
        mirrored = share.of(torch.rand(n_batch, generator=generator) < 0.5)
        varied = np.empty((len(images), images.shape[1], *size), np.uint8)
        for index, image in enumerate(images.numpy()):
            crop = _resized(image, boxes[index], size)
            varied[index] = crop[:, :, ::-1] if mirrored[index] else crop
        return torch.from_numpy(varied)

    def _boxes(self, n_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """(left, top, right, bottom) of a crop for every image, in pixels, [n_images, 4]."""
        area, aspect, down, across = torch.rand(4, n_images, generator=generator, dtype=torch.float64)
        side = (self.smallest_area + (1 - self.smallest_area) * area).sqrt()
        stretch = torch.exp((2 * aspect - 1) * 0.5 * math.log(self.largest_aspect))
        heights, widths = height * (side / stretch).clamp(max=1), width * (side * stretch).clamp(max=1)
        tops, lefts = (height - heights) * down, (width - widths) * across
        return torch.stack([lefts, tops, lefts + widths, tops + heights], dim=1)


def _resized(image: Pixels, box: tuple[float, float, float, float], size: tuple[int, int]) -> Pixels:
    """The part of an image [channels, height, width] in `box`, brought to `size`."""
    # One channel at a time is as fast as colour, for which the layout would have to change twice.
    parts = [
        Image.fromarray(channel).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
        for channel in image
    ]
    return np.stack([np.asarray(part) for part in parts])
