"""Group widths → the features that a latency is a sum of: the one encoding for fitting, pruning and serving.

Every feature is divided by its value at full width, so a layer's constants (kernel area, positions) cancel.
With `read` the input channels that each filter reads, a layer offers:

    presence      1 where the layer exists
    input, output c_in, c_out                   activations read and written
    macs          read · c_out                  multiply-accumulates, and in step with them bytes of weights
    blocks B      read · ⌈c_out / B⌉            kernels that compute B output channels at a time
    padded B      ⌈c_in / B⌉ · ⌈c_out / B⌉      layouts that store channels in blocks of B

and the whole network, since weights that fit a cache stay there from one inference to the next:

    beyond K      max(0, bytes of weights - K)

On the grid of allowed widths every feature is exact. Between grid points ⌈·⌉ is replaced by the straight line
between its neighbours, so that a gradient shows the slope of the staircase that a plan can really walk; at a
grid point it is the slope downwards, what removing channels saves. Presence falls from 1 at a group's
smallest allowed width above 0 to 0 at width 0, and with it every term of the layers that disappear there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latency.grid import Grid
from latency.structure import ChannelGroup, LayerView, LinearWidth

BLOCKS = (8, 16, 32, 64, 128)
"""Output channels that a kernel may take at once: 8 floats (AVX2) or 16 (AVX-512, NEON), up to four registers
of them at a time, and the tiles of GPUs. Which of them a device uses is left to the fit."""

PADDED = (8, 16)
"""Channels per block of ONNX Runtime's blocked layout (NCHWc) on AVX2 and on AVX-512."""

CACHES_KIB = tuple(size for power in range(7, 17) for size in (2**power, 3 * 2 ** (power - 1)))
"""Sizes that the part of a cache left for one network's weights may have: 128 KiB (L2 of small cores) to 96 MiB
(L3 of servers). Which of them a device has is left to the fit."""

TERMS = (
    "macs",
    "presence",
    "output",
    "input",
    *(f"blocks {size}" for size in BLOCKS),
    *(f"padded {size}" for size in PADDED),
)
"""Names of a layer's terms; of terms that are equal on the whole grid the first is kept."""

_BYTES_PER_WEIGHT = 4

FloatArray = npt.NDArray[np.float64]


class Encoding(nn.Module):
    """Features of a network at given group widths, differentiable and exportable to ONNX.

    Every constant is a buffer, so that the state dict alone rebuilds the encoding.

    Attributes:
        n_groups: number of channel groups, the length of a width vector.
        n_layers: number of layers described.
        n_features: number of features.
        feature_index: layer · len(TERMS) + term of each feature, those of the network last, [n_features].
        full_values: value of each feature at full width before it was scaled to 1, [n_features].
    """

    feature_index: Tensor
    full_values: Tensor
    smallest: Tensor
    implied: Tensor
    depends: Tensor
    in_terms: Tensor
    in_constant: Tensor
    in_step: Tensor
    in_full: Tensor
    out_terms: Tensor
    out_constant: Tensor
    out_step: Tensor
    out_full: Tensor
    in_is_out: Tensor
    per_filter: Tensor
    dense: Tensor
    blocks: Tensor
    padded: Tensor
    weight_bytes: Tensor
    caches: Tensor

    def __init__(self, constants: Mapping[str, Tensor]) -> None:
        """Encoding with the given constants, the state dict of another one."""
        super().__init__()
        for name, value in constants.items():
            self.register_buffer(name, value.clone())

    @classmethod
    def from_space(
        cls, layers: Sequence[LayerView], groups: Sequence[ChannelGroup], grid: Grid
    ) -> "Encoding":
        """The encoding of a search space.

        Args:
            layers: every convolution and linear layer of the network.
            groups: every channel group, in the order of the width vector.
            grid: allowed widths per group.
        """
        constants = {
            **_group_constants(groups, grid),
            **_layer_constants(layers, groups, grid),
            **_network_constants(layers, [group.n_channels for group in groups]),
        }
        n_terms = len(layers) * len(TERMS) + len(constants["caches"])
        constants["full_values"] = np.ones(n_terms)
        tensors = {name: torch.from_numpy(value) for name, value in constants.items()}
        complete = cls({**tensors, "feature_index": torch.arange(n_terms)})
        full = torch.tensor([[group.n_channels for group in groups]], dtype=torch.float64)
        full_values = complete(full)[0]
        complete.full_values = full_values.where(full_values > 0, 1.0)
        kept = _informative(complete(torch.from_numpy(_probe_widths(grid))).numpy())
        complete.feature_index, complete.full_values = kept, complete.full_values[kept]
        return complete.float()

    @property
    def n_groups(self) -> int:
        """Length of a width vector."""
        return int(self.smallest.shape[0])

    @property
    def n_layers(self) -> int:
        """Number of layers described."""
        return int(self.dense.shape[0])

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.feature_index.shape[0])

    @property
    def feature_layers(self) -> Tensor:
        """Layer index of each feature, n_layers for the whole network, [n_features]."""
        return (self.feature_index // len(TERMS)).clamp(max=self.n_layers)

    def feature_terms(self) -> list[tuple[int, str]]:
        """Layer index (n_layers for the whole network) and term of each feature, [n_features]."""
        names = [(layer, term) for layer in range(self.n_layers) for term in TERMS]
        names += [(self.n_layers, f"beyond {int(size) // 1024} KiB") for size in self.caches.tolist()]
        return [names[index] for index in self.feature_index.tolist()]

    def forward(self, widths: Tensor) -> Tensor:
        """Features at the given group widths.

        Args:
            widths: channels kept per group, [n, n_groups], from 0 to the full width; fractions are allowed.

        Returns:
            Features, [n, n_features], each 1 at full width and 0 where its layer is removed.
        """
        present = (widths / self.smallest).clamp(0.0, 1.0)
        lost_with_others = (1.0 - present) @ self.implied
        widths = widths * (1.0 - lost_with_others).clamp(min=0.0)
        present = (present - lost_with_others).clamp(min=0.0)
        branch = (1.0 - (1.0 - present) @ self.depends).clamp(min=0.0)
        terms = self.layer_terms(
            self._side("in", widths, present), self._side("out", widths, present), branch
        )
        n_bytes = terms[:, :, 0] @ self.weight_bytes
        beyond = (n_bytes[:, None] - self.caches).clamp(min=0.0)
        values = torch.cat([terms.flatten(start_dim=1), beyond], dim=1)
        return values.index_select(1, self.feature_index) / self.full_values

    def layer_terms(self, inputs: "Side", outputs: "Side", branch: Tensor) -> Tensor:
        """Unscaled terms of every layer, [n, n_layers, len(TERMS)].

        Args:
            inputs: free channels that the layers read.
            outputs: free channels that they write.
            branch: presence of what the layers depend on, [n, n_layers].
        """
        c_in, in_blocks = self._channels("in", inputs.free, self.padded)
        c_out, out_blocks = self._channels("out", outputs.free, self.blocks)
        # Channels that already fall to 0 with the layer need no second factor that does.
        in_gate = torch.minimum(torch.maximum(inputs.presence, self.in_is_out), branch)
        out_gate = torch.minimum(torch.maximum(outputs.presence, self.in_is_out), branch)
        read = self.dense * c_in * branch + (1.0 - self.dense) * self.per_filter * in_gate
        padded_read = self.dense[:, None] * in_blocks * branch[..., None]
        presence = torch.minimum(in_gate, outputs.presence)
        plain = torch.stack([read * c_out, presence, c_out * in_gate, c_in * out_gate], dim=2)
        n_padded = self.padded.shape[0]
        return torch.cat(
            [plain, read[..., None] * out_blocks, padded_read * out_blocks[..., :n_padded]], dim=2
        )

    def _side(self, side: str, widths: Tensor, present: Tensor) -> "Side":
        terms, constant = self.get_buffer(f"{side}_terms"), self.get_buffer(f"{side}_constant")
        presence = (present @ terms.sign() + constant.sign()).clamp(max=1.0)
        return Side(widths @ terms, presence)

    def _channels(self, side: str, free: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Channels [n, n_layers] and blocks of each size [n, n_layers, n_sizes]."""
        constant, step, full = (self.get_buffer(f"{side}_{name}") for name in ("constant", "step", "full"))
        lower = step * ((free / step).ceil() - 1.0).clamp(min=0.0).minimum((full / step).ceil() - 1.0)
        upper = (lower + step).minimum(full)
        share = ((free - lower) / (upper - lower))[..., None]
        blocks_lower = ((constant + lower)[..., None] / sizes).ceil()
        blocks_upper = ((constant + upper)[..., None] / sizes).ceil()
        return constant + free, blocks_lower + share * (blocks_upper - blocks_lower)


class Side(NamedTuple):
    """Channels on one side of every layer that are free to be pruned.

    Attributes:
        free: how many are kept, [n, n_layers].
        presence: whether any channel is there, the layer's constant ones counted, [n, n_layers], in [0, 1].
    """

    free: Tensor
    presence: Tensor


def _group_constants(groups: Sequence[ChannelGroup], grid: Grid) -> dict[str, FloatArray]:
    smallest = [min(width for width in allowed if width > 0) for allowed in grid.allowed]
    implied = np.zeros((len(groups), len(groups)))
    for group in groups:
        implied[group.index, list(group.implied_zero)] = 1.0
    for _ in groups:  # what disappears with what disappears
        implied = np.minimum(implied + implied @ implied, 1.0)
    np.fill_diagonal(implied, 0.0)
    return {"smallest": np.array(smallest, dtype=np.float64), "implied": implied}


def _layer_constants(
    layers: Sequence[LayerView], groups: Sequence[ChannelGroup], grid: Grid
) -> dict[str, FloatArray]:
    depends = np.zeros((len(groups), len(layers)))
    for column, layer in enumerate(layers):
        depends[list(layer.depends_on), column] = 1.0
    is_dense = [layer.kind in ("dense", "linear") for layer in layers]
    per_filter = [layer.channels_per_conv_group for layer in layers]
    in_is_out = [
        bool(_groups_of(layer.in_channels))
        and _groups_of(layer.in_channels) == _groups_of(layer.out_channels)
        for layer in layers
    ]
    return {
        "depends": depends,
        "dense": np.array(is_dense, dtype=np.float64),
        "per_filter": np.array(per_filter, dtype=np.float64),
        "in_is_out": np.array(in_is_out, dtype=np.float64),
        "blocks": np.array(BLOCKS, dtype=np.float64),
        "padded": np.array(PADDED, dtype=np.float64),
        **_side_constants("in", [layer.in_channels for layer in layers], grid),
        **_side_constants("out", [layer.out_channels for layer in layers], grid),
    }


def _network_constants(layers: Sequence[LayerView], full_widths: Sequence[int]) -> dict[str, FloatArray]:
    # Where the image is smaller than the kernel some weights meet nothing but padding and are never read.
    taps = [min(layer.kernel_area, layer.in_positions * layer.out_positions) for layer in layers]
    bytes_per_term = [_BYTES_PER_WEIGHT * n_taps for n_taps in taps]
    macs_per_term = [layer.kernel_area * layer.out_positions for layer in layers]
    full_bytes = sum(
        n_bytes * layer.macs(full_widths) // n_macs
        for layer, n_bytes, n_macs in zip(layers, bytes_per_term, macs_per_term, strict=True)
    )
    return {
        "weight_bytes": np.array(bytes_per_term, dtype=np.float64),
        # A cache that only the widest networks exceed would be fitted to a handful of samples.
        "caches": np.array([size * 1024.0 for size in CACHES_KIB if size * 1024 <= 0.75 * full_bytes]),
    }


def _groups_of(width: LinearWidth) -> list[int]:
    return [group for group, _ in width.terms]


def _side_constants(side: str, channels: Sequence[LinearWidth], grid: Grid) -> dict[str, FloatArray]:
    terms = np.zeros((len(grid.allowed), len(channels)))
    for column, width in enumerate(channels):
        for group, count in width.terms:
            terms[group, column] = count
    full = terms.T @ np.array([allowed[-1] for allowed in grid.allowed], dtype=np.float64)
    return {
        f"{side}_terms": terms,
        f"{side}_constant": np.array([width.constant for width in channels], dtype=np.float64),
        f"{side}_step": np.array([_step(width, grid) for width in channels], dtype=np.float64),
        # Where nothing is free any positive value will do: only the lower end of the segment is used.
        f"{side}_full": np.where(full > 0, full, 1.0),
    }


def _step(width: LinearWidth, grid: Grid) -> int:
    """Distance in channels between the knots of a layer's staircase; every grid point is a knot."""
    if len(width.terms) == 1:
        # The full width is a knot of its own, so an odd one does not make the others finer than the grid.
        group, count = width.terms[0]
        return count * (math.gcd(*grid.allowed[group][:-1]) or grid.allowed[group][-1])
    return math.gcd(*(count * size for group, count in width.terms for size in grid.allowed[group])) or 1


def _probe_widths(grid: Grid) -> FloatArray:
    """Grid points that tell apart any two terms that differ on the grid, [n, n_groups].

    Both ends, where presence and odd full widths show, are drawn more often than the rest.
    """
    rng = np.random.default_rng(0)
    n = 512
    columns = [
        np.where(rng.random(n) < 0.25, rng.choice((allowed[0], allowed[-1]), n), rng.choice(allowed, n))
        for allowed in grid.allowed
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _informative(values: FloatArray) -> Tensor:
    """Columns that vary and repeat no earlier column of their layer, [n_features], ascending."""
    kept: list[int] = []
    for first in range(0, values.shape[1], len(TERMS)):
        seen = [np.zeros(len(values)), np.ones(len(values))]
        for column in range(first, min(first + len(TERMS), values.shape[1])):
            if not any(np.allclose(values[:, column], other, rtol=0, atol=1e-9) for other in seen):
                seen.append(values[:, column])
                kept.append(column)
    return torch.tensor(kept, dtype=torch.int64)
