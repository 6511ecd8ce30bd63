"""BN scale: channels whose BatchNorm scales them least go first, over the whole network. A baseline.

Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming", arXiv
1708.06519: |γ|, ranked globally. Ours: without the paper's training under an L1 penalty (`dependency-aware` has
one); of a channel with several BatchNorms, at the end of a residual stage, the mean counts.
"""

from pruning.criteria.base import Method, SearchJob, SearchResult, finite
from pruning.criteria.magnitudes import norm_scales


class BnScale(Method):
    """|γ| of the BatchNorms."""

    name = "bn-scale"
    summary = "smallest BatchNorm scales first, over all groups; no training"

    def search(self, job: SearchJob) -> SearchResult:
        """Mean |γ| of all slots; see `Method.search`."""
        return SearchResult.untrained(finite(norm_scales(job.space, job.network, self.name)))
