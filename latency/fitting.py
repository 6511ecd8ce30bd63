"""Fit an LPNet to a profile set.

Errors are relative, predicted / measured - 1, so that slow networks do not dominate. Everything that is chosen
(the strength of the ridge, how long the MLP is trained and whether at all) is chosen by cross-validation
within the training split; the held-out split is for the report alone.

1. Physics: a non-negative weighted sum of the encoding's features, shrunk towards prices that all layers of a
   kind share (`latency._physics`).
2. Residual: the MLP learns log(measured / physics), where each fold's physics comes from the other folds,
   since on networks that it was fitted to it looks better than it is.
3. The MLP stays only if it lowers the cross-validated error; else its amplitude is 0.
"""

import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import KFold
from torch import Tensor

from latency._physics import LEAST_ERROR, Folds, Physics, Samples, fit_physics, pools, relative_rmse
from latency._residual import MlpSettings, MlpTask, out_of_fold_looks, seeded, train_mlp
from latency.encoding import Encoding
from latency.errors import ProfileError
from latency.lpnet import LatencyModel, LPNet, MlpOnWidths
from latency.lpnet_export import save_lpnet
from latency.lpnet_files import LPNetManifest
from latency.metrics import PredictionMetrics, prediction_metrics
from latency.profiles import ProfileArrays, ProfileSet
from latency.space import SearchSpace
from latency.structure import IntArray

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[IntArray], FloatArray]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How an LPNet is fitted.

    Attributes:
        n_folds: folds of the cross-validation.
        strengths: ridge strengths to choose from, relative to the mean squared feature.
        n_directions: directions among the features that the MLP sees.
        mlp: how the MLP is trained.
        min_sigmas: the MLP stays if it lowers the cross-validated mean square error by this many standard
            errors of the difference.
        max_log_factor: largest logarithm of the MLP's factor.
    """

    n_folds: int = 5
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    n_directions: int = 8
    mlp: MlpSettings = field(default_factory=MlpSettings)
    min_sigmas: float = 2.0
    max_log_factor: float = 0.3


DEFAULT_SETTINGS = FitSettings()
# The paper's MLP has everything to learn itself.
PLAIN_MLP = MlpSettings(n_hidden=64, learning_rate=3e-3, weight_decay=0.1, max_steps=2000, check_every=50)


@dataclass(frozen=True)
class FitResult:
    """A fitted model and how it came about.

    Attributes:
        model: the model, its parameters frozen.
        manifest: what it is for and how good it is on the held-out networks, beside simpler methods.
        ridge_strength: chosen ridge strength; NaN for a model without physics.
        mlp_steps: steps of the MLP's training, 0 where it is switched off.
        cv_rmse: cross-validated relative error of the model, outliers weighted down, 0.01 is 1 %.
        sum_cv_rmse: the same of the physics alone; NaN for a model without physics.
    """

    model: LatencyModel
    manifest: LPNetManifest
    ridge_strength: float
    mlp_steps: int
    cv_rmse: float
    sum_cv_rmse: float

    @property
    def metrics(self) -> dict[str, PredictionMetrics]:
        """Agreement with the held-out networks by method."""
        return dict(self.manifest.metrics)

    def save(self, directory: Path) -> None:
        """Write the LPNet's files into the folder, see `latency.lpnet_export.save_lpnet`."""
        save_lpnet(self.model, directory, self.manifest)


def fit(
    profile: ProfileSet, space: SearchSpace, *, seed: int = 0, settings: FitSettings = DEFAULT_SETTINGS
) -> FitResult:
    """The LPNet of a profile set.

    Args:
        profile: measured candidates.
        space: the network that they are candidates of.
        seed: seed of the folds and of the MLP; the same seed gives the same LPNet.
        settings: how it is fitted.

    Raises:
        ProfileError: the profile belongs to another network, or holds too few training candidates.
    """
    train = training_split(profile, space, settings.n_folds)
    encoding = Encoding.from_space(space.layers, space.groups, profile.header.grid)
    samples = Samples(features_of(encoding, train.widths), train.latency_ms, train.relative_stderr)
    folds = cross_validation_folds(len(train.latency_ms), settings.n_folds, seed)
    shares = pools(encoding.feature_terms(), space.layers, space.full_widths)
    physics = fit_physics(samples, shares, folds, settings.strengths)
    with seeded(seed):
        n_directions = min(settings.n_directions, *samples.features.shape)
        model = LPNet(encoding, n_directions, settings.mlp.n_hidden, settings.n_folds).double()
    _set_physics_(model, physics, samples.features)
    steps, cv_rmse = _fit_residual_(model, physics, samples, folds, settings, seed)
    methods: dict[str, Predict] = {
        "sum": lambda widths: physics.predict_ms(features_of(encoding, widths)),
        "macs": macs_baseline(space, train),
    }
    manifest = describe(model, profile, space, seed, methods, cv_rmse)
    return FitResult(_frozen(model), manifest, physics.strength, steps, cv_rmse, physics.cv_rmse)


def fit_mlp_on_widths(
    profile: ProfileSet, space: SearchSpace, *, seed: int = 0, settings: MlpSettings = PLAIN_MLP
) -> FitResult:
    """The paper's plain MLP on the same data, to compare with; see `fit`."""
    n_folds = DEFAULT_SETTINGS.n_folds
    train = training_split(profile, space, n_folds)
    folds = cross_validation_folds(len(train.latency_ms), n_folds, seed)
    with seeded(seed):
        model = MlpOnWidths(torch.from_numpy(space.full_widths), settings.n_hidden).double()
    log_ms = np.log(train.latency_ms)
    mean, scale = float(log_ms.mean()), float(log_ms.std()) or 1.0
    model.log_mean, model.log_scale = torch.tensor(mean), torch.tensor(scale)
    variance = train.relative_stderr**2 + 0.01**2
    task = MlpTask(
        inputs=model.relative(torch.from_numpy(train.widths).double()),
        targets=torch.from_numpy(log_ms),
        error_weights=torch.from_numpy(variance.mean() / variance),
        head=lambda output: mean + scale * output,
    )
    predicted_ms = np.exp(out_of_fold_looks(task, folds, settings, seed))
    weights = task.error_weights.numpy()
    errors = [relative_rmse(ms, train.latency_ms, weights) for ms in predicted_ms]
    steps = int(np.argmin(errors)) * settings.check_every
    model.mlp, _ = train_mlp(task, settings, n_steps=steps, seed=seed)
    manifest = describe(model, profile, space, seed, {"macs": macs_baseline(space, train)}, min(errors))
    return FitResult(_frozen(model), manifest, math.nan, steps, min(errors), math.nan)


def training_split(profile: ProfileSet, space: SearchSpace, n_folds: int) -> ProfileArrays:
    """The training candidates, once they are known to be of this network and enough.

    Raises:
        ProfileError: they are not.
    """
    if profile.header.structure_hash != space.structure_hash:
        raise ProfileError(
            f"The profile belongs to another network: structure hash {profile.header.structure_hash[:12]} there, "
            f"{space.structure_hash[:12]} here; profile this network."
        )
    train = profile.arrays("train")
    if len(train.latency_ms) < 2 * n_folds:
        raise ProfileError(
            f"The profile holds {len(train.latency_ms)} measured training candidates "
            f"({len(profile.failed_rows)} failed), a fit needs at least {2 * n_folds} and is good from about "
            "100; continue it with `trimms profile`."
        )
    return train


def cross_validation_folds(n: int, n_folds: int, seed: int) -> Folds:
    """Rows to fit and rows to predict of each fold."""
    return list(KFold(n_folds, shuffle=True, random_state=seed).split(np.zeros(n)))


def features_of(encoding: Encoding, widths: IntArray) -> FloatArray:
    """Features in double precision, [n, n_features], of width vectors [n, n_groups]."""
    encoding = Encoding(encoding.state_dict()).double()
    features: FloatArray = encoding(torch.from_numpy(widths).double()).numpy()
    return features


def macs_baseline(space: SearchSpace, train: ProfileArrays) -> Predict:
    """The usual yardstick: latency = a · MACs + b, fitted to the same networks with the same relative loss."""

    def macs_of(widths: IntArray) -> FloatArray:
        return np.array([[space.macs(row)] for row in widths], dtype=np.float64) / space.macs(
            space.full_widths
        )

    samples = Samples(macs_of(train.widths), train.latency_ms, train.relative_stderr)
    n = len(train.latency_ms)
    line = fit_physics(samples, np.eye(1), cross_validation_folds(n, 5, seed=0), strengths=(1e-9,))
    return lambda widths: line.predict_ms(macs_of(widths))


def describe(
    model: LatencyModel,
    profile: ProfileSet,
    space: SearchSpace,
    seed: int,
    methods: Mapping[str, Predict],
    cv_rmse: float,
) -> LPNetManifest:
    """The manifest of a fitted model, with its error and that of other methods on the held-out networks."""
    train = profile.arrays("train")
    with torch.no_grad():
        known = model.double().outputs(torch.from_numpy(train.widths).double())
    spread = known["spread"].numpy() if "spread" in known else None
    kind = type(model).__name__
    held_out = profile.arrays("held_out")
    predictions: dict[str, Predict] = {kind: lambda widths: _predict_ms(model, widths), **methods}
    metrics = {}
    if len(held_out.latency_ms):
        for name, predict in predictions.items():
            metrics[name] = prediction_metrics(predict(held_out.widths), held_out.latency_ms)
    vanishing = {index for group in space.groups if group.zero_allowed for index in group.implied_zero}
    return LPNetManifest(
        kind=kind,
        structure_hash=space.structure_hash,
        group_names=tuple(group.name for group in space.groups),
        grid=profile.header.grid,
        may_vanish=tuple(group.zero_allowed or group.index in vanishing for group in space.groups),
        layer_names=tuple(layer.name for layer in space.layers),
        fingerprint=profile.header.fingerprint,
        reference_ms=profile.reference_ms,
        profile_digest=profile.digest,
        n_train=len(train.latency_ms),
        seed=seed,
        cv_rmse=cv_rmse,
        model_error=_model_error(cv_rmse, train.relative_stderr),
        largest_spread=None if spread is None else float(spread.max()),
        metrics=metrics,
        noise_floor_mape=profile.noise_floor_mape,
        versions={name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn", "torch")},
    )


def _model_error(cv_rmse: float, stderr: FloatArray) -> float:
    """What is left of a cross-validated error without the noise of what it is compared with, relative.

    The noise is that of a typical network: the error counts little of the worst measured ones, too.
    """
    return math.sqrt(max(cv_rmse**2 - float(np.median(stderr)) ** 2, LEAST_ERROR**2))


def _set_physics_(model: LPNet, physics: Physics, features: FloatArray) -> None:
    """Give the LPNet its sum, and its MLP inputs that are standardised over the training set."""
    model.weight = torch.from_numpy(physics.weight)
    model.bias = torch.tensor(physics.bias, dtype=torch.float64)
    model.members = torch.from_numpy(physics.members)
    centred = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    # The sign of a singular vector is arbitrary: make it the same everywhere.
    directions *= np.where(directions.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    n_directions = model.projection.shape[1]
    model.projection = torch.from_numpy(directions[:n_directions].T.copy())
    inputs = _mlp_inputs(model, features, physics.out_of_fold_ms)
    scale = inputs.std(dim=0)
    model.mean, model.scale = inputs.mean(dim=0), scale.where(scale > 1e-9, 1.0)


def _fit_residual_(
    model: LPNet, physics: Physics, samples: Samples, folds: Folds, settings: FitSettings, seed: int
) -> tuple[int, float]:
    """Train the LPNet's MLP if that helps; returns the steps (0 if not) and the cross-validated error."""
    amplitude = min(settings.max_log_factor, 4.0 * physics.cv_rmse)
    task = MlpTask(
        inputs=_mlp_inputs(model, samples.features, physics.out_of_fold_ms),
        targets=torch.from_numpy(np.log(samples.latency_ms / physics.out_of_fold_ms)),
        error_weights=torch.from_numpy(physics.error_weights),
        head=lambda output: amplitude * torch.tanh(output),
    )
    factors = np.exp(out_of_fold_looks(task, folds, settings.mlp, seed))
    predictions = factors * physics.out_of_fold_ms
    errors = [relative_rmse(ms, samples.latency_ms, physics.error_weights) for ms in predictions]
    best = int(np.argmin(errors))
    if _gain_in_sigmas(physics, predictions[best], samples.latency_ms) < settings.min_sigmas:
        return 0, physics.cv_rmse
    steps = best * settings.mlp.check_every
    model.mlp, _ = train_mlp(task, settings.mlp, n_steps=steps, seed=seed)
    model.amplitude = torch.tensor(amplitude, dtype=torch.float64)
    return steps, errors[best]


def _gain_in_sigmas(physics: Physics, predicted_ms: FloatArray, measured_ms: FloatArray) -> float:
    """By how many standard errors predictions have a lower mean square error than the physics."""
    before = (physics.out_of_fold_ms / measured_ms - 1.0) ** 2
    after = (predicted_ms / measured_ms - 1.0) ** 2
    gain = physics.error_weights * (before - after)
    return float(gain.mean() / max(gain.std() / math.sqrt(len(gain)), 1e-12))


def _mlp_inputs(model: LPNet, features: FloatArray, physics_ms: FloatArray) -> Tensor:
    directions = torch.from_numpy(features) @ model.projection
    return model.mlp_inputs(directions, torch.from_numpy(physics_ms))


def _predict_ms(model: LatencyModel, widths: IntArray) -> FloatArray:
    with torch.no_grad():
        latency_ms: FloatArray = model.double()(torch.from_numpy(widths).double()).numpy()
    return latency_ms


def _frozen(model: LatencyModel) -> LatencyModel:
    return model.float().eval().requires_grad_(False)
