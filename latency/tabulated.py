"""LPNet on the grid of allowed widths: sums over tables, the same figures twenty times as fast.

On the grid a layer's features depend on two whole numbers alone, the steps of channels that it reads and those that it
writes. All that LPNet takes from the features is linear in them (the physics, its members, the directions that the
MLP sees, and the bytes of weights). So each layer has a table with these sums for every pair of steps, worked out by
the encoding itself, and a prediction is one row of each layer's table, added up, and LPNet's own MLP:

    Σ_l table_l[steps in, steps out]  →  physics, members, directions, bytes  →  latency, spread

A layer whose branch is removed has the row of zeros. Between grid points `latency.lpnet.LPNet` itself is to be asked.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from latency.encoding import TERMS, Encoding, Side
from latency.lpnet import LPNet

MOST_ROWS = 250_000
"""Rows of all tables together (some 15 MB); networks with more, of long concatenations, go without."""

# Steps are whole numbers but for rounding errors.
_ROUNDING = 1e-3


class TabulatedLPNet(nn.Module):
    """Predictions of an LPNet at widths on its grid.

    Attributes:
        lpnet: where the tables come from, and what turns their sums into latencies.
        tables: rows of all layers, the row of zeros first, [n_rows, n_sums + 1]; the bytes of weights last.
        first_row: where each layer's table begins, [n_layers].
        n_out: rows for each step in, [n_layers].
        steps: steps in and steps out for each channel of a group, [2 · n_layers, n_groups].
        needs: groups without which a layer is gone, [n_layers, n_groups].
        stays: groups without which a group is gone, itself among them, [n_groups, n_groups].
        beyond: what each byte beyond a cache adds to the sums, [n_sums, n_caches].
        constant: what does not depend on the widths, [n_sums].
    """

    tables: Tensor
    first_row: Tensor
    n_out: Tensor
    steps: Tensor
    steps_bias: Tensor
    needs: Tensor
    needs_bias: Tensor
    stays: Tensor
    stays_bias: Tensor
    beyond: Tensor
    constant: Tensor

    def __init__(self, lpnet: LPNet) -> None:
        """Tables of the given LPNet.

        Raises:
            ValueError: there would be more than `MOST_ROWS` rows, see `n_rows`.
        """
        super().__init__()
        if n_rows(lpnet) > MOST_ROWS:
            raise ValueError(f"{n_rows(lpnet)} rows, at most {MOST_ROWS} are worth their memory")
        self.lpnet = lpnet
        encoding = Encoding(lpnet.encoding.state_dict()).double()
        self._some_imply_others = bool(encoding.implied.any())
        self._some_depend = bool(encoding.depends.any())
        layout = _layout(encoding)
        per_term, constant = _linear_sums(lpnet, encoding)
        n_layer_terms = encoding.n_layers * len(TERMS)
        steps_out = encoding.out_terms / encoding.out_step * ~layout.diagonal
        steps = torch.cat([encoding.in_terms / encoding.in_step, steps_out], dim=1)
        buffers = {
            "tables": _tables(encoding, layout, per_term[:n_layer_terms]),
            "first_row": layout.first_row,
            "n_out": layout.n_out,
            "steps": steps.T,
            "steps_bias": torch.full((steps.shape[1],), -_ROUNDING),
            # 1 - (1 - there) · depends, and there - (1 - there) · implied, as one step each
            "needs": encoding.depends.T,
            "needs_bias": 1.0 - encoding.depends.sum(dim=0),
            "stays": (encoding.implied + torch.eye(encoding.n_groups)).T,
            "stays_bias": -encoding.implied.sum(dim=0),
            "beyond": per_term[n_layer_terms:].T,
            "constant": constant,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.float().contiguous())

    def forward(self, widths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions at widths on the grid; what it says elsewhere means nothing.

        Args:
            widths: channels kept per group, [n, n_groups].

        Returns:
            Latency in ms, [n], spread, [n], and each layer's share in ms, [n, n_layers + 1]; see `LPNet.outputs`.
        """
        rows = nn.functional.embedding(self._rows(widths), self.tables)
        totals, n_bytes = torch.split(rows.sum(dim=1), [self.beyond.shape[0], 1], dim=1)
        network = self._network(n_bytes)
        sizes = [1, self.lpnet.members.shape[0], self.lpnet.projection.shape[1]]
        physics_ms, each_ms, directions = torch.split(totals + network, sizes, dim=1)
        factor = torch.exp(self.lpnet.log_factor(directions, physics_ms[:, 0]))[:, None]
        spread = self.lpnet.relative_spread(each_ms, physics_ms[:, 0])
        shares = torch.cat([rows[:, :, 0], network[:, :1]], dim=1)
        return (physics_ms * factor)[:, 0], spread, shares * factor

    def _network(self, n_bytes: Tensor) -> Tensor:
        """What belongs to no single layer, [n, n_sums], with so many bytes of weights, [n, 1]."""
        if not self.beyond.shape[1]:  # too small a network to exceed any cache
            return self.constant.expand(n_bytes.shape[0], -1)
        return linear(torch.relu(n_bytes - self.lpnet.encoding.caches), self.beyond, self.constant)

    def _rows(self, widths: Tensor) -> Tensor:
        """Row of each layer in the tables, [n, n_layers]."""
        there = widths.clamp(max=1.0)
        if self._some_imply_others:
            there = linear(there, self.stays, self.stays_bias).clamp(min=0.0)
            widths = widths * there
        steps_in, steps_out = linear(widths, self.steps, self.steps_bias).ceil().chunk(2, dim=1)
        row = self.first_row + steps_in * self.n_out + steps_out
        if self._some_depend:
            row = row * linear(there, self.needs, self.needs_bias).clamp(min=0.0)
        return row.to(torch.int64)


class _Layout(NamedTuple):
    """Where each layer's table is, all [n_layers]."""

    n_in: Tensor
    n_out: Tensor
    diagonal: Tensor  # reads and writes the same channels: steps in say it all
    first_row: Tensor


def n_rows(lpnet: LPNet) -> int:
    """Rows of an LPNet's tables."""
    layout = _layout(lpnet.encoding)
    return 1 + int((layout.n_in * layout.n_out).sum())


def _layout(encoding: Encoding) -> _Layout:
    def n_values(side: str) -> Tensor:
        free = encoding.get_buffer(f"{side}_terms").sum(dim=0) > 0
        full, step = encoding.get_buffer(f"{side}_full"), encoding.get_buffer(f"{side}_step")
        return 1 + torch.where(free, (full / step - _ROUNDING).ceil(), 0.0).to(torch.int64)

    same = torch.eq(encoding.in_terms, encoding.out_terms).all(dim=0)
    diagonal = same & (encoding.in_terms.sum(dim=0) > 0)
    n_in, n_out = n_values("in"), n_values("out").where(~diagonal, 1)
    sizes = n_in * n_out
    return _Layout(n_in, n_out, diagonal, 1 + sizes.cumsum(0) - sizes)


def _linear_sums(lpnet: LPNet, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """What each unscaled term adds to the sums, [n_terms, n_sums], and what is added in any case, [n_sums]."""
    members = lpnet.members.double()
    columns = [lpnet.weight.double()[:, None], members[:, :-1].T, lpnet.projection.double()]
    per_feature = torch.cat(columns, dim=1) / encoding.full_values[:, None]
    n_terms = encoding.n_layers * len(TERMS) + encoding.caches.shape[0]
    per_term = torch.zeros(n_terms, per_feature.shape[1], dtype=torch.float64)
    per_term[encoding.feature_index] = per_feature
    nothing = torch.zeros(lpnet.projection.shape[1], dtype=torch.float64)
    return per_term, torch.cat([lpnet.bias.double()[None], members[:, -1], nothing])


def _tables(encoding: Encoding, layout: _Layout, per_term: Tensor) -> Tensor:
    """Sums of every layer at every pair of steps, the row of zeros first, [n_rows, n_sums + 1]."""
    sizes = layout.n_in * layout.n_out
    # All layers at once; those with fewer rows repeat their last one.
    row = torch.arange(int(sizes.max()))[:, None].minimum(sizes - 1)
    free_in = ((row // layout.n_out) * encoding.in_step).minimum(encoding.in_full)
    free_out = ((row % layout.n_out) * encoding.out_step).minimum(encoding.out_full)
    free_out = torch.where(layout.diagonal, free_in, free_out)
    terms = encoding.layer_terms(
        Side(free_in, ((free_in + encoding.in_constant) > 0).double()),
        Side(free_out, ((free_out + encoding.out_constant) > 0).double()),
        torch.ones_like(free_in),
    )
    sums = torch.einsum("rlt,ltk->rlk", terms, per_term.view(encoding.n_layers, len(TERMS), -1))
    n_bytes = terms[:, :, 0] * encoding.weight_bytes
    sums = torch.cat([sums, n_bytes[..., None]], dim=2)
    parts = [sums[: int(size), layer] for layer, size in enumerate(sizes)]
    return torch.cat([torch.zeros(1, sums.shape[2], dtype=sums.dtype), *parts])
