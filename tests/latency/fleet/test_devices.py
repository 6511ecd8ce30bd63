from dataclasses import replace

import pytest

from latency.device import DeviceSettings, fingerprint
from latency.errors import FleetError, InputError
from latency.fleet.devices import FleetDevice, choose_kind, devices_in, own_version

HERE = fingerprint(DeviceSettings())
PI = replace(HERE, cpu_model="Cortex-A76")


def _device(name: str, kind=HERE, version: str | None = None) -> FleetDevice:
    return FleetDevice(name, kind, version or own_version())


def test_devices_are_told_from_other_workers_of_the_scheduler():
    device = _device("pi-3")
    info = {"workers": {"tcp://a:1": {"name": "other"}, "tcp://b:2": {"trimms": device.to_json()}}}
    assert devices_in(info) == [device]


def test_one_kind_needs_no_name():
    devices = [_device("a"), _device("b")]
    assert choose_kind(devices, None) == devices


def test_several_kinds_are_listed_until_one_is_named():
    devices = [_device("a"), _device("b"), _device("pi-3", PI)]
    with pytest.raises(InputError, match=r"2 kinds, .*: a, b \(.*pi-3 \(Cortex-A76.*with --device NAME"):
        choose_kind(devices, None)
    assert choose_kind(devices, "b") == devices[:2]
    assert choose_kind(devices, "pi-3") == devices[2:]


def test_unlike_gpus_are_unlike_kinds():
    devices = [
        replace(_device(name), gpus=gpus) for name, gpus in (("a", ()), ("b", ("A10",)), ("c", ("L4",)))
    ]
    with pytest.raises(InputError, match=r"3 kinds, .*: a \(.*; b \(.*; A10\); c \(.*; L4\)"):
        choose_kind(devices, None)
    assert choose_kind(devices, "b") == devices[1:2]
    assert [FleetDevice.from_json(device.to_json()) for device in devices] == devices


def test_a_name_that_nobody_has_is_refused():
    with pytest.raises(InputError, match="called 'pi-4'; there are: a, b"):
        choose_kind([_device("a"), _device("b")], "pi-4")


def test_devices_with_another_version_are_left_out_and_said_where_there_is_no_other():
    old = _device("old", version="0.0.1")
    assert old.kind != _device("new").kind
    assert choose_kind([old, _device("new")], None) == [_device("new")]
    with pytest.raises(FleetError, match=rf"No device has trimms {own_version()}, as here: old has 0\.0\.1"):
        choose_kind([old], None)
