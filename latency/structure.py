"""Records that describe a network's channels: groups, the parameters they own, and the layers they widen.

A *slot* is a set of tied channels that are kept or removed together. Slots that pass through the same
tensors form a *channel group*; the number of slots kept is the group's *width*. Slots are numbered over
the whole network so that each group's are contiguous: group g owns `offset … offset + n_channels - 1`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

FIXED = -1
"""Slot number of a channel that is never removed (network inputs, outputs, constants)."""

Role = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class LinearWidth:
    """A tensor's channel count as a linear function of group widths: `constant + Σ coefficient · width`.

    Attributes:
        constant: channels that are never removed.
        terms: pairs (group index, channels per slot), sorted by group.
    """

    constant: int
    terms: tuple[tuple[int, int], ...]

    def at(self, widths: Sequence[int] | IntArray) -> int:
        """Channel count at the given group widths, [n_groups]."""
        return self.constant + sum(int(count) * int(widths[group]) for group, count in self.terms)


@dataclass(frozen=True, slots=True)
class ParameterAxis:
    """One axis of one parameter, and the slot that each of its indices belongs to.

    Attributes:
        parameter: name of the ONNX initialiser; for a network's parameters also the `nn.Module`'s name.
        axis: axis of the parameter that `slots` indexes.
        slots: slot of each index along the axis, [size of the axis]; `FIXED` where it is never removed.
        role: "out" where the index produces the slot's channel (filters, biases, BatchNorm), "in" where
            it reads it. Zeroing every "in" index of a slot is what gating the slot off means.
    """

    parameter: str
    axis: int
    slots: IntArray
    role: Role


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Interchangeable slots that travel together; pruning chooses how many and which of them stay.

    Attributes:
        index: position in the width vector.
        name: name of the first layer that produces the group's channels.
        n_channels: number of slots, the group's full width.
        offset: number of the group's first slot.
        channels_per_slot: channels of the first producer that one slot stands for (1 but for tied ones).
        zero_allowed: whether width 0 leaves a network that computes something.
        removes: names of the layers that disappear at width 0 (a residual branch), empty otherwise.
        implied_zero: indices of the groups that disappear with this one at width 0.
        presence: parameters that are scaled by the group's presence (0 or 1) so that the full network
            with all of the group's gates closed equals the network with the branch bypassed.
    """

    index: int
    name: str
    n_channels: int
    offset: int
    channels_per_slot: int
    zero_allowed: bool
    removes: tuple[str, ...]
    implied_zero: tuple[int, ...]
    presence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerView:
    """One Conv or Gemm as the latency encoding sees it.

    Attributes:
        name: name of the layer (the `nn.Module` path where there is one).
        kind: "dense", "depthwise" or "grouped" convolution, or "linear".
        in_channels: channels read, as a function of the group widths.
        out_channels: channels produced.
        channels_per_conv_group: input channels that each filter reads at full width, for grouped convolutions.
        kernel_area: kernel height × width, 1 for linear layers.
        in_positions: height × width of the input, 1 for linear layers, times the batch size.
        out_positions: positions at which the kernel is applied: height × width of the output (of the input
            for transposed convolutions), times the batch size.
        depends_on: groups whose width 0 removes the layer, beyond those in its own channel counts.
        n_narrowed_groups: for grouped convolutions whose groups all become narrower together, their number;
            0 where groups are kept or removed whole.
    """

    name: str
    kind: Literal["dense", "depthwise", "grouped", "linear"]
    in_channels: LinearWidth
    out_channels: LinearWidth
    channels_per_conv_group: int
    kernel_area: int
    in_positions: int
    out_positions: int
    depends_on: tuple[int, ...]
    n_narrowed_groups: int = 0

    def macs(self, widths: Sequence[int] | IntArray) -> int:
        """Multiply-accumulates at the given group widths, [n_groups]; 0 where the layer is removed."""
        if any(int(widths[group]) == 0 for group in self.depends_on):
            return 0
        read = self.channels_read(self.in_channels.at(widths))
        return self.out_positions * self.kernel_area * read * self.out_channels.at(widths)

    @property
    def fixed_macs(self) -> int:
        """Multiply-accumulates between channels that are never removed."""
        read = self.channels_read(self.in_channels.constant)
        return (
            0
            if self.depends_on
            else self.out_positions * self.kernel_area * read * self.out_channels.constant
        )

    def channels_read(self, in_channels: int) -> int:
        """Channels that each filter reads where the layer's input has `in_channels`."""
        if self.kind in ("dense", "linear"):
            return in_channels
        if self.n_narrowed_groups:
            return in_channels // self.n_narrowed_groups
        return min(in_channels, self.channels_per_conv_group)


@dataclass(frozen=True, slots=True)
class KeptChannels:
    """Channels of a layer that are never pruned, and why: what a report shows instead of silence."""

    layer: str
    n_channels: int
    reason: str
