"""L1: channels whose filters are small go first, over the whole network. A baseline.

Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", arXiv 1608.08710: filters are
ranked by their L1 norm. Ours: the norm is taken per weight, averaged over the layers that make a channel, and
divided by its mean in the group, so that layers of different scale can be ranked together.
"""

import torch

from pruning.criteria.base import Method, SearchJob, SearchResult, finite
from pruning.criteria.magnitudes import filter_magnitudes


class L1(Method):
    """Magnitude of the filters, relative to their group's."""

    name = "l1"
    summary = "smallest filters first, relative to their group; no training"

    def search(self, job: SearchJob) -> SearchResult:
        """Relative L1 norms of all slots; see `Method.search`."""
        norms = filter_magnitudes(job.space, job.parameters())
        parts = torch.split(norms, job.space.full_widths.tolist())
        return SearchResult.untrained(finite(torch.cat([part / part.mean() for part in parts])))
