"""From 8-bit pixels to the numbers a network was trained on: (pixel / 255 − mean) / deviation."""

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pruning.errors import SettingError

# Channel means and deviations of the training images; ImageNet's are torchvision's.
_NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}
_FORMS = f"{', '.join(_NAMED)}, or MEAN/DEVIATION such as 0.5,0.5,0.5/0.25,0.25,0.25"


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A per-channel shift and scale of pixels in [0, 1].

    Attributes:
        name: one of the known names, or "explicit".
        mean: subtracted, [channels].
        deviation: divided by, [channels].
    """

    name: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse lists of unlike lengths, and numbers that do not normalise."""
        finite = all(math.isfinite(value) for value in self.mean + self.deviation)
        if len(self.mean) != len(self.deviation) or not finite or min(self.deviation, default=0.0) <= 0:
            raise SettingError(
                f"Normalisation has mean {self.mean} and deviation {self.deviation}; "
                "give as many finite numbers for one as for the other, deviations above 0."
            )

    def apply(self, images: Tensor) -> Tensor:
        """Normalised images in float32.

        Args:
            images: 8-bit pixels, [N, channels, H, W]; left as they are.
        """
        mean = np.asarray(self.mean, np.float32).reshape(-1, 1, 1)
        deviation = np.asarray(self.deviation, np.float32).reshape(-1, 1, 1)
        # One pass less over the batch than dividing by 255 first.
        values = images.numpy() * (1 / (255 * deviation))
        values -= mean / deviation
        return torch.from_numpy(values)


def parse_normalisation(text: str | None, n_channels: int, default: str) -> Normalisation:
    """The normalisation that `text` names, for images of `n_channels`.

    Args:
        text: a known name, `MEAN/DEVIATION` with comma-separated numbers, or None for the default.
        n_channels: channels of the images.
        default: name used for None; where it needs three channels and there are others, "half" is used.

    Raises:
        SettingError: the text is not understood, or is for another number of channels.
    """
    if text is None:
        text = default if len(_NAMED[default][0]) in (1, n_channels) else "half"
    name = text if text in _NAMED else "explicit"
    mean, deviation = _NAMED.get(text) or _parsed(text)
    if len(mean) not in (1, n_channels):
        raise SettingError(
            f"Normalisation '{text}' is for {len(mean)} channels, the images have {n_channels}; "
            f"give {_FORMS}."
        )
    repeat = n_channels // len(mean)
    return Normalisation(name, mean * repeat, deviation * repeat)


def _parsed(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    halves = text.split("/")
    try:
        mean, deviation = (tuple(float(part) for part in re.split(r"\s*,\s*", half)) for half in halves)
    except ValueError as error:
        raise SettingError(f"Normalisation '{text}' is not understood; give {_FORMS}.") from error
    return mean, deviation
