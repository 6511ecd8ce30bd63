"""The part of a batch that one of several training processes takes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """Every `count`-th image of a batch, from `index` on; a batch is a multiple of `count`.

    Attributes:
        index: number of the process, from 0.
        count: number of processes.
    """

    index: int
    count: int

    def of(self, values: Tensor) -> Tensor:
        """The share's rows of what belongs to a whole batch, [n, …]."""
        return values[self.index :: self.count]


WHOLE = Share(0, 1)
