"""The probe as a stage: files, figures, and what a profile makes of them."""

from functools import partial
from pathlib import Path

import pytest

from latency.device import DeviceSettings, fingerprint
from latency.measure import Protocol
from latency.probe import KINDS, probe_step
from latency.probing import DeviceProbe
from pruning.device_stages import ProfileOptions, probe_stage, profile_stage
from pruning.errors import SettingError
from pruning.run import RunDirectory

QUICK = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=0.01)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.device_stages.probe_step", partial(probe_step, protocol=QUICK))


@pytest.mark.usefixtures("_quick")
def test_a_probe_is_kept_and_drawn(tmp_path: Path) -> None:
    result = probe_stage(RunDirectory(tmp_path), DeviceSettings(), max_width=96)

    probe = DeviceProbe.read(tmp_path / "probe.json")
    page = (tmp_path / "probe.html").read_text()
    assert tuple(curve.kind for curve in probe.result.staircases) == KINDS
    assert all([p.width for p in curve.points] == list(range(1, 97)) for curve in probe.result.staircases)
    assert probe.fingerprint == fingerprint(DeviceSettings())
    assert result["dense_step"] == probe.result.step.dense
    assert result["page"] == str(tmp_path / "probe.html")
    assert page.count("<svg") == len(KINDS)
    assert f"multiples of {result['dense_step']}" in page
    assert "<script" not in page


@pytest.mark.parametrize("max_width", [0, 95, 5000])
def test_widths_that_cannot_show_the_steps_are_refused(max_width: int, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"--max-width is from 96 to 1024 channels; got {max_width}"):
        probe_stage(RunDirectory(tmp_path), DeviceSettings(), max_width=max_width)


@pytest.mark.parametrize(
    ("options", "name"),
    [(ProfileOptions(active=0.3), "--active"), (ProfileOptions(until_mape=0.01), "--until-mape")],
)
def test_a_device_without_torch_refuses_what_fits_lpnet_before_it_measures(
    options: ProfileOptions, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.device_stages.find_spec", lambda module: None)
    with pytest.raises(
        SettingError, match=f"{name} fits LPNet between measurements, which needs torch: .* `trimms fit`"
    ):
        profile_stage(RunDirectory(tmp_path), options, seed=0)
    assert not list(tmp_path.iterdir())
