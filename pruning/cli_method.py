"""Options that say by what method channels are judged, and where else a budget is to be met."""

from typing import TYPE_CHECKING

import click

from pruning.cli_options import joined
from pruning.errors import SettingError

if TYPE_CHECKING:  # it imports torch
    from pruning.prune_stage import PruneOptions

METHOD_NAMES = (
    *("wgates", "scaling-factors", "prunenet", "dependency-aware"),
    *("uniform", "l1", "bn-scale", "taylor-knapsack"),
)
"""Names of `pruning.criteria.METHODS`, which needs torch."""

method_options = joined(
    click.option(
        "--method",
        default="wgates",
        show_default=True,
        help=f"By what channels are judged: {', '.join(METHOD_NAMES)}.",
    ),
    click.option(
        "--objective",
        default="latency",
        show_default=True,
        help="What the search is charged for: latency, macs or channels; the budget is in ms either way.",
    ),
    click.option(
        "--depth/--no-depth",
        default=True,
        show_default=True,
        help="Whether whole branches may be removed, where the method can.",
    ),
    click.option(
        "--also",
        multiple=True,
        metavar="DIR:MS",
        help="Meet so many ms on the device or setting of run directory DIR too, profiled and fitted there; or of a "
        "service's LPNet, http://…/v1/lpnets/ID:MS.",
    ),
    click.option(
        "--latency-term",
        default="hold",
        show_default=True,
        help="hold opens the best gates within a target falling to the budget, log is the paper's α·log(1 + latency).",
    ),
    click.option(
        "--search-epochs",
        type=int,
        default=4,
        show_default=True,
        help="Epochs of the search; `trimms run` gives those that the method does not use to the fine-tuning.",
    ),
    click.option(
        "--search-lr",
        type=float,
        default=0.02,
        show_default=True,
        help="Highest learning rate of the search.",
    ),
)

METHOD = ("method", "objective", "depth", "also")
"""Names of the options of `method_options` that say by what channels are judged."""


def prune_options(*, method: str, objective: str, depth: bool, also: tuple[str, ...]) -> "PruneOptions":
    """What `method_options` say, but for the epochs.

    Raises:
        SettingError: a name is not known, or --also is not a place and a number.
    """
    from pruning.prune_stage import PruneOptions

    return PruneOptions(method, objective, depth, tuple(_device_budget(text) for text in also))


def _device_budget(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition(":")
    try:
        budget_ms = float(number)
    except ValueError:
        name = ""
    if not name:
        raise SettingError(
            f"--also '{text}' is not a run directory, or an LPNet's address, and a number of ms, such as "
            "runs/threads2:0.8."
        )
    return name, budget_ms
