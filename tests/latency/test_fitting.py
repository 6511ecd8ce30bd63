import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from latency._physics import Samples, fit_physics, pools
from latency._residual import MlpSettings
from latency.device import DeviceSettings, fingerprint
from latency.errors import ProfileError
from latency.fitting import (
    FitResult,
    FitSettings,
    _model_error,
    cross_validation_folds,
    fit,
    fit_mlp_on_widths,
)
from latency.grid import Grid
from latency.lpnet import LPNet
from latency.measure import Protocol
from latency.predictor import Predictor
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import ProfileSet
from latency.structure import ChannelGroup, IntArray, LayerView, LinearWidth

FULL = (64, 192, 128)
GRID = Grid((tuple(range(16, 65, 16)), (0, *range(16, 193, 16)), tuple(range(16, 129, 16))))
REFERENCE_MS = 4.0


def group(index: int) -> ChannelGroup:
    return ChannelGroup(
        index=index,
        name=f"group{index}",
        n_channels=FULL[index],
        offset=0,
        channels_per_slot=1,
        zero_allowed=index == 1,
        removes=(),
        implied_zero=(),
        presence=(),
    )


def width(*groups: int, constant: int = 0) -> LinearWidth:
    return LinearWidth(constant, tuple((index, 1) for index in groups))


def layer(name: str, in_channels: LinearWidth, out_channels: LinearWidth, n_positions: int) -> LayerView:
    return LayerView(name, "dense", in_channels, out_channels, 0, 9, n_positions, n_positions, ())


class FakeSpace:
    """A stem, a removable branch and a head, without the ONNX graph behind them."""

    structure_hash = "ab" * 32
    groups = tuple(group(index) for index in range(3))
    full_widths = np.array(FULL)
    layers = (
        layer("stem", width(constant=3), width(0), 784),
        layer("expand", width(0), width(1), 196),
        layer("reduce", width(1), width(0), 196),
        layer("head", width(0), width(2), 196),
    )

    def canonical(self, widths: npt.ArrayLike) -> IntArray:
        return np.asarray(widths)

    def macs(self, widths: npt.ArrayLike) -> int:
        return sum(view.macs(np.asarray(widths)) for view in self.layers)


SPACE = FakeSpace()


def staircase_ms(widths: IntArray) -> float:
    """A device that computes 16 outputs at a time and four such blocks in one go."""
    total = 0.3
    for view in SPACE.layers:
        c_in, c_out = view.in_channels.at(widths), view.out_channels.at(widths)
        if c_in and c_out:
            steps = 0.7 * math.ceil(c_out / 16) * 16 + 0.3 * math.ceil(c_out / 64) * 64
            total += 0.02 + 4e-8 * view.out_positions * 9 * c_in * steps
    return total


def congested_ms(widths: IntArray) -> float:
    """The same device, slower the more there is to do at once: no sum over layers says so."""
    fill = SPACE.macs(widths) / SPACE.macs(SPACE.full_widths)
    return staircase_ms(widths) * (1.0 + 0.25 * math.tanh(6.0 * (fill - 0.35)))


def row(
    widths: IntArray, ratio: float, stderr: float, split: str = "train", pass_index: int = 0
) -> ProfileRow:
    return ProfileRow(
        widths=tuple(int(w) for w in widths),
        split=split,  # type: ignore[arg-type]
        pass_index=pass_index,
        status="ok",
        ratio=ratio,
        ratio_stderr=stderr,
        candidate_ms=ratio * REFERENCE_MS,
        reference_ms=REFERENCE_MS,
        n_pairs=16,
        converged=True,
    )


def make_profile(
    device_ms: Callable[[IntArray], float], *, n_train: int, n_held_out: int = 60, noise: float = 0.003
) -> ProfileSet:
    rng = np.random.default_rng(0)
    seen: dict[tuple[int, ...], None] = {}
    while len(seen) < n_train + n_held_out:
        seen[tuple(int(rng.choice(allowed)) for allowed in GRID.allowed)] = None
    rows = []
    for place, key in enumerate(seen):
        ratio = device_ms(np.array(key)) / REFERENCE_MS
        passes = ((0, "train"),) if place < n_train else ((0, "held_out"), (1, "held_out"))
        for pass_index, split in passes:
            measured = ratio * (1.0 + noise * float(rng.normal()))
            rows.append(row(np.array(key), measured, noise, split, pass_index))
    header = ProfileHeader.of_space(SPACE, GRID, fingerprint(DeviceSettings()), Protocol())
    return ProfileSet(header, tuple(rows), fixed_reference_ms=REFERENCE_MS)


QUICK = FitSettings(strengths=(1e-2, 1.0), mlp=MlpSettings(max_steps=50))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def on_staircase() -> FitResult:
    return fit(make_profile(staircase_ms, n_train=200), SPACE)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_congested() -> FitResult:
    return fit(make_profile(congested_ms, n_train=200), SPACE)  # type: ignore[arg-type]


def test_a_staircase_device_is_recovered_from_200_samples(on_staircase: FitResult) -> None:
    metrics = on_staircase.metrics
    assert metrics["LPNet"].mape < 0.005
    assert metrics["LPNet"].within_5 == 1.0
    assert metrics["LPNet"].spearman > 0.999
    assert metrics["macs"].mape > 3 * metrics["LPNet"].mape


def test_thirty_samples_suffice_for_prices_that_layers_share() -> None:
    result = fit(make_profile(staircase_ms, n_train=30), SPACE, settings=QUICK)  # type: ignore[arg-type]
    assert result.metrics["LPNet"].mape < 0.01


def test_layers_of_a_kind_share_prices_by_their_work() -> None:
    pointwise = dataclasses.replace(SPACE.layers[1], name="pointwise", kernel_area=1)
    layers = (*SPACE.layers[:2], pointwise)
    terms = [(0, "macs"), (1, "macs"), (2, "macs"), (0, "output"), (1, "presence"), (3, "beyond 512 KiB")]
    shares = pools(terms, layers, SPACE.full_widths)
    stem, expand = (view.macs(FULL) for view in layers[:2])
    np.testing.assert_allclose(shares[:2, 0], [stem / (stem + expand), expand / (stem + expand)])
    assert shares[2:].argmax(axis=1).tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)


def test_where_a_sum_says_it_all_the_mlp_is_switched_off(on_staircase: FitResult) -> None:
    assert isinstance(on_staircase.model, LPNet)
    assert on_staircase.mlp_steps == 0
    assert on_staircase.model.amplitude.item() == 0.0
    assert on_staircase.metrics["LPNet"].mape == pytest.approx(on_staircase.metrics["sum"].mape)
    assert on_staircase.cv_rmse == on_staircase.sum_cv_rmse


def test_the_mlp_learns_what_no_sum_can_say(on_congested: FitResult) -> None:
    assert on_congested.mlp_steps > 0
    assert on_congested.cv_rmse < on_congested.sum_cv_rmse
    assert on_congested.metrics["LPNet"].mape < 0.7 * on_congested.metrics["sum"].mape


def test_weights_are_those_of_a_physical_device(on_staircase: FitResult) -> None:
    model = on_staircase.model
    assert isinstance(model, LPNet)
    assert model.weight.min() >= 0
    widths = torch.tensor([FULL], dtype=torch.float32)
    assert model(widths).item() == pytest.approx(staircase_ms(np.array(FULL)), rel=0.01)
    removed = model.contributions_ms(torch.tensor([[64.0, 0.0, 128.0]]))[0]
    assert removed[1:3].tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def saved(on_congested: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fitted LPNet; exporting takes seconds."""
    folder = tmp_path_factory.mktemp("saved") / "lpnet"
    on_congested.save(folder)
    return folder


def test_intervals_cover_the_held_out_networks_and_grow_away_from_the_profile(saved: Path) -> None:
    predictor = Predictor.load(saved)
    held_out = make_profile(congested_ms, n_train=200).arrays("held_out")
    found = predictor.predict(held_out.widths)
    inside = (found.low_ms <= held_out.latency_ms) & (held_out.latency_ms <= found.high_ms)
    assert 0.9 <= inside.mean() <= 1.0
    assert (found.high_ms / found.low_ms - 1 < 0.1).all()
    np.testing.assert_allclose(found.layer_ms.sum(axis=1), found.latency_ms, rtol=1e-5)
    assert found.out_of_range.mean() < 0.1


def test_the_manifest_says_what_the_model_is_for(on_staircase: FitResult) -> None:
    manifest = on_staircase.manifest
    assert manifest.structure_hash == SPACE.structure_hash
    assert manifest.reference_ms == REFERENCE_MS
    assert manifest.n_train == 200
    assert manifest.may_vanish == (False, True, False)
    assert manifest.layer_names == ("stem", "expand", "reduce", "head")
    assert manifest.noise_floor_mape == pytest.approx(0.003 / math.sqrt(math.pi), rel=0.3)
    assert set(manifest.metrics) == {"LPNet", "sum", "macs"}
    assert manifest.metrics["LPNet"].n == 60


def test_a_saved_fit_predicts_the_held_out_networks(saved: Path) -> None:
    predictor = Predictor.load(saved, structure_hash=SPACE.structure_hash)
    held_out = make_profile(congested_ms, n_train=200).arrays("held_out")
    error = predictor.predict_ms(held_out.widths) / held_out.latency_ms - 1.0
    assert np.abs(error).mean() == pytest.approx(predictor.manifest.metrics["LPNet"].mape, rel=1e-3)


def test_the_same_seed_gives_the_same_model() -> None:
    profile = make_profile(congested_ms, n_train=60, n_held_out=10)
    first, second, other = (fit(profile, SPACE, seed=seed, settings=QUICK) for seed in (1, 1, 2))  # type: ignore[arg-type]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert other.cv_rmse != first.cv_rmse


def test_fitting_leaves_torchs_generator_alone() -> None:
    profile = make_profile(congested_ms, n_train=60, n_held_out=10)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(profile, SPACE, settings=QUICK)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)


def test_bursts_of_other_work_hardly_move_the_fit() -> None:
    clean = make_profile(staircase_ms, n_train=150, n_held_out=40)
    rows = list(clean.rows)
    for place in range(0, 150, 15):
        # Their own interval does not show it: the burst lasted for the whole measurement.
        rows[place] = dataclasses.replace(rows[place], ratio=rows[place].ratio * 1.4)
    result = fit(dataclasses.replace(clean, rows=tuple(rows)), SPACE, settings=QUICK)  # type: ignore[arg-type]
    assert result.metrics["LPNet"].mape < 0.01


def test_noisy_measurements_count_less() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(0.1, 1.0, (80, 1))
    exact = 1.0 + 2.0 * features[:, 0]
    stderr = np.where(np.arange(80) < 40, 0.001, 0.05)
    samples = Samples(features, exact * (1.0 + stderr * rng.normal(size=80)), stderr)
    physics = fit_physics(samples, np.eye(1), cross_validation_folds(80, 5, seed=0), strengths=(1e-9,))
    assert physics.error_weights[:40].mean() > 20 * physics.error_weights[40:].mean()
    np.testing.assert_allclose(physics.predict_ms(features), exact, rtol=2e-3)


def test_the_papers_mlp_stands_beside_behind_the_same_interface() -> None:
    profile = make_profile(staircase_ms, n_train=200)
    settings = MlpSettings(n_hidden=32, max_steps=600, check_every=50)
    plain = fit_mlp_on_widths(profile, SPACE, settings=settings)  # type: ignore[arg-type]
    assert plain.manifest.kind == "MlpOnWidths"
    assert plain.metrics["MlpOnWidths"].mape < 0.05
    widths = torch.tensor([FULL], dtype=torch.float32)
    assert plain.model(widths).item() == pytest.approx(staircase_ms(np.array(FULL)), rel=0.1)


def test_a_profile_without_held_out_networks_has_no_metrics() -> None:
    profile = make_profile(staircase_ms, n_train=40, n_held_out=0)
    result = fit(profile, SPACE, settings=QUICK)  # type: ignore[arg-type]
    assert result.metrics == {}
    assert result.manifest.noise_floor_mape is None


def test_the_profile_of_another_network_is_refused() -> None:
    profile = make_profile(staircase_ms, n_train=10, n_held_out=0)
    header = dataclasses.replace(profile.header, structure_hash="cd" * 32)
    with pytest.raises(
        ProfileError, match="another network: structure hash cdcdcdcdcdcd there, abababababab here"
    ):
        fit(dataclasses.replace(profile, header=header), SPACE)  # type: ignore[arg-type]


def test_too_few_candidates_are_refused() -> None:
    profile = make_profile(staircase_ms, n_train=9, n_held_out=0)
    with pytest.raises(
        ProfileError, match=r"holds 9 measured training candidates \(0 failed\), .* at least 10"
    ):
        fit(profile, SPACE)  # type: ignore[arg-type]


def test_badly_measured_networks_do_not_hide_the_models_error() -> None:
    stderr = np.array([0.01] * 90 + [0.1] * 10)

    assert _model_error(0.02, stderr) == pytest.approx(math.sqrt(0.02**2 - 0.01**2))
