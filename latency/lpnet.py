"""LPNet: group widths → latency in milliseconds, differentiable, so that a pruner can descend it.

After the latency network of "Weight-Dependent Gates for Network Pruning" (Li et al., arXiv 2007.02066): a small
MLP on the widths of the layers. Departures:

- The widths first become the features of `latency.encoding`. Their non-negative weighted sum, the *physics*,
  is already a good prediction; the MLP learns the bounded factor that is left over:

      physics = b + Σ_j w_j f_j,                                         w_j, b, a ≥ 0
      latency_ms = physics · exp(a · tanh(MLP(log physics, P f)))

  P f are a few directions in which the features of the training set vary most: what a sum leaves over
  (caches, layout) hangs on sizes of the whole network, and some hundred samples teach no more.
- Beside the latency it says how sure it is: fits of the sum that leave out one fold of the samples each, the
  *members*, differ where few samples speak (the jackknife's standard error with groups left out).
- The MLP's last layer starts at 0, so that training starts at the physics; a = 0 switches it off.

`MlpOnWidths` is the paper's plain MLP behind the same interface, to compare with.
"""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latency.encoding import Encoding
from latency.errors import ProfileError
from latency.grid_tables import LEAST_MS
from latency.lpnet_files import WEIGHTS_FILE, read_manifest


class LatencyModel(nn.Module):
    """A differentiable prediction of latency from group widths, kept in a folder.

    Its state dict alone rebuilds it: subclasses say how in `from_state`.
    """

    kinds: ClassVar[dict[str, type["LatencyModel"]]] = {}
    """Subclasses by the name that manifests call them."""

    def __init_subclass__(cls) -> None:
        """Make the subclass known to `load`."""
        super().__init_subclass__()
        LatencyModel.kinds[cls.__name__] = cls

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The model with this state dict."""

    @property
    @abstractmethod
    def n_groups(self) -> int:
        """Length of a width vector."""

    @abstractmethod
    def forward(self, widths: Tensor) -> Tensor:
        """Predicted latency.

        Args:
            widths: channels kept per group, [n, n_groups], from 0 to the full width; fractions are allowed.

        Returns:
            Latency in ms, [n], differentiable in `widths`.
        """

    def outputs(self, widths: Tensor) -> dict[str, Tensor]:
        """Everything that the ONNX file gives, by name: the latency, and what else the model knows."""
        return {"latency_ms": self(widths)}


class LPNet(LatencyModel):
    """Sum of the encoding's features, corrected by a small MLP.

    Attributes:
        encoding: widths → features.
        weight: ms of each feature at full width, [n_features], non-negative.
        bias: ms of everything that does not change with the widths, [].
        members: weights and, last, bias of the sum without one fold each, [n_members, n_features + 1].
        amplitude: largest absolute logarithm of the MLP's factor, [].
        projection: features → the directions that the MLP sees, [n_features, n_directions].
        mean: mean of each of the MLP's inputs over the training set, [1 + n_directions].
        scale: its standard deviation, 1 where it does not vary, [1 + n_directions].
        mlp: standardised inputs → one value, before tanh.
    """

    weight: Tensor
    bias: Tensor
    members: Tensor
    amplitude: Tensor
    projection: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, encoding: Encoding, n_directions: int, n_hidden: int, n_members: int) -> None:
        """An LPNet that predicts 0 ms: its weights are the fit's to set.

        Args:
            encoding: widths → features.
            n_directions: directions among the features that the MLP sees.
            n_hidden: width of the MLP's hidden layer.
            n_members: fits that the spread is taken from.
        """
        super().__init__()
        self.encoding = encoding
        self.register_buffer("weight", torch.zeros(encoding.n_features))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("members", torch.zeros(n_members, encoding.n_features + 1))
        self.register_buffer("amplitude", torch.zeros(()))
        self.register_buffer("projection", torch.zeros(encoding.n_features, n_directions))
        self.register_buffer("mean", torch.zeros(1 + n_directions))
        self.register_buffer("scale", torch.ones(1 + n_directions))
        self.mlp = small_mlp(1 + n_directions, n_hidden)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The LPNet with this state dict."""
        prefix = "encoding."
        constants = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        n_hidden, n_members = state["mlp.0.weight"].shape[0], state["members"].shape[0]
        model = cls(Encoding(constants), state["projection"].shape[1], n_hidden, n_members)
        model.load_state_dict(state)
        return model

    @property
    def n_groups(self) -> int:
        """Length of a width vector."""
        return self.encoding.n_groups

    def forward(self, widths: Tensor) -> Tensor:
        """Predicted latency in ms, [n], of widths [n, n_groups]; see `LatencyModel.forward`."""
        return self.from_features(self.encoding(widths))

    def from_features(self, features: Tensor) -> Tensor:
        """Predicted latency in ms, [n], of the encoding's features, [n, n_features]."""
        physics_ms = self.physics_ms(features)
        return physics_ms * torch.exp(self.log_factor(features @ self.projection, physics_ms))

    def physics_ms(self, features: Tensor) -> Tensor:
        """Weighted sum of the features in ms, [n]."""
        total: Tensor = features @ self.weight + self.bias
        return total

    def log_factor(self, directions: Tensor, physics_ms: Tensor) -> Tensor:
        """Logarithm of the MLP's factor, [n], within ± amplitude; of directions [n, n_directions]."""
        return self.amplitude * torch.tanh(self.mlp(self.mlp_inputs(directions, physics_ms)).squeeze(1))

    def mlp_inputs(self, directions: Tensor, physics_ms: Tensor) -> Tensor:
        """What the MLP sees: log physics and directions of the features, standardised, [n, 1 + n_directions]."""
        log_physics = physics_ms.clamp(min=LEAST_MS).log()[:, None]
        return (torch.cat([log_physics, directions], dim=1) - self.mean) / self.scale

    def spread(self, widths: Tensor) -> Tensor:
        """Standard error of the physics relative to it, [n], from the differences of its members."""
        features: Tensor = self.encoding(widths)
        each_ms = features @ self.members[:, :-1].T + self.members[:, -1]
        return self.relative_spread(each_ms, self.physics_ms(features))

    def relative_spread(self, each_ms: Tensor, physics_ms: Tensor) -> Tensor:
        """Standard error relative to the physics, [n], of what the members say, [n, n_members]."""
        n_members = self.members.shape[0]
        variance = (n_members - 1) / n_members * (each_ms - each_ms.mean(1, keepdim=True)).square().sum(1)
        return variance.sqrt() / physics_ms.clamp(min=LEAST_MS)

    def outputs(self, widths: Tensor) -> dict[str, Tensor]:
        """Prediction, spread and each layer's share; see `LatencyModel.outputs`."""
        return {
            "latency_ms": self(widths),
            "spread": self.spread(widths),
            "layer_ms": self.contributions_ms(widths),
        }

    def contributions_ms(self, widths: Tensor) -> Tensor:
        """Each layer's share of the predicted latency.

        The MLP's factor applies to all layers alike; what belongs to no single layer comes last.

        Args:
            widths: channels kept per group, [n, n_groups].

        Returns:
            Latency in ms, [n, n_layers + 1], that sums to the prediction over the last axis.
        """
        features: Tensor = self.encoding(widths)
        n_shares = self.encoding.n_layers + 1
        belongs = nn.functional.one_hot(self.encoding.feature_layers, n_shares).to(features.dtype)
        shares = (features * self.weight) @ belongs
        shares = torch.cat([shares[:, :-1], shares[:, -1:] + self.bias], dim=1)
        factor: Tensor = torch.exp(self.log_factor(features @ self.projection, shares.sum(dim=1)))
        return shares * factor.unsqueeze(1)


class MlpOnWidths(LatencyModel):
    """The paper's model: an MLP on the widths relative to the full ones, its output the logarithm of ms.

    Attributes:
        full_widths: widths of the unpruned network, [n_groups].
        log_mean: mean logarithm of the training latencies in ms, [].
        log_scale: their standard deviation, [].
        mlp: relative widths → one value.
    """

    full_widths: Tensor
    log_mean: Tensor
    log_scale: Tensor

    def __init__(self, full_widths: Tensor, n_hidden: int) -> None:
        """An MLP with one hidden layer of `n_hidden` for networks of these full widths, [n_groups]."""
        super().__init__()
        self.register_buffer("full_widths", full_widths.to(torch.float32))
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("log_scale", torch.ones(()))
        self.mlp = small_mlp(len(full_widths), n_hidden)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The MLP with this state dict."""
        model = cls(state["full_widths"], n_hidden=state["mlp.0.weight"].shape[0])
        model.load_state_dict(state)
        return model

    @property
    def n_groups(self) -> int:
        """Length of a width vector."""
        return int(self.full_widths.shape[0])

    def forward(self, widths: Tensor) -> Tensor:
        """Predicted latency in ms, [n], of widths [n, n_groups]; see `LatencyModel.forward`."""
        return torch.exp(self.log_mean + self.log_scale * self.mlp(self.relative(widths)).squeeze(1))

    def relative(self, widths: Tensor) -> Tensor:
        """What the MLP sees: -1 at width 0, 1 at full width, [n, n_groups]."""
        return 2.0 * widths / self.full_widths - 1.0


def load_model(directory: Path) -> LatencyModel:
    """The latency model in a folder, whatever its kind, ready to be differentiated in its input.

    Raises:
        ProfileError: a file is missing or damaged, or the model's kind is unknown.
    """
    manifest = read_manifest(directory, needs=WEIGHTS_FILE)
    kind = LatencyModel.kinds.get(manifest.kind)
    if kind is None:
        known = ", ".join(sorted(LatencyModel.kinds))
        raise ProfileError(f"The model in {directory} is a {manifest.kind}; known are: {known}.")
    path = directory / WEIGHTS_FILE
    try:
        model = kind.from_state(load_file(path))
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ProfileError(f"{path} does not hold a {manifest.kind} ({error}); fit again.") from error
    return model.eval().requires_grad_(False)


def small_mlp(n_inputs: int, n_hidden: int) -> nn.Sequential:
    """An MLP with one hidden layer and one output, which is 0 until it is trained."""
    last = nn.Linear(n_hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_inputs, n_hidden), nn.SiLU(), last)
