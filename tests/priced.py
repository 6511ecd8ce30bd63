"""Search spaces with made-up prices, for tests that need no device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latency.device import DeviceSettings, fingerprint
from latency.fitting import describe
from latency.grid import Grid
from latency.measure import Protocol
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import ProfileSet
from latency.space import SearchSpace
from pruning.prices import PricedSpace

BASE_MS = 0.2


class LinearModel(torch.nn.Module):
    """Latency as a sum over channels: `BASE_MS` and so many ms for each channel of each group."""

    def __init__(self, ms_per_channel: npt.ArrayLike) -> None:
        super().__init__()
        self.register_buffer("ms_per_channel", torch.tensor(ms_per_channel, dtype=torch.float32))

    def forward(self, widths: Tensor) -> Tensor:
        return BASE_MS + widths @ self.ms_per_channel

    def outputs(self, widths: Tensor) -> dict[str, Tensor]:
        return {"latency_ms": self(widths)}


class TorchPredictor:
    """A predictor that asks a model in torch."""

    def __init__(self, model: torch.nn.Module, manifest: Any) -> None:
        self.manifest, self._model = manifest, model

    def predict_ms(self, widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            vectors = torch.from_numpy(np.atleast_2d(np.asarray(widths, dtype=np.float32)))
            return self._model(vectors).double().numpy()


def grid_of_step(space: SearchSpace, step: int) -> Grid:
    return Grid(
        tuple(
            (0,) * group.zero_allowed + (*range(step, group.n_channels, step), group.n_channels)
            for group in space.groups
        )
    )


def made_up_device(space: SearchSpace, ms_per_channel: npt.ArrayLike, grid: Grid) -> dict[str, Any]:
    """Profile, LPNet and predictor of a device with linear prices, by the names of `PricedSpace`'s fields."""
    model = LinearModel(ms_per_channel)
    profile = _profile(space, model, grid)
    manifest = describe(model, profile, space, 0, {}, 0.01)  # type: ignore[arg-type]
    return {"profile": profile, "lpnet": model.float(), "predictor": TorchPredictor(model, manifest)}


def priced(space: SearchSpace, ms_per_channel: npt.ArrayLike, grid: Grid, **changed: Any) -> PricedSpace:
    return PricedSpace(space, **made_up_device(space, ms_per_channel, grid), **changed)


def _profile(space: SearchSpace, device_ms: Callable[[Tensor], Tensor], grid: Grid) -> ProfileSet:
    rng = np.random.default_rng(0)
    full_ms = float(device_ms(torch.from_numpy(space.full_widths).float()[None])[0])
    drawn = {tuple(int(rng.choice(allowed)) for allowed in grid.allowed) for _ in range(60)}
    rows = []
    for widths in sorted(drawn):
        if not space.is_alive(widths):
            continue
        ratio = float(device_ms(torch.tensor([widths], dtype=torch.float32))[0]) / full_ms
        measured = {"candidate_ms": ratio * full_ms, "reference_ms": full_ms, "n_pairs": 16}
        rows.append(
            ProfileRow(widths, "train", 0, "ok", ratio=ratio, ratio_stderr=0.003, converged=True, **measured)
        )
    header = ProfileHeader.of_space(space, grid, fingerprint(DeviceSettings()), Protocol())
    return ProfileSet(header, tuple(rows), fixed_reference_ms=full_ms)
