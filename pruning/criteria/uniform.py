"""Uniform: the same share of every group's channels, those with the largest filters. A baseline.

Width only: no branch is removed. A channel's score is its rank within the group by L1 norm, as a share of the
group, so that one threshold keeps one share everywhere, as nearly as the grid allows.
"""

import torch
from torch import Tensor

from pruning.criteria.base import Method, SearchJob, SearchResult, finite
from pruning.criteria.magnitudes import filter_magnitudes


class Uniform(Method):
    """The same share everywhere."""

    name = "uniform"
    summary = "the same share of every group, largest filters kept, no branch removed; no training"
    uses_depth = False

    def search(self, job: SearchJob) -> SearchResult:
        """Ranks of all slots within their groups; see `Method.search`."""
        norms = finite(filter_magnitudes(job.space, job.parameters()))
        parts = torch.split(norms, job.space.full_widths.tolist())
        return SearchResult.untrained(torch.cat([_rank_shares(part) for part in parts]))


def _rank_shares(values: Tensor) -> Tensor:
    """Rank of each value from 0 (smallest) to 1, both ends left out by half a rank, [n]."""
    ranks = torch.empty(len(values), dtype=torch.float64)
    ranks[values.argsort(stable=True)] = torch.arange(len(values), dtype=torch.float64)
    return (ranks + 0.5) / len(values)
