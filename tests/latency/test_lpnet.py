from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latency.device import DeviceSettings, fingerprint
from latency.encoding import Encoding
from latency.errors import ProfileError
from latency.grid import Grid
from latency.lpnet import LatencyModel, LPNet, MlpOnWidths, load_model
from latency.lpnet_export import save_lpnet
from latency.lpnet_files import MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE, LPNetManifest
from latency.predictor import Predictor
from latency.structure import ChannelGroup, LayerView, LinearWidth

FULL = torch.tensor([40.0, 96.0])
GRID = Grid(((16, 32, 40), (0, 16, 32, 48, 64, 80, 96)))


def group(index: int, n_channels: int, *, zero_allowed: bool) -> ChannelGroup:
    return ChannelGroup(
        index=index,
        name=("stem", "branch")[index],
        n_channels=n_channels,
        offset=0,
        channels_per_slot=1,
        zero_allowed=zero_allowed,
        removes=(),
        implied_zero=(),
        presence=(),
    )


def layer(name: str, in_channels: LinearWidth, out_channels: LinearWidth) -> LayerView:
    return LayerView(
        name=name,
        kind="dense",
        in_channels=in_channels,
        out_channels=out_channels,
        channels_per_conv_group=0,
        kernel_area=9,
        in_positions=49,
        out_positions=49,
        depends_on=(),
    )


STEM, BRANCH = LinearWidth(0, ((0, 1),)), LinearWidth(0, ((1, 1),))
GROUPS = (group(0, 40, zero_allowed=False), group(1, 96, zero_allowed=True))
LAYERS = (
    layer("stem", LinearWidth(3, ()), STEM),
    layer("expand", STEM, BRANCH),
    layer("reduce", BRANCH, STEM),
)


@pytest.fixture
def lpnet() -> LPNet:
    """An LPNet with every part at work."""
    torch.manual_seed(0)
    model = LPNet(Encoding.from_space(LAYERS, GROUPS, GRID), n_directions=3, n_hidden=8, n_members=4)
    model.weight.uniform_(0.05, 1.0)
    model.bias.fill_(0.5)
    model.members.copy_(torch.cat([model.weight, model.bias[None]]))
    model.members[:, 0] *= torch.linspace(0.9, 1.1, 4)
    model.amplitude.fill_(0.2)
    model.projection.normal_()
    model.scale.uniform_(0.5, 2.0)
    nn.init.normal_(model.mlp[2].weight)
    return model.requires_grad_(False)


@pytest.fixture
def plain_mlp() -> MlpOnWidths:
    torch.manual_seed(0)
    model = MlpOnWidths(FULL, n_hidden=8)
    nn.init.normal_(model.mlp[2].weight)
    model.log_mean.fill_(1.0)
    return model.requires_grad_(False)


def manifest_of(model: LatencyModel) -> LPNetManifest:
    return LPNetManifest(
        kind=type(model).__name__,
        structure_hash="ab" * 32,
        group_names=("stem", "branch"),
        grid=GRID,
        may_vanish=(False, True),
        layer_names=("stem", "expand", "reduce"),
        fingerprint=fingerprint(DeviceSettings()),
        reference_ms=3.0,
        profile_digest="0123456789abcdef",
        n_train=100,
        seed=0,
        cv_rmse=0.01,
        model_error=0.01,
        largest_spread=0.02 if isinstance(model, LPNet) else None,
        metrics={},
        noise_floor_mape=None,
        versions={},
    )


def random_widths(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shares = 0.02 + 0.98 * torch.rand(n, 2, generator=generator)
    return torch.cat([FULL * shares, FULL[None], torch.tensor([[16.0, 0.0]])])


def test_the_residual_multiplies_the_sum_within_its_bounds(lpnet: LPNet) -> None:
    features = lpnet.encoding(random_widths(50))
    physics_ms = lpnet.physics_ms(features)
    torch.testing.assert_close(physics_ms, features @ lpnet.weight + 0.5)
    ratio = lpnet.from_features(features) / physics_ms
    assert ratio.std() > 0.01
    assert ratio.log().abs().max() <= 0.2


def test_a_new_residual_changes_nothing(lpnet: LPNet) -> None:
    fresh = LPNet(lpnet.encoding, n_directions=3, n_hidden=8, n_members=4)
    fresh.weight, fresh.amplitude = lpnet.weight, lpnet.amplitude
    features = lpnet.encoding(random_widths(10))
    torch.testing.assert_close(fresh.from_features(features), features @ lpnet.weight, rtol=0, atol=0)


def test_the_spread_is_the_standard_error_of_leaving_out_folds(lpnet: LPNet) -> None:
    widths = random_widths(20).double()
    lpnet = lpnet.double()
    features = lpnet.encoding(widths)
    each_ms = torch.stack([features @ member[:-1] + member[-1] for member in lpnet.members], dim=1)
    standard_error_ms = 3 / 2 * each_ms.std(dim=1)  # √((k - 1) / k · Σ δ²), k = 4; std divides by k - 1
    torch.testing.assert_close(lpnet.spread(widths), standard_error_ms / lpnet.physics_ms(features))
    assert lpnet.spread(widths).max() > 0.001


def test_without_amplitude_the_prediction_is_the_sum(lpnet: LPNet) -> None:
    lpnet.amplitude.zero_()
    widths = random_widths(10)
    torch.testing.assert_close(lpnet(widths), lpnet.physics_ms(lpnet.encoding(widths)), rtol=0, atol=0)


def test_gradients_agree_with_finite_differences(lpnet: LPNet, plain_mlp: MlpOnWidths) -> None:
    widths = torch.tensor([[37.3, 51.7], [18.9, 90.2], [12.1, 5.3], [33.3, 33.3]], dtype=torch.float64)
    for model in (lpnet.double(), plain_mlp.double()):
        assert torch.autograd.gradcheck(model, (widths.requires_grad_(),), eps=1e-6, atol=1e-6)


def test_a_sum_of_non_negative_terms_never_falls_with_a_width(lpnet: LPNet) -> None:
    lpnet.amplitude.zero_()
    steps = torch.linspace(0.0, 1.0, 500)[:, None]
    for fixed in (0, 1):
        line = (FULL * steps).index_fill(1, torch.tensor(fixed), 30.0)
        assert lpnet(line).diff().min() >= -1e-5


def test_contributions_of_the_layers_add_up_to_the_prediction(lpnet: LPNet) -> None:
    widths = random_widths(20)
    shares = lpnet.contributions_ms(widths)
    assert shares.shape == (22, len(LAYERS) + 1)
    torch.testing.assert_close(shares.sum(dim=1), lpnet(widths))


def test_a_removed_layer_contributes_nothing(lpnet: LPNet) -> None:
    shares = lpnet.contributions_ms(torch.tensor([[32.0, 0.0]]))[0]
    assert shares[1:3].tolist() == [0.0, 0.0]
    assert shares[0] > 0


def test_saved_models_come_back_in_torch_and_in_onnx(
    tmp_path: Path, lpnet: LPNet, plain_mlp: MlpOnWidths
) -> None:
    widths = random_widths(64)
    for model in (lpnet, plain_mlp):
        expected = model(widths)
        directory = tmp_path / type(model).__name__
        save_lpnet(model, directory, manifest_of(model))
        loaded = load_model(directory)
        assert type(loaded) is type(model)
        assert loaded.n_groups == 2
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        torch.testing.assert_close(loaded(widths), expected, rtol=0, atol=0)
        files = [path for path in directory.iterdir() if path.suffix == ".onnx"]
        assert len(files) == (3 if model is lpnet else 2)
        assert not any(str(Path(__file__).parents[2]).encode() in path.read_bytes() for path in files)
        predictor = Predictor.load(directory)
        # Widths off the grid as well, and a batch that the exporter has not seen.
        np.testing.assert_allclose(predictor.predict_ms(widths.numpy()), expected.numpy(), rtol=1e-5)
        np.testing.assert_allclose(predictor.predict_ms(widths[0].numpy()), expected[:1].numpy(), rtol=1e-5)
        slopes = torch.func.grad(lambda w, model=model: model(w).sum())(widths)
        latency_ms, gradient = predictor.gradient(widths.numpy())
        np.testing.assert_allclose(latency_ms, expected.numpy(), rtol=1e-5)
        np.testing.assert_allclose(gradient, slopes.numpy(), rtol=1e-5, atol=1e-7)


@pytest.fixture
def saved(tmp_path: Path, lpnet: LPNet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved LPNet whose ONNX file is a stand-in, since exporting takes seconds."""
    monkeypatch.setattr("latency.lpnet_export.onnx_files", lambda _: {ONNX_FILE: b"onnx"})
    save_lpnet(lpnet, tmp_path / "lpnet", manifest_of(lpnet))
    return tmp_path / "lpnet"


def test_saving_leaves_three_files(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE}


def test_damaged_weights_are_refused(saved: Path) -> None:
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ProfileError, match=r"lpnet.safetensors is damaged"):
        load_model(saved)


def test_weights_of_another_kind_are_refused(
    saved: Path, plain_mlp: MlpOnWidths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LatencyModel.kinds, "LPNet", MlpOnWidths)
    with pytest.raises(ProfileError, match="does not hold a LPNet"):
        load_model(saved)


def test_an_unknown_kind_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LatencyModel.kinds, "LPNet")
    with pytest.raises(ProfileError, match="is a LPNet; known are: MlpOnWidths"):
        load_model(saved)


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, lpnet: LPNet, plain_mlp: MlpOnWidths) -> None:
    with pytest.raises(ProfileError, match="manifest is of a MlpOnWidths, the model is a LPNet"):
        save_lpnet(lpnet, tmp_path, manifest_of(plain_mlp))
