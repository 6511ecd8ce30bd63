"""A small network with a profile and an LPNet, as their files."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from latency.device import DeviceSettings, fingerprint
from latency.encoding import Encoding
from latency.grid import ChannelStep, Grid
from latency.lpnet import LPNet
from latency.lpnet_export import save_lpnet
from latency.lpnet_files import LPNetManifest
from latency.measure import Protocol
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.space import SearchSpace

STEP = ChannelStep(dense=2, depthwise=2)


@dataclass(frozen=True)
class KnownNetwork:
    """A network's files.

    Attributes:
        space: its search space.
        base: content of its `base.onnx`.
        lpnet: its LPNet.
        lpnet_folder: the LPNet's files.
        profile: content of its `profile.jsonl`, two passes over 21 training and 7 held-out candidates.
    """

    space: SearchSpace
    base: bytes
    lpnet: LPNet
    lpnet_folder: Path
    profile: bytes


def random_lpnet(space: SearchSpace, grid: Grid) -> LPNet:
    """An LPNet with random coefficients in every part."""
    torch.manual_seed(0)
    encoding = Encoding.from_space(space.layers, space.groups, grid)
    model = LPNet(encoding, n_directions=3, n_hidden=8, n_members=4)
    model.weight.uniform_(0.05, 1.0)
    model.bias.fill_(0.5)
    model.members.copy_(torch.cat([model.weight, model.bias[None]]) * (1 + 0.1 * torch.rand(4, 1)))
    model.amplitude.fill_(0.2)
    model.projection.normal_()
    nn.init.normal_(model.mlp[2].weight)
    return model.requires_grad_(False)


def _manifest(space: SearchSpace, grid: Grid, model: LPNet, reference_ms: float) -> LPNetManifest:
    return LPNetManifest(
        kind="LPNet",
        structure_hash=space.structure_hash,
        group_names=tuple(group.name for group in space.groups),
        grid=grid,
        may_vanish=tuple(group.zero_allowed for group in space.groups),
        layer_names=tuple(layer.name for layer in space.layers),
        fingerprint=fingerprint(DeviceSettings()),
        reference_ms=reference_ms,
        profile_digest="0123456789abcdef",
        n_train=60,
        seed=0,
        cv_rmse=0.01,
        model_error=0.01,
        largest_spread=0.2,
        metrics={},
        noise_floor_mape=None,
        versions={},
    )


def _profile(space: SearchSpace, grid: Grid, model: LPNet, reference_ms: float) -> bytes:
    header = ProfileHeader.of_space(space, grid, fingerprint(DeviceSettings()), Protocol())
    rows = []
    for index, (pass_index, *widths) in enumerate(itertools.product((0, 1), *grid.allowed)):
        ratio = float(model(torch.tensor([widths]).float())[0]) / reference_ms
        ratio *= 1.0 + 0.002 * (-1) ** index
        rows.append(
            ProfileRow(
                widths=tuple(widths),
                split="train" if index % 4 else "held_out",
                pass_index=pass_index,
                status="ok",
                ratio=ratio,
                ratio_stderr=0.005,
                candidate_ms=ratio * reference_ms,
                reference_ms=reference_ms,
                n_pairs=16,
                converged=True,
                measured_at=1.7e9 + index,
                ratios=(ratio,) * 3,
            )
        )
    return "".join(json.dumps(line.to_json()) + "\n" for line in (header, *rows)).encode()


def make_known_network(space: SearchSpace, folder: Path) -> KnownNetwork:
    """The network's files, the LPNet's in `folder`."""
    grid = Grid.from_step(space.structure, STEP)
    model = random_lpnet(space, grid)
    reference_ms = float(model(torch.tensor([space.full_widths.tolist()]).float())[0])
    save_lpnet(model, folder, _manifest(space, grid, model, reference_ms))
    profile = _profile(space, grid, model, reference_ms)
    return KnownNetwork(space, space.model.SerializeToString(), model, folder, profile)
