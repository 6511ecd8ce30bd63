"""Gates: a network whose channels can be switched off while it trains, without changing its modules."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from latency.space import SearchSpace
from latency.structure import ParameterAxis


class Gates(nn.Module, ABC):
    """What a gated network asks of a pruning criterion that trains with the network.

    Learnable state is module state, so that the optimiser, checkpoints and devices handle it.
    """

    @abstractmethod
    def scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """How much each slot deserves to stay, [n_slots]; above 0 means open.

        Args:
            parameters: the network's parameters by name.
        """

    @abstractmethod
    def open(self, scores: Tensor) -> Tensor:
        """Gate values, [n_slots], 0 or 1 forward, differentiable backward."""


class GatedNetwork(nn.Module):
    """A network run with some of its channels gated off.

    A gate multiplies the weights that *read* its slot, so that a closed gate is exactly a removed channel
    whatever the activation and BatchNorm in between. Where all gates of a removable group are closed, the
    biases and BatchNorm affine parameters of its branch are scaled by 0 too, and the branch is bypassed.
    Gating costs one multiplication per weight, none per activation.

    Args:
        network: the network; its parameters stay where they are and are trained along.
        space: its search space.
        gates: the criterion.
        minimum_widths: smallest allowed width of each group, [n_groups]; so many of a group's best
            channels stay open whatever their scores.
    """

    def __init__(
        self, network: nn.Module, space: SearchSpace, gates: Gates, minimum_widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.network = network
        self.gates = gates
        self._reading = _reading_axes(network, space)
        self._ranges = [(group.offset, group.offset + group.n_channels) for group in space.groups]
        self._minimum_widths = [int(width) for width in minimum_widths]
        self._presence = _presence(network, space)
        self.widths: Tensor = torch.zeros(len(space.groups))
        for position, axis in enumerate(self._reading):
            self.register_buffer(f"_slots_{position}", torch.from_numpy(axis.slots), persistent=False)

    def forward(self, *inputs: Tensor) -> Any:
        """The network's output with the gates as they stand; `widths` then holds the open gates' counts."""
        return functional_call(self.network, self.gated_parameters(), inputs)

    def gated_parameters(self) -> dict[str, Tensor]:
        """Gated values of the parameters that read or shift gated channels, by name."""
        parameters = dict(self.network.named_parameters())
        gates = self.gate_values(parameters)
        self.widths = torch.stack([gates[first:last].sum() for first, last in self._ranges])
        with_fixed = torch.cat([gates, gates.new_ones(1)])  # slot -1 is never gated
        gated: dict[str, Tensor] = {}
        for position, axis in enumerate(self._reading):
            weight = gated.get(axis.parameter, parameters[axis.parameter])
            shape = [1] * weight.ndim
            shape[axis.axis] = -1
            factors = with_fixed[getattr(self, f"_slots_{position}")].view(shape)
            gated[axis.parameter] = weight * factors
        for name, groups in self._presence.items():
            value = gated.get(name, parameters[name])
            for group in groups:
                value = value * _group_presence(gates[slice(*self._ranges[group])])
            gated[name] = value
        return gated

    def gate_values(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Gate of every slot, [n_slots], 0 or 1, differentiable."""
        scores = self.gates.scores(
            dict(self.network.named_parameters()) if parameters is None else parameters
        )
        return self.gates.open(self._held_open(scores))

    def _held_open(self, scores: Tensor) -> Tensor:
        """Scores with the best few of each group raised above 0 where the group may not vanish."""
        raised = []
        for (first, last), least in zip(self._ranges, self._minimum_widths, strict=True):
            part = scores[first:last]
            if least > 0:
                best = torch.topk(part.detach(), least).indices
                lift = torch.zeros_like(part).index_fill_(0, best, 1.0)
                # the value is held just above 0; the gradient passes
                part = part + lift * (part.detach().clamp(min=1e-3) - part.detach())
            raised.append(part)
        return torch.cat(raised)


def _group_presence(gates: Tensor) -> Tensor:
    """1 where any gate of a group is open, else 0, []; closing one of several open gates does not change it."""
    presence = gates.amax()
    return presence.detach() if int((gates.detach() > 0).sum()) > 1 else presence


def _reading_axes(network: nn.Module, space: SearchSpace) -> tuple[ParameterAxis, ...]:
    names = dict(network.named_parameters())
    return tuple(axis for axis in space.parameter_axes if axis.role == "in" and axis.parameter in names)


def _presence(network: nn.Module, space: SearchSpace) -> dict[str, list[int]]:
    """Groups whose presence scales each parameter, by parameter name."""
    names = dict(network.named_parameters())
    scaled: dict[str, list[int]] = {}
    for group in space.groups:
        for name in group.presence:
            if name in names:
                scaled.setdefault(name, []).append(group.index)
    return scaled
