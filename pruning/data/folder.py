"""Folders of images, `train/CLASS/*` and `val/CLASS/*`: decoded once into memory, or streamed."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pruning.data.augmentation import ResizedCropAndFlip
from pruning.data.base import Batch, ImageSplit, MemorySplit, SourceImages
from pruning.errors import DataError

# Decoded images up to this size stay in memory, which leaves room for training on a machine with 8 GiB.
_LARGEST_IN_MEMORY_BYTES = 4 * 2**30
# Training images are kept up to this much larger than the input, so that crops of them are enlarged less.
_LARGEST_MARGIN = 8 / 7
# Files whose sizes are looked at before that is decided.
_N_PROBED = 32
# More processes than this only compete with the training for cores and memory.
_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files, and the form they are decoded to: scaled to cover `size`, the centre cut out.

    Attributes:
        paths: the files.
        labels: class of each, [n], int64.
        size: (channels, height, width) of the decoded images.
    """

    paths: tuple[str, ...]
    labels: Tensor
    size: tuple[int, int, int]

    @property
    def n_bytes(self) -> int:
        """Bytes of all images once decoded."""
        return len(self.paths) * int(np.prod(self.size))


@dataclass(frozen=True, slots=True)
class StreamedSplit:
    """A split that is decoded anew at every visit, by worker processes."""

    files: ImageFiles
    n_workers: int

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.files.paths)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """The images of `order`, [n] int64, one after another: uint8 pixels and labels."""
        chunks = [chunk.tolist() for chunk in torch.split(order, batch_size)]
        loader = DataLoader(
            _Decoding(self.files),
            batch_sampler=chunks,
            num_workers=self.n_workers,
            collate_fn=_together,
            # Its own: the loader would draw from the global generator, and change what dropout does.
            generator=torch.Generator(),
        )
        for indices, images in zip(chunks, loader, strict=True):
            if isinstance(images, str):
                raise DataError(images)
            yield Batch(images, self.files.labels[indices])


def load_folder(
    location: str,
    input_size: tuple[int, int, int],
    *,
    largest_in_memory_bytes: int = _LARGEST_IN_MEMORY_BYTES,
    progress: bool = True,
) -> SourceImages:
    """Images of `train/` and `val/` below a folder, one subfolder a class, brought to the input size.

    Args:
        location: the folder.
        input_size: (channels, height, width); 3 channels are read as RGB, 1 as grey.
        largest_in_memory_bytes: decoded images of both splits together stay in memory up to this size.
        progress: whether decoding shows a progress bar on stderr.

    Raises:
        DataError: a folder is missing or empty, the classes differ, or an image cannot be read.
    """
    channels, height, width = input_size
    if channels not in _MODES:
        raise DataError(
            f"Data 'folder:{location}' can be read with 1 or 3 channels, the input size says {channels}."
        )
    calibration, classes = _listed(Path(location), "train", input_size)
    test, test_classes = _listed(Path(location), "val", input_size)
    _require_same_classes(location, classes, test_classes)
    margin = _margin(calibration)
    train = dataclasses.replace(calibration, size=(channels, round(height * margin), round(width * margin)))
    in_memory = train.n_bytes + test.n_bytes <= largest_in_memory_bytes
    return SourceImages(
        train=_split(train, in_memory, "decode train", progress),
        # From the files: the enlarged images, reduced again, would be blurred as no test image is.
        calibration=_streamed(calibration),
        test=_split(test, in_memory, "decode val", progress),
        n_classes=len(classes),
        augmentation=ResizedCropAndFlip(),
        normalisation="imagenet",
        notes=(
            f"images scaled to cover {height} × {width}, centre cut out",
            "decoded once into memory" if in_memory else "decoded at every visit",
        ),
    )


# Pillow's modes by number of channels.
_MODES = {1: "L", 3: "RGB"}


def _listed(root: Path, part: str, size: tuple[int, int, int]) -> tuple[ImageFiles, list[str]]:
    from torchvision.datasets import ImageFolder

    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"Data 'folder:{root}': '{folder}' does not exist; "
            "give a folder with train/CLASS/ and val/CLASS/."
        )
    try:
        listing = ImageFolder(str(folder))
    except (FileNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"Data 'folder:{root}': {reason}; give images in '{folder / 'CLASS'}'.") from error
    if len(listing.classes) < 2:
        raise DataError(f"Data 'folder:{root}': '{folder}' has one class only; give at least two.")
    paths, labels = zip(*listing.samples, strict=True)
    return ImageFiles(paths, torch.tensor(labels), size), listing.classes


def _require_same_classes(location: str, train: Sequence[str], test: Sequence[str]) -> None:
    odd = sorted(set(train) ^ set(test))
    if odd:
        raise DataError(
            f"Data 'folder:{location}': classes {', '.join(odd[:4])} are in one of train/ and val/ only "
            f"({len(train)} and {len(test)} classes); give the same subfolders in both."
        )


def _split(files: ImageFiles, in_memory: bool, title: str, progress: bool) -> ImageSplit:
    if in_memory:
        return MemorySplit(_decoded(files, title, progress), files.labels)
    return _streamed(files)


def _streamed(files: ImageFiles) -> StreamedSplit:
    return StreamedSplit(files, n_workers=min(_MOST_WORKERS, _n_cores()))


def _margin(files: ImageFiles) -> float:
    """How much larger than the input training images are kept; 1 where the files hold no more detail."""
    _, height, width = files.size
    step = max(1, len(files.paths) // _N_PROBED)
    reserves = []
    for path in files.paths[::step]:
        with _opened(path) as image:
            reserves.append(min(image.width / width, image.height / height))
    return float(np.clip(np.median(reserves), 1, _LARGEST_MARGIN))


def _decoded(files: ImageFiles, title: str, progress: bool) -> Tensor:
    pixels = np.empty((len(files.paths), *files.size), np.uint8)

    def decode(index: int) -> None:
        pixels[index] = _decode(files.paths[index], files.size)

    # Threads: Pillow decodes and scales without holding Python's lock.
    with ThreadPoolExecutor(_n_cores()) as pool:
        done = pool.map(decode, range(len(files.paths)))
        for _ in tqdm(
            done, desc=title, total=len(files.paths), unit="img", disable=not progress, leave=False
        ):
            pass
    return torch.from_numpy(pixels)


def _decode(path: str, size: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Pixels [channels, height, width] of an image file."""
    channels, height, width = size
    with _opened(path) as image:
        # JPEG files can be decoded at a half, a quarter or an eighth; twice the size keeps the detail.
        image.draft(_MODES[channels], (2 * width, 2 * height))
        scale = max(width / image.width, height / image.height)
        cut_width, cut_height = width / scale, height / scale
        left, top = (image.width - cut_width) / 2, (image.height - cut_height) / 2
        box = (left, top, left + cut_width, top + cut_height)
        pixels = image.convert(_MODES[channels]).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"Image '{path}' cannot be read ({error}); mend or remove it.") from error


class _Decoding(Dataset[Tensor | str]):
    """Decoded images for a DataLoader; an error comes back as its message, which crosses processes whole."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return torch.from_numpy(_decode(self._files.paths[index], self._files.size).copy())
        except DataError as error:
            return str(error)


def _together(items: list[Tensor | str]) -> Tensor | str:
    """A batch [n, channels, height, width], or the first message among the items."""
    message = next((item for item in items if isinstance(item, str)), None)
    return message or torch.stack([item for item in items if isinstance(item, Tensor)])


def _n_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
