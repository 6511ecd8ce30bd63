"""The probe as a stage: files, figures, and what a profile makes of them."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from latency.device import DeviceSettings, fingerprint
from latency.measure import Protocol
from latency.probe import KINDS, probe_step
from latency.probing import DeviceProbe
from latency.profile_rows import ProfileRow
from latency.profiles import ProfileSet
from pruning.device_stages import ProfileOptions, noise_advice, probe_stage, profile_stage
from pruning.errors import SettingError
from pruning.run import RunDirectory
from tests.latency.test_profiles import HEADER

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


def profile_of(noise: float) -> ProfileSet:
    """Thirty networks, visited twice, half a second apart."""
    rng = np.random.default_rng(0)
    rows = []
    for pass_index in (0, 1):
        for width in range(1, 31):
            ratio = 0.5 * math.exp(noise * rng.standard_normal())
            row = ProfileRow(
                (width, 1),
                "train",
                pass_index,
                "ok",
                ratio=ratio,
                ratio_stderr=noise,
                candidate_ms=2 * ratio,
                reference_ms=2.0,
                measured_at=0.5 * len(rows),
            )
            rows.append(row)
    return ProfileSet(HEADER, tuple(rows))


def test_a_noisy_device_is_said_with_what_to_do() -> None:
    measured = profile_of(noise=0.03)
    advice = noise_advice(measured)

    assert advice is not None
    assert measured.visit_stderr is not None
    visits = math.ceil((1.96 * math.sqrt(math.pi / 2) * measured.visit_stderr / 0.02) ** 2)
    assert f"known within {measured.half_width:.1%} (95 %)" in advice
    assert f"`trimms profile --precision 2%` goes on from here to {visits} visits to each" in advice
    assert f"some {visits * 30 * 0.5 / 60:.0f} minutes in all" in advice


def test_of_a_quiet_device_nothing_is_said() -> None:
    assert noise_advice(profile_of(noise=0.005)) is None


def test_outliers_alone_are_no_reason_for_visits_that_would_not_be_made() -> None:
    quiet = profile_of(noise=0.005)
    rows = list(quiet.rows)
    for index in range(3):
        rows[index] = dataclasses.replace(rows[index], ratio=rows[index].ratio * 1.2)
    measured = ProfileSet(HEADER, tuple(rows))

    assert measured.half_width is not None
    assert measured.half_width > 0.025
    assert noise_advice(measured) is None
