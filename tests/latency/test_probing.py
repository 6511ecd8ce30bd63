import dataclasses
import json
from pathlib import Path

import pytest

from latency.device import DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, ProfileError
from latency.grid import ChannelStep
from latency.probe import ProbePoint, ProbeResult, Staircase
from latency.probing import DeviceProbe, require_probed_here


@pytest.fixture
def probe() -> DeviceProbe:
    points = [ProbePoint(width, width / 64, 0.01, width / 100) for width in range(1, 97)]
    curve = Staircase.from_points("depthwise", 28, points)
    result = ProbeResult(step=ChannelStep(dense=8, depthwise=4), staircases=(curve,), seconds=1.0)
    return DeviceProbe(fingerprint(DeviceSettings()), result)


def test_a_probe_comes_back_from_its_file(probe: DeviceProbe, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(probe.to_json()))

    assert DeviceProbe.read(path) == probe
    assert require_probed_here(DeviceProbe.read(path), DeviceSettings(), path) == probe.result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"kind": "trimms-probe", "version": 1}', "is damaged"),
        ('{"kind": "trimms-probe", "version": 9}', "known is trimms-probe version 1"),
    ],
)
def test_a_file_that_is_no_probe_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(content)

    with pytest.raises(ProfileError, match=message):
        DeviceProbe.read(path)


def test_a_missing_probe_tells_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="does not exist; run `trimms probe` first"):
        DeviceProbe.read(tmp_path / "probe.json")


def test_a_probe_of_another_device_is_refused(probe: DeviceProbe, tmp_path: Path) -> None:
    other = dataclasses.replace(probe, fingerprint=fingerprint(DeviceSettings(threads=2)))

    with pytest.raises(DeviceMismatchError, match=r"probed on another device .*threads"):
        require_probed_here(other, DeviceSettings(), tmp_path / "probe.json")
