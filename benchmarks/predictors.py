"""Ways to predict latency from widths: LPNet, the paper's MLP, and what people usually take."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import RegressorMixin
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latency.fitting import FitResult, fit, fit_mlp_on_widths
from latency.profiles import ProfileSet
from latency.space import SearchSpace
from latency.structure import IntArray

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[IntArray], FloatArray]
Features = Callable[[IntArray], FloatArray]


def first_candidates(profile: ProfileSet, n: int) -> ProfileSet:
    """The profile with its first n training candidates alone, and what it holds out."""
    order = dict.fromkeys(row.widths for row in profile.ok_rows if row.split == "train")
    first = set(list(order)[:n])
    rows = tuple(row for row in profile.ok_rows if row.split == "held_out" or row.widths in first)
    return dataclasses.replace(profile, rows=rows, fixed_reference_ms=profile.reference_ms)


def fit_all(profile: ProfileSet, space: SearchSpace, seed: int) -> Mapping[str, Predict]:
    """Every method fitted to the training candidates of a profile, by name.

    Those of scikit-learn learn the logarithm of the latency, so that all of them see relative errors.
    """
    train = profile.arrays("train")
    macs = _scaled(lambda widths: np.array([[space.macs(row)] for row in widths]), space)
    layer_macs = _scaled(lambda widths: _layer_macs(space, widths), space)
    widths = _scaled(lambda rows: np.asarray(rows, dtype=np.float64), space)
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-6, 3, 19)))
    forest = RandomForestRegressor(300, random_state=seed)
    boosting = GradientBoostingRegressor(
        n_estimators=500, learning_rate=0.05, max_depth=3, subsample=0.5, random_state=seed
    )
    return {
        "LPNet": _torch_predict(fit(profile, space, seed=seed)),
        "plain MLP on widths": _torch_predict(fit_mlp_on_widths(profile, space, seed=seed)),
        "MACs-linear": _fitted(LinearRegression(), macs, train.widths, train.latency_ms, logarithm=False),
        "ridge on per-layer MACs": _fitted(
            ridge, layer_macs, train.widths, train.latency_ms, logarithm=False
        ),
        "random forest": _fitted(forest, widths, train.widths, train.latency_ms, logarithm=True),
        "gradient boosting": _fitted(boosting, widths, train.widths, train.latency_ms, logarithm=True),
    }


def _layer_macs(space: SearchSpace, widths: IntArray) -> FloatArray:
    canonical = [space.canonical(row) for row in widths]
    return np.array([[layer.macs(row) for layer in space.layers] for row in canonical], dtype=np.float64)


def _scaled(features: Features, space: SearchSpace) -> Features:
    full = np.maximum(features(space.full_widths[None]), 1.0)
    return lambda widths: features(widths) / full


def _torch_predict(result: FitResult) -> Predict:
    def predict(widths: IntArray) -> FloatArray:
        with torch.no_grad():
            return np.asarray(result.model(torch.from_numpy(widths).float()), dtype=np.float64)

    return predict


def _fitted(
    model: RegressorMixin, features: Features, widths: IntArray, latency_ms: FloatArray, *, logarithm: bool
) -> Predict:
    model.fit(features(widths), np.log(latency_ms) if logarithm else latency_ms)

    def predict(rows: IntArray) -> FloatArray:
        values = model.predict(features(rows))
        return np.exp(values) if logarithm else values

    return predict
