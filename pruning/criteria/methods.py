"""The table of methods."""

from pruning.criteria.base import Method
from pruning.criteria.bn_scale import BnScale
from pruning.criteria.dependency_aware import DependencyAware
from pruning.criteria.l1 import L1
from pruning.criteria.prunenet import PruneNet
from pruning.criteria.scaling_factors import ScalingFactorsMethod
from pruning.criteria.taylor_knapsack import TaylorKnapsack
from pruning.criteria.uniform import Uniform
from pruning.criteria.wgates import WGatesMethod
from pruning.errors import SettingError

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(WGatesMethod(), ScalingFactorsMethod(), PruneNet(), DependencyAware()),
        *(Uniform(), L1(), BnScale(), TaylorKnapsack()),
    )
}
"""Every method, by name."""


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        SettingError: there is none.
    """
    if name not in METHODS:
        raise SettingError(f"--method '{name}' is not known; known are: {', '.join(METHODS)}.")
    return METHODS[name]
