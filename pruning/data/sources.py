"""Data by name: `digits`, `cifar10:ROOT`, `folder:ROOT` or `npz:FILE`, as an image task."""

from collections.abc import Callable

from pruning.data.base import ImageTask, SourceImages
from pruning.data.cifar10 import load_cifar10
from pruning.data.digits import load_digits
from pruning.data.folder import load_folder
from pruning.data.normalisation import parse_normalisation
from pruning.data.npz import load_npz
from pruning.errors import DataError, SettingError

_SOURCES: dict[str, Callable[[str, tuple[int, int, int]], SourceImages]] = {
    "cifar10": load_cifar10,
    "digits": load_digits,
    "folder": load_folder,
    "npz": load_npz,
}
_FORMS = "digits, cifar10:ROOT, folder:ROOT or npz:FILE"


def load_data(
    spec: str,
    input_size: tuple[int, int, int],
    normalisation: str | None = None,
    seed: int = 0,
) -> ImageTask:
    """The image task that `spec` names, for a network that takes images of `input_size`.

    Digits and folders of images are brought to the input size, and the task's notes say so; CIFAR-10 and
    .npz files have to have it. Nothing is downloaded.

    Args:
        spec: `digits`, `cifar10:ROOT`, `folder:ROOT` or `npz:FILE`.
        input_size: (channels, height, width) of what the network gets.
        normalisation: `imagenet`, `cifar`, `half`, `none` or `MEAN/DEVIATION`; None is the source's own:
            `imagenet` for images in colour, `half` for digits and grey images.
        seed: decides the order of training images and their variations; not which images are tested on.

    Raises:
        DataError: the data is unknown, missing, damaged or of the wrong shape.
        SettingError: the input size, the normalisation or the seed is not allowed.
    """
    name, _, location = spec.partition(":")
    if name not in _SOURCES or (name != "digits" and not location):
        raise DataError(f"Data '{spec}' is not understood; give {_FORMS}.")
    if len(input_size) != 3 or min(input_size) < 1:
        raise SettingError(
            f"Input size {input_size} is not allowed; give channels, height and width above 0."
        )
    if seed < 0:
        raise SettingError(f"Seed {seed} is not allowed; give 0 or more.")
    images = _SOURCES[name](location, input_size)
    return ImageTask(
        source=spec,
        input_size=input_size,
        n_classes=images.n_classes,
        normalisation=parse_normalisation(normalisation, input_size[0], images.normalisation),
        augmentation=images.augmentation,
        train=images.train,
        calibration=images.calibration,
        test=images.test,
        seed=seed,
        notes=images.notes,
    )
