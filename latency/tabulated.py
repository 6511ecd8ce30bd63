"""The tables of an LPNet, see `latency.grid_tables`, worked out by its own encoding."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latency.encoding import TERMS, Encoding, Side
from latency.grid_tables import GridTables
from latency.lpnet import LPNet
from latency.lpnet_files import WIDEST

MOST_ROWS = 250_000
"""Rows of all tables together (some 15 MB); networks with more, of long concatenations, go without."""

# Steps are whole numbers but for rounding errors.
_ROUNDING = 1e-3
# Takes any row below 0.
_GONE = -(2.0**20)
# After the row of zeros.
_NETWORK_ROW = 1


def tabulate(lpnet: LPNet) -> GridTables:
    """Tables that say what the LPNet says at widths on its grid.

    Raises:
        ValueError: there would be more than `MOST_ROWS` rows, see `n_rows`.
    """
    if n_rows(lpnet) > MOST_ROWS:
        raise ValueError(f"{n_rows(lpnet)} rows, at most {MOST_ROWS} are worth their memory")
    encoding = Encoding(lpnet.encoding.state_dict()).double()
    layout = _layout(encoding)
    per_term, constant = _linear_sums(lpnet, encoding)
    n_layer_terms = encoding.n_layers * len(TERMS)
    needs_others = bool(encoding.implied.any())
    values = {
        "tables": _tables(encoding, layout, per_term[:n_layer_terms], constant),
        "canonical": (encoding.implied + torch.eye(encoding.n_groups))[: encoding.n_groups * needs_others],
        "canonical_bias": -encoding.implied.sum(dim=0)[None],
        **_places(encoding, layout),
        **_caches(encoding, per_term[n_layer_terms:]),
        **_correction(lpnet),
    }
    arrays = {name: value.detach().float().contiguous().numpy() for name, value in values.items()}
    return GridTables(**arrays)


def _places(encoding: Encoding, layout: "_Layout") -> dict[str, Tensor]:
    """From widths to rows: see the attributes of `GridTables`."""
    n_layers, n_groups = encoding.n_layers, encoding.n_groups
    steps_in = encoding.in_terms / encoding.in_step
    steps_out = encoding.out_terms / encoding.out_step * ~layout.diagonal
    # Rounded up, (1/2 - width) / widest is 1 at width 0, and 0 at any other.
    absence = -torch.eye(n_groups) / WIDEST
    bias = [torch.full((2 * n_layers,), -_ROUNDING), torch.full((n_groups,), 0.5 / WIDEST), torch.ones(1)]
    # The last step is 1, and leads to where each table begins.
    places = torch.cat(
        [torch.diag(layout.n_out), torch.eye(n_layers), _GONE * encoding.depends, layout.first_row[None]]
    )
    network = torch.zeros(places.shape[0], 1)
    network[-1] = _NETWORK_ROW
    return {
        "steps": torch.cat([steps_in, steps_out, absence, torch.zeros(n_groups, 1)], dim=1),
        "steps_bias": torch.cat(bias)[None],
        "places": torch.cat([places, network], dim=1),
    }


def _caches(encoding: Encoding, per_byte: Tensor) -> dict[str, Tensor]:
    """What exceeding caches adds, of what each byte beyond one adds to physics, members and directions."""
    n_caches = len(encoding.caches)
    neither = torch.zeros(per_byte.shape[1], n_caches)
    return {
        "excess": torch.cat([neither, torch.ones(1, n_caches), -encoding.caches[None]]),
        "beyond": torch.cat([per_byte, torch.zeros(n_caches, 2)], dim=1),
    }


def _correction(lpnet: LPNet) -> dict[str, Tensor]:
    """From sums to spread and factor: see the attributes of `GridTables`."""
    first, last = lpnet.mlp[0], lpnet.mlp[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    n_members, n_hidden = lpnet.members.shape[0], first.out_features
    n_others = lpnet.projection.shape[1] + 2  # directions, bytes, 1
    deviation = (torch.eye(n_members) - 1 / n_members) * ((n_members - 1) / n_members) ** 0.5
    # SiLU is worked out from half of its argument.
    per_input = 0.5 * first.weight.double().T / lpnet.scale[:, None]
    bias = 0.5 * first.bias.double() - lpnet.mean.double() @ per_input
    hidden = torch.cat(
        [per_input[:1], torch.zeros(n_members, n_hidden), per_input[1:], torch.zeros(1, n_hidden), bias[None]]
    )
    # One more unit, whose input is always 2, for the output's bias.
    always = torch.zeros(hidden.shape[0], 1)
    always[-1] = 1.0
    output = torch.cat([last.weight[0].double(), last.bias.double() / (1 + math.tanh(1.0))])
    return {
        "disagreement": torch.cat([torch.zeros(1, n_members), deviation, torch.zeros(n_others, n_members)]),
        "hidden": torch.cat([hidden, always], dim=1),
        "output": output,
        "amplitude": lpnet.amplitude[None],
    }


class _Layout(NamedTuple):
    """Where each layer's table is, all [n_layers]."""

    n_in: Tensor
    n_out: Tensor
    diagonal: Tensor  # reads and writes the same channels: steps in say it all
    first_row: Tensor


def n_rows(lpnet: LPNet) -> int:
    """Rows of an LPNet's tables."""
    layout = _layout(lpnet.encoding)
    return 1 + _NETWORK_ROW + int((layout.n_in * layout.n_out).sum())


def _layout(encoding: Encoding) -> _Layout:
    def n_values(side: str) -> Tensor:
        free = encoding.get_buffer(f"{side}_terms").sum(dim=0) > 0
        full, step = encoding.get_buffer(f"{side}_full"), encoding.get_buffer(f"{side}_step")
        return 1 + torch.where(free, (full / step - _ROUNDING).ceil(), 0.0).to(torch.int64)

    same = torch.eq(encoding.in_terms, encoding.out_terms).all(dim=0)
    diagonal = same & (encoding.in_terms.sum(dim=0) > 0)
    n_in, n_out = n_values("in"), n_values("out").where(~diagonal, 1)
    sizes = n_in * n_out
    return _Layout(n_in, n_out, diagonal, 1 + _NETWORK_ROW + sizes.cumsum(0) - sizes)


def _linear_sums(lpnet: LPNet, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """What each unscaled term adds to physics, members and directions, [n_terms, n], and what is added anyway, [n]."""
    members = lpnet.members.double()
    columns = [lpnet.weight.double()[:, None], members[:, :-1].T, lpnet.projection.double()]
    per_feature = torch.cat(columns, dim=1) / encoding.full_values[:, None]
    n_terms = encoding.n_layers * len(TERMS) + encoding.caches.shape[0]
    per_term = torch.zeros(n_terms, per_feature.shape[1], dtype=torch.float64)
    per_term[encoding.feature_index] = per_feature
    nothing = torch.zeros(lpnet.projection.shape[1], dtype=torch.float64)
    return per_term, torch.cat([lpnet.bias.double()[None], members[:, -1], nothing])


def _tables(encoding: Encoding, layout: _Layout, per_term: Tensor, constant: Tensor) -> Tensor:
    """Row of zeros, the network's own, and of every layer at every pair of steps, [n_rows, n_sums]."""
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
    sums = torch.cat([sums, n_bytes[..., None], torch.zeros_like(n_bytes)[..., None]], dim=2)
    parts = [sums[: int(size), layer] for layer, size in enumerate(sizes)]
    network = torch.cat([constant, torch.tensor([0.0, 1.0])])
    return torch.cat([torch.zeros(1, sums.shape[2]), network[None], *parts])
