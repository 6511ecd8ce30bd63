"""Networks that split or slice channels in code, at other places than the code says, or pool none at all."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Sizes = tuple[int, ...] | None

Range = tuple[int, int, int, int, int, int]
"""A range of channels cut out in code: the channels there were, first and end of the range, and all three as they
are now."""

_SPLITTING: tuple[Callable[..., Any], ...] = (
    *(torch.chunk, torch.split, torch.tensor_split),
    *(Tensor.chunk, Tensor.split, Tensor.split_with_sizes, Tensor.tensor_split),
)


_REFUSES_NONE: tuple[Callable[..., Any], ...] = (
    *(
        F.interpolate,
        F.pad,
        F.conv2d,
        F.max_pool2d,
        F.avg_pool2d,
        F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d,
    ),
)
"""Functions that work on each channel by itself (`conv2d` where it blurs) and refuse images without channels."""


class _Active(threading.local):
    """The modules whose splits are changed, the innermost last, for each thread."""

    def __init__(self) -> None:
        self.modes: list[_OtherPlaces] = []


_ACTIVE = _Active()


class _OtherPlaces(TorchFunctionMode):
    """Gives the splits of one call of a module's `forward` their sizes, in order, and its slices their ranges."""

    def __init__(self, module: str, sizes: Sequence[Sizes], ranges: Sequence[Range]) -> None:
        super().__init__()
        self._module, self._n_expected, self._ranges = module, len(sizes), ranges
        self._sizes: Iterator[Sizes] = iter(sizes)
        self._n_called = 0
        self._turns: Counter[tuple[int | None, int | None, int]] = Counter()

    def __enter__(self) -> Self:
        _ACTIVE.modes.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        _ACTIVE.modes.pop()
        if error is None and self._n_called != self._n_expected:
            raise RuntimeError(
                f"{self._module} splits {self._n_called} times; it did so {self._n_expected} times when traced."
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _ACTIVE.modes[-1] is not self:
            return func(*args, **kwargs)
        if func is Tensor.__getitem__:
            return args[0][self._moved(args[0], args[1])]
        if func in _REFUSES_NONE and args[0].shape[1] == 0:
            return _of_no_channels(func, args, kwargs)
        if func not in _SPLITTING:
            return func(*args, **kwargs)
        self._n_called += 1
        sizes = next(self._sizes, None)
        if sizes is None:
            return func(*args, **kwargs)
        named = dict(zip(("tensor", "parts", "dim"), args, strict=False)) | kwargs
        tensor: Tensor = named["input" if "input" in named else "tensor"]
        dim: int = named.get("dim", 0)
        return torch.split(tensor, list(sizes), dim)

    def _moved(self, tensor: Tensor, index: Any) -> Any:
        """The index with its range of channels where that now lies."""
        if not (isinstance(index, tuple) and len(index) > 1 and isinstance(index[1], slice)):
            return index
        asked = index[1]
        if any(isinstance(bound, Tensor) for bound in (asked.start, asked.stop)):
            return index
        matching = [
            (new_first, new_end)
            for size, first, end, new_size, new_first, new_end in self._ranges
            if asked.indices(size) == (first, end, 1) and new_size == tensor.shape[1]
        ]
        if not matching:
            return index
        # Several tensors of one size, sliced by the same numbers: in the order of the calls.
        key = asked.start, asked.stop, tensor.shape[1]
        turn = self._turns[key]
        self._turns[key] += 1
        return (index[0], slice(*matching[turn % len(matching)]), *index[2:])


def _of_no_channels(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function makes of images without channels: none either, of the size that it would give others."""
    images, n_channels = args[0], 1
    if func is F.conv2d:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        n_channels = weight.shape[1] * groups
    others = images.new_zeros(images.shape[0], n_channels, *images.shape[2:])
    return func(others, *args[1:], **kwargs)[:, :0]


class SplitsChannels(nn.Module):
    """Mixed into a module's class: its own splits and slices are at other places, images may have no channels.

    Attributes:
        part_sizes: sizes of the parts of each split, in the order of the calls; None where they stay as the
            code says.
        channel_ranges: ranges of channels that move.
    """

    part_sizes: tuple[Sizes, ...] = ()
    channel_ranges: tuple[Range, ...] = ()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The module's own `forward`."""
        with _OtherPlaces(type(self).__name__, self.part_sizes, self.channel_ranges):
            return super().forward(*arguments, **named)


def split_elsewhere_(module: nn.Module, sizes: Sequence[Sizes], ranges: Sequence[Range] = ()) -> None:
    """Change where a module splits and slices channels, in place; names and weights stay.

    Its own poolings then also take images without channels.

    A module within it that splits too needs its own sizes, if only `None`, or its splits count as the outer one's.

    Args:
        module: the module whose own `forward` does so.
        sizes: sizes of the parts of each split, in the order of the calls; None where they stay.
        ranges: ranges of channels that are sliced, as they were and as they are now.
    """
    kind = type(module)
    if not issubclass(kind, SplitsChannels):
        module.__class__ = type(kind.__name__, (SplitsChannels, kind), {"__module__": kind.__module__})
    module.part_sizes = tuple(sizes)  # type: ignore[assignment]
    module.channel_ranges = tuple(ranges)  # type: ignore[assignment]
