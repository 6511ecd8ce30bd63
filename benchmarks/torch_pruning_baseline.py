"""Torch-Pruning as its users would run it for a deadline: its own importance and surgery, our measurements.

Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900; the package torch-pruning. It takes a ratio
of channels, so ratios are tried and *measured* until the slowest network within the budget is found, with widths
rounded to the device's grid, without which its networks are often slower than the dense one. Its own rounding makes
none of a layer that keeps less than one step, refuses that, and leaves the layer at its full width, so that networks
become slower as the ratio rises; here such a layer keeps one step.

Its dependency graph cannot follow zeros padded to the channels (option A shortcuts of CIFAR ResNets). There the
shortcut is rewritten as the 1 × 1 convolution that computes the same; it trains along, as the shortcuts of
Torch-Pruning's own CIFAR networks do.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.correction import enough_ms, slowest_within
from pruning.data import ImageTask
from pruning.models import class_scores

N_COARSE, N_FINE = 16, 4
"""Ratios that are tried, evenly and then by bisection: rounding makes the latency no monotonic function of them."""

HIGHEST_RATIO = 0.95
GRADIENT_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Variant:
    """One of Torch-Pruning's ways to rank channels.

    Attributes:
        importance: makes its importance.
        is_global: rank the channels of all layers together, not each layer's alone.
        is_isomorphic: together only where layers are of one kind (Fang et al., arXiv 2407.04616).
        needs_gradients: whether it reads the loss's gradient.
    """

    importance: Callable[[], torch_pruning.importance.Importance]
    is_global: bool = False
    is_isomorphic: bool = False
    needs_gradients: bool = False


VARIANTS: Mapping[str, Variant] = {
    "torch-pruning-bn": Variant(torch_pruning.importance.BNScaleImportance),
    "torch-pruning-bn-global": Variant(torch_pruning.importance.BNScaleImportance, is_global=True),
    "torch-pruning-l2": Variant(torch_pruning.importance.GroupMagnitudeImportance),
    "torch-pruning-l2-global": Variant(torch_pruning.importance.GroupMagnitudeImportance, is_global=True),
    "torch-pruning-l2-isomorphic": Variant(
        torch_pruning.importance.GroupMagnitudeImportance, is_global=True, is_isomorphic=True
    ),
    "torch-pruning-taylor": Variant(torch_pruning.importance.GroupTaylorImportance, needs_gradients=True),
    "torch-pruning-taylor-global": Variant(
        torch_pruning.importance.GroupTaylorImportance, is_global=True, needs_gradients=True
    ),
}


@dataclass(frozen=True, slots=True)
class Tried:
    """A ratio that was tried.

    Attributes:
        ratio: share of channels asked to be removed.
        measured_ms: latency of the network it gave.
        high_ms: upper end of its 95 % interval.
    """

    ratio: float
    measured_ms: float
    high_ms: float


class _SteppedPruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]
    """Torch-Pruning, except that no layer is rounded to nothing."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        kept = current_channels - n_pruned
        return current_channels - max(kept - kept % round_to, min(round_to, current_channels))


class TorchPruning:
    """Networks that Torch-Pruning makes of a trained one.

    Args:
        network: the trained network; left as it is.
        variant: how to rank channels.
        task: the data, for variants that need gradients.
        round_to: the device's channel step.
    """

    def __init__(self, network: nn.Module, variant: Variant, task: ImageTask, round_to: int) -> None:
        self._network = with_conv_shortcuts(network)
        self._variant, self._round_to = variant, round_to
        self._images = next(iter(task.calibration_batches(2))).images
        self._n_classes = task.n_classes
        if variant.needs_gradients:
            _accumulate_gradients_(self._network, task)

    def at(self, ratio: float) -> nn.Module:
        """The network without this share of its channels, in evaluation mode."""
        pruned = copy.deepcopy(self._network)
        for copied, own in zip(pruned.parameters(), self._network.parameters(), strict=True):
            copied.grad = None if own.grad is None else own.grad.clone()
        outputs = [
            m for m in pruned.modules() if isinstance(m, nn.Linear) and m.out_features == self._n_classes
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, about parameters that it does not prune
            pruner = _SteppedPruner(
                pruned,
                self._images,
                importance=self._variant.importance(),
                global_pruning=self._variant.is_global,
                isomorphic=self._variant.is_isomorphic,
                pruning_ratio=ratio,
                ignored_layers=outputs,
                round_to=self._round_to,
            )
            pruner.step()
        for parameter in pruned.parameters():
            parameter.grad = None
        return pruned.eval()


def widths_of(network: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Shapes of all parameters: networks of equal ones take equally long."""
    return tuple(tuple(parameter.shape) for parameter in network.parameters())


def try_ratios(
    make: Callable[[float], nn.Module],
    measure: Callable[[nn.Module], tuple[float, float]],
    budget_ms: float,
    aim_ms: float,
    tried: Sequence[Tried] = (),
) -> tuple[Tried, ...]:
    """Ratios with their measured latencies: evenly spread, then ever closer to the slowest within the budget.

    Args:
        make: the network at a ratio.
        measure: its latency in ms, and the upper end of the 95 % interval.
        budget_ms: latency to meet.
        aim_ms: latency to aim at, at most the budget.
        tried: what is known from before, for another aim; part of the result.
    """
    known: dict[tuple[tuple[int, ...], ...], tuple[float, float]] = {}
    found = list(tried)

    def attempt(ratio: float) -> None:
        network = make(ratio)
        widths = widths_of(network)
        if widths not in known:
            known[widths] = measure(network)
        found.append(Tried(ratio, *known[widths]))

    if not found:
        for index in range(N_COARSE):
            attempt(HIGHEST_RATIO * (index + 1) / N_COARSE)
    for _ in range(N_FINE):
        best = slowest_within(found, budget_ms, aim_ms)
        if best is None or best.measured_ms >= enough_ms(budget_ms, aim_ms):
            break
        slower = [t.ratio for t in found if t.ratio < best.ratio and t.measured_ms > aim_ms]
        attempt((best.ratio + max(slower, default=0.0)) / 2)
    return tuple(found)


def with_conv_shortcuts(network: nn.Module) -> nn.Module:
    """A copy whose zero-padded shortcuts are 1 × 1 convolutions that compute the same."""
    rewritten = copy.deepcopy(network)
    for block in rewritten.modules():
        shortcut = getattr(block, "shortcut", None)
        if type(shortcut).__name__ != "ZeroPadShortcut":
            continue
        n_in, n_zeros = block.conv1.in_channels, shortcut.n_zeros
        conv = nn.Conv2d(n_in, n_in + 2 * n_zeros, 1, stride=2, bias=False)
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[range(n_zeros, n_zeros + n_in), range(n_in)] = 1.0
        block.shortcut = conv
    return rewritten.eval()


def _accumulate_gradients_(network: nn.Module, task: ImageTask) -> None:
    for images, labels in task.calibration_batches(GRADIENT_IMAGES):
        loss: Tensor = F.cross_entropy(class_scores(network(images)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
