"""Gates: a network whose channels can be switched off while it trains, without changing its modules."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from latency.grid import Grid
from latency.space import SearchSpace
from latency.structure import FIXED, IntArray, ParameterAxis

_JUST_OPEN = 1e-3
"""Distance from the threshold of a score that is moved past it."""


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
        grid: allowed widths. Each group opens as many of its best channels as the allowed width nearest to
            its count of positive scores, so that what is trained is what can be cut: on a grid of 16 channels
            a group of 16 is either whole or gone, never an average of the two. Or those that `hold` has said.

    Attributes:
        widths: open gates of each group at the last forward pass, [n_groups], differentiable.
        scores: the gates' scores then, [n_slots], differentiable.
    """

    is_held: Tensor
    held_open: Tensor
    held_shift: Tensor

    def __init__(self, network: nn.Module, space: SearchSpace, gates: Gates, grid: Grid) -> None:
        super().__init__()
        self.network = network
        self.gates = gates
        self._reading = _reading_axes(network, space)
        self._sizes = [group.n_channels for group in space.groups]
        self._allowed = grid.allowed
        self._presence = _presence(network, space)
        self.widths: Tensor = torch.zeros(len(space.groups))
        # Gathered together: with hundreds of small layers most of a step's gating would be calls.
        n_slots = sum(self._sizes)
        self.scores: Tensor = torch.zeros(n_slots)
        # Kept with the state: an interrupted search goes on with the gates as they stood.
        self.register_buffer("is_held", torch.zeros((), dtype=torch.bool))
        self.register_buffer("held_open", torch.ones(n_slots, dtype=torch.bool))
        self.register_buffer("held_shift", torch.zeros(()))
        reading = [np.where(axis.slots == FIXED, n_slots, axis.slots) for axis in self._reading]
        self._add_indices("_slots", np.concatenate([*reading, [n_slots]]))
        self._add_indices("_groups", np.repeat(np.arange(len(self._sizes)), self._sizes))
        removable = {group for groups in self._presence.values() for group in groups}
        is_removable = [group in removable for group in range(len(self._sizes))]
        self.register_buffer("_is_removable", torch.tensor(is_removable), persistent=False)
        parameters = dict(network.named_parameters())
        read = {axis.parameter for axis in self._reading}
        self._vectors = [
            name
            for name, groups in self._presence.items()
            if len(groups) == 1 and parameters[name].ndim == 1 and name not in read
        ]
        of_vectors = [np.full(len(parameters[name]), self._presence[name][0]) for name in self._vectors]
        self._add_indices("_vector_groups", np.concatenate([*of_vectors, np.zeros(0, dtype=np.int64)]))
        self._slots: Tensor
        self._groups: Tensor
        self._vector_groups: Tensor
        self._is_removable: Tensor

    def _add_indices(self, name: str, values: IntArray) -> None:
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, *inputs: Tensor) -> Any:
        """The network's output with the gates as they stand; `widths` then holds the open gates' counts."""
        gates = self.gate_values()
        self.widths = gates.new_zeros(len(self._sizes)).index_add(0, self._groups, gates)
        return functional_call(self.network, self.gated_parameters(gates), inputs)

    def gated_parameters(self, gates: Tensor) -> dict[str, Tensor]:
        """Gated values of the parameters that read or shift gated channels, by name.

        Args:
            gates: value of every slot's gate, [n_slots].
        """
        parameters = dict(self.network.named_parameters())
        presence = _GroupPresence.apply(gates, self._groups, len(self._sizes))
        sizes = [len(axis.slots) for axis in self._reading]
        factors = torch.split(self._reading_gates(gates, presence).index_select(0, self._slots), [*sizes, 1])
        gated: dict[str, Tensor] = {}
        for axis, factor in zip(self._reading, factors[:-1], strict=True):
            weight = gated.get(axis.parameter, parameters[axis.parameter])
            shape = [1] * weight.ndim
            shape[axis.axis] = -1
            gated[axis.parameter] = weight * factor.view(shape)
        gated |= self._present_vectors(parameters, presence)
        present = torch.unbind(presence)
        for name, groups in self._presence.items():
            if name in self._vectors:
                continue
            value = gated.get(name, parameters[name])
            for group in groups:
                value = value * present[group]
            gated[name] = value
        return gated

    def _present_vectors(self, parameters: Mapping[str, Tensor], presence: Tensor) -> dict[str, Tensor]:
        """Values of the biases and norms that the presence of one group scales, and nothing else; by name."""
        if not self._vectors:
            return {}
        vectors = [parameters[name] for name in self._vectors]
        scaled = torch.cat(vectors) * presence.index_select(0, self._vector_groups)
        parts = torch.split(scaled, [len(vector) for vector in vectors])
        return dict(zip(self._vectors, parts, strict=True))

    def _reading_gates(self, gates: Tensor, presence: Tensor) -> Tensor:
        """Factors of the weights that read each slot, [n_slots + 1]; the last one, for what is fixed, is 1.

        Where a removable group is gone its presence alone bypasses the branch. Its reading weights then stay
        as they are: the output is the same, and the gradient of the presence tells what the branch would add.
        """
        gone = self._is_removable & (presence.detach() == 0)
        kept = torch.where(gone[self._groups], torch.ones_like(gates), gates)
        return torch.cat([kept, gates.new_ones(1)])

    def gate_values(self) -> Tensor:
        """Gate of every slot, [n_slots], 0 or 1, differentiable."""
        parameters = dict(self.network.named_parameters())
        device = next(iter(parameters.values())).device
        with torch.autocast(device.type, enabled=False):  # scores that differ little, sums of many gates
            self.scores = self.gates.scores(parameters)
            return self.gates.open(self._on_grid(self.scores))

    @torch.no_grad()
    def hold(self, kept: Sequence[IntArray], shift: float) -> None:
        """Keep these gates open and the others closed, whatever their scores become, until told again.

        Args:
            kept: positions of the open gates of each group.
            shift: the distance of a score from the threshold, which decides how steep its gate is, is measured after
                adding this.
        """
        self.held_open.zero_()
        first = 0
        for size, positions in zip(self._sizes, kept, strict=True):
            self.held_open[first + torch.from_numpy(positions).to(self.held_open.device)] = True
            first += size
        self.held_shift.fill_(shift)
        self.is_held.fill_(True)

    def _on_grid(self, scores: Tensor) -> Tensor:
        """Scores that are positive where a gate is to be open.

        Values on the wrong side of the threshold are put just past it; gradients pass unchanged.
        """
        values = scores.detach()
        if self.is_held:
            open_, values = self.held_open, values + self.held_shift
        else:
            open_ = self._nearest_open(values)
        wanted = torch.where(open_, values.clamp(min=_JUST_OPEN), values.clamp(max=-_JUST_OPEN))
        return scores + (wanted - scores.detach())

    def _nearest_open(self, scores: Tensor) -> Tensor:
        """Whether each slot is among its group's best, as many as the allowed width nearest to their count."""
        best = []
        for part, allowed in zip(torch.split(scores.cpu(), self._sizes), self._allowed, strict=True):
            open_ = torch.zeros_like(part, dtype=torch.bool)
            open_[torch.topk(part, _nearest(int((part > 0).sum()), allowed)).indices] = True
            best.append(open_)
        return torch.cat(best).to(scores.device)


def _nearest(count: int, allowed: Sequence[int]) -> int:
    """Allowed width nearest to a count; the larger of two equally near."""
    return min(allowed, key=lambda width: (abs(width - count), -width))


class _GroupPresence(torch.autograd.Function):
    """1 for each group of which any gate is open, else 0; backward, each gate has an equal share in it (ours)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, gates: Tensor, groups: Tensor, n_groups: int
    ) -> Tensor:
        ctx.save_for_backward(groups)
        ctx.n_groups = n_groups  # type: ignore[attr-defined]
        return gates.new_zeros(n_groups).scatter_reduce(0, groups, gates, "amax", include_self=False)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (groups,) = ctx.saved_tensors  # type: ignore[attr-defined]
        n_gates = torch.bincount(groups, minlength=ctx.n_groups)  # type: ignore[attr-defined]
        return (gradients[0] / n_gates)[groups], None, None


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
