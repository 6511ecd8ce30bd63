"""Image sets in one .npz file: `train_images`, `train_labels`, `test_images`, `test_labels`."""

import zipfile
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np

from pruning.data.arrays import ImageArrays, splits_from_arrays
from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import SourceImages
from pruning.errors import DataError

_NAMES = tuple(field.name for field in fields(ImageArrays))


def load_npz(location: str, input_size: tuple[int, int, int]) -> SourceImages:
    """The images of an .npz file, which have to have the size of the network's input.

    Training images are shifted by up to an eighth of their side; those in colour are also mirrored.
    Grey ones are not: they are often letters or digits, which mean something else in a mirror.

    Args:
        location: path of the file.
        input_size: (channels, height, width).

    Raises:
        DataError: the file is missing or damaged, or an array is of the wrong type, shape or range.
    """
    arrays = _read(Path(location))
    splits = splits_from_arrays(arrays, input_size, f"npz:{location}")
    in_colour = arrays.train_images.ndim == 4 and arrays.train_images.shape[3] > 1
    return SourceImages(
        train=splits.train,
        calibration=splits.train,
        test=splits.test,
        n_classes=splits.n_classes,
        augmentation=ShiftAndFlip(padding=max(1, min(input_size[1:]) // 8), flip=in_colour),
        normalisation="imagenet",
    )


def _read(path: Path) -> ImageArrays:
    if not path.is_file():
        raise DataError(f"Data 'npz:{path}': the file does not exist; give an .npz with {', '.join(_NAMES)}.")
    try:
        # Opened here: NumPy leaves a file that it cannot read open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in _NAMES if name not in file]
            if missing:
                raise DataError(
                    f"Data 'npz:{path}' lacks {', '.join(missing)}; "
                    f"it holds {', '.join(sorted(file)) or 'nothing'}."
                )
            return ImageArrays(**{name: file[name] for name in _NAMES})
    # A lone array has no `with`, hence TypeError and AttributeError.
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"Data 'npz:{path}' is damaged or no .npz file ({error}).") from error
