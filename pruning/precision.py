"""The number format a network trains in, chosen by timing a few steps instead of assuming."""

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.models import class_scores

TIMED_STEPS = 3
"""Steps timed for each format, after one that warms up."""

TIMED_IMAGES = 32
"""Images in a timed step at most: enough for the formats to be in proportion, few enough to be quick."""

ENOUGH_SECONDS = 15.0
"""Once timed steps have taken so long, no further round is begun: their median is of long steps, so exact."""

HOPELESS = 5.0
"""A format whose first step takes this many times as long as the fastest first step is not timed further."""

MIN_GAIN = 0.05
"""A format must be faster than plain fp32 by this share to be taken: below it, exactness is worth more."""


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format and memory layout of training.

    Attributes:
        autocast: "bf16" or "none" (fp32 throughout).
        channels_last: whether images and weights are laid out with the channels innermost.
    """

    autocast: str = "none"
    channels_last: bool = False

    @property
    def name(self) -> str:
        """Short name, such as `bf16, channels last`."""
        layout = ", channels last" if self.channels_last else ""
        return ("bf16" if self.autocast == "bf16" else "fp32") + layout

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context in which forward passes run."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast == "bf16")

    def images(self, images: Tensor) -> Tensor:
        """Images in this layout, [n, channels, height, width]."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def lay_out_(self, network: nn.Module) -> None:
        """Bring a network's weights into this layout, in place."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        network.to(memory_format=layout)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


FORMATS = (Precision(), Precision(channels_last=True), Precision("bf16", channels_last=True))


def choose_precision(
    network: nn.Module, images: Tensor, clock: Callable[[], float] = time.perf_counter
) -> tuple[Precision, dict[str, float]]:
    """The fastest of `FORMATS` for training this network here, and the seconds a step takes in each.

    bf16 halves the time on CPUs with AVX-512 BF16 or AMX and multiplies it on others, so it is tried, and
    given up after its first step where that is slow. The formats take turns, so that a disturbance hits
    them alike.

    Args:
        network: left as it is; a copy is trained.
        images: one training batch, [n, channels, height, width], of which a part is used.
        clock: seconds.

    Returns:
        The format, and seconds of a step of up to `TIMED_IMAGES` images by name of the format.
    """
    images = images[:TIMED_IMAGES]
    trial = copy.deepcopy(network).train()
    if images.device.type == "cuda":
        # Its libraries are loaded in the first step, which none of the formats is to pay for.
        _step_seconds(trial, images, FORMATS[0], clock)
    taken = {precision: [_step_seconds(trial, images, precision, clock)] for precision in FORMATS}
    fastest = min(first for (first,) in taken.values())
    hopeful = [precision for precision in FORMATS if taken[precision][0] <= HOPELESS * fastest]
    for precision in hopeful:
        taken[precision].clear()
    for _ in range(TIMED_STEPS):
        for precision in hopeful:
            taken[precision].append(_step_seconds(trial, images, precision, clock))
        if sum(sum(taken[precision]) for precision in hopeful) > ENOUGH_SECONDS:
            break
    seconds = {precision.name: statistics.median(steps) for precision, steps in taken.items()}
    fp32 = seconds[FORMATS[0].name]
    best = min(FORMATS, key=lambda precision: seconds[precision.name])
    chosen = best if seconds[best.name] < (1 - MIN_GAIN) * fp32 else FORMATS[0]
    return chosen, seconds


def _step_seconds(
    trial: nn.Module, images: Tensor, precision: Precision, clock: Callable[[], float]
) -> float:
    """Seconds of a forward and backward pass."""
    precision.lay_out_(trial)
    batch = precision.images(images)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    start = clock()
    with precision.context(images.device):
        scores = class_scores(trial(batch)).float()
    F.cross_entropy(scores, labels).backward()  # type: ignore[no-untyped-call]
    # Reading a value waits for the work that an accelerator has queued.
    float(next(p.grad for p in trial.parameters() if p.grad is not None).flatten()[0])
    return clock() - start
