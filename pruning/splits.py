"""Networks that split channels in code, into parts of other sizes than the code says."""

import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Sizes = tuple[int, ...] | None

_SPLITTING: tuple[Callable[..., Any], ...] = (
    *(torch.chunk, torch.split, torch.tensor_split),
    *(Tensor.chunk, Tensor.split, Tensor.split_with_sizes, Tensor.tensor_split),
)


class _Active(threading.local):
    """The innermost module whose splits are changed, for each thread."""

    def __init__(self) -> None:
        self.modes: list[_PartSizes] = []


_ACTIVE = _Active()


class _PartSizes(TorchFunctionMode):
    """Gives the splits of one call of a module's `forward` their sizes, in order."""

    def __init__(self, module: str, sizes: Sequence[Sizes]) -> None:
        super().__init__()
        self._module, self._n_expected = module, len(sizes)
        self._sizes: Iterator[Sizes] = iter(sizes)
        self._n_called = 0

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
        if func not in _SPLITTING or _ACTIVE.modes[-1] is not self:
            return func(*args, **kwargs)
        self._n_called += 1
        sizes = next(self._sizes, None)
        if sizes is None:
            return func(*args, **kwargs)
        named = dict(zip(("tensor", "parts", "dim"), args, strict=False)) | kwargs
        tensor: Tensor = named["input" if "input" in named else "tensor"]
        dim: int = named.get("dim", 0)
        # In a branch that was removed the tensor stands for none; its first part is all of it.
        first = tensor.shape[dim] - sum(sizes[1:])
        return torch.split(tensor, [first, *sizes[1:]], dim)


class SplitsChannels(nn.Module):
    """Mixed into a module's class: its own splits, in the order of the calls, have other sizes.

    Attributes:
        part_sizes: sizes of the parts of each split; None where they stay as the code says.
    """

    part_sizes: tuple[Sizes, ...] = ()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The module's own `forward`."""
        with _PartSizes(type(self).__name__, self.part_sizes):
            return super().forward(*arguments, **named)


def set_part_sizes_(module: nn.Module, sizes: Sequence[Sizes]) -> None:
    """Change the sizes of the parts that a module splits into, in place; names and weights stay.

    A module within it that splits too needs its own sizes, if only `None`, or its splits count as the outer one's.
    """
    kind = type(module)
    if not issubclass(kind, SplitsChannels):
        module.__class__ = type(kind.__name__, (SplitsChannels, kind), {"__module__": kind.__module__})
    module.part_sizes = tuple(sizes)  # type: ignore[assignment]
