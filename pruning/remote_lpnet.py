"""Where the search finds its LPNet: a folder, or a service, whose predictions it differentiates through HTTP."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latency.errors import LatencyError
from latency.lpnet import load_model
from latency.lpnet_files import LPNetManifest
from latency.predictor import FloatArray, Predictor
from latency.profiles import ProfileSet
from latency.space import SearchSpace


class LatencyPredictor(Protocol):
    """What the search asks for numbers: `latency.predictor.Predictor`, or its counterpart on a service."""

    manifest: LPNetManifest

    def predict_ms(self, widths: npt.ArrayLike) -> FloatArray:
        """Latency in ms, [n], of width vectors, [n, n_groups]."""

    def gradient(self, widths: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Latency in ms, [n], and gradient in ms per channel, [n, n_groups]."""


def find_lpnet(where: str, space: SearchSpace, profile: ProfileSet) -> LatencyPredictor:
    """The LPNet of a network.

    Args:
        where: folder of its files, or URL of a service, whose newest LPNet of the network on the profiled device it is.
        space: the network.
        profile: what was measured on the device.

    Raises:
        LatencyError: there is none, or it belongs to another network.
    """
    if "://" in where:
        from latency.client import ServiceClient, owning

        service = ServiceClient(where)
        try:
            digest = profile.header.fingerprint.digest
            return owning(service.predictor_for(space.structure_hash, digest), service)
        except LatencyError:
            service.close()
            raise
    return Predictor.load(Path(where), structure_hash=space.structure_hash)


def differentiable(where: str, predictor: LatencyPredictor) -> nn.Module:
    """The LPNet that `find_lpnet` found, for gradients."""
    return load_model(Path(where)) if isinstance(predictor, Predictor) else RemoteLPNet(predictor)


class RemoteLPNet(nn.Module):
    """Latency of width vectors as a service predicts it, with the interface of `latency.lpnet.LatencyModel`.

    Latency and gradient come with one request, in forward; the source keeps what it was asked before.

    Attributes:
        n_groups: length of a width vector.
    """

    def __init__(self, source: LatencyPredictor) -> None:
        super().__init__()
        self._source = source
        self.n_groups = len(source.manifest.group_names)

    def forward(self, widths: Tensor) -> Tensor:
        """Predicted latency in ms, [n], of widths [n, n_groups], differentiable once."""
        latency_ms: Tensor = _Latency.apply(widths, self._source)
        return latency_ms


class _Latency(torch.autograd.Function):
    """Σ gᵢ · ∂latency_msᵢ/∂widthsᵢ backwards, for gradients gᵢ of the latencies."""

    @staticmethod
    def forward(ctx: Any, widths: Tensor, source: LatencyPredictor) -> Tensor:
        latency_ms, gradient = source.gradient(widths.detach().cpu().numpy())
        ctx.save_for_backward(_like(gradient, widths))
        return _like(latency_ms, widths)

    @staticmethod
    def backward(ctx: Any, *latency_gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return latency_gradients[0][:, None] * gradient, None


def _like(values: npt.NDArray[np.float64], tensor: Tensor) -> Tensor:
    return torch.from_numpy(values).to(tensor)
