"""The devices of a fleet: what each tells the scheduler about itself, and which of them are of one kind."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from latency.device import DeviceFingerprint
from latency.errors import FleetError, InputError

ANNOUNCEMENT = "trimms"
"""Where a worker's announcement is found in what the scheduler knows about it."""


def own_version() -> str:
    """Version of this package; the client and its devices must have the same."""
    return version("trimms")


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """A device that a worker offers.

    Attributes:
        name: unique in the fleet.
        fingerprint: its fingerprint at default settings (the CPU, one thread).
        trimms_version: version that runs there.
        gpus: kinds of GPU there, see `latency.gpu`.
    """

    name: str
    fingerprint: DeviceFingerprint
    trimms_version: str
    gpus: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Name of the Dask resource that the devices of one kind have, with one version of this package."""
        gpus = hashlib.sha256("; ".join(self.gpus).encode()).hexdigest()[:8] if self.gpus else "no-gpu"
        return f"trimms-{self.trimms_version}-{self.fingerprint.digest}-{gpus}"

    def to_json(self) -> dict[str, Any]:
        """The device as a JSON object."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint.to_json(),
            "trimms_version": self.trimms_version,
            "gpus": list(self.gpus),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "FleetDevice":
        """The device that `to_json` gave."""
        return cls(
            record["name"],
            DeviceFingerprint.from_json(record["fingerprint"]),
            record["trimms_version"],
            tuple(record.get("gpus", ())),  # another version says so in its own words
        )


def devices_in(scheduler_info: Mapping[str, Any]) -> list[FleetDevice]:
    """Devices among the workers that a scheduler knows, by name; workers of other programs are left out."""
    found = [
        FleetDevice.from_json(worker[ANNOUNCEMENT])
        for worker in scheduler_info["workers"].values()
        if ANNOUNCEMENT in worker
    ]
    return sorted(found, key=lambda device: device.name)


def choose_kind(devices: Sequence[FleetDevice], name: str | None) -> list[FleetDevice]:
    """The devices to measure on: all of one kind.

    Args:
        devices: all that there are.
        name: one of the kind wanted; None where there is one kind only.

    Raises:
        InputError: no device is called so, or there are several kinds and no name.
        FleetError: no device runs this version of the package.
    """
    usable = [device for device in devices if device.trimms_version == own_version()]
    if not usable:
        versions = ", ".join(f"{device.name} has {device.trimms_version}" for device in devices)
        raise FleetError(
            f"No device has trimms {own_version()}, as here: {versions}; install the same version."
        )
    if name is not None and name not in {device.name for device in usable}:
        known = ", ".join(device.name for device in usable)
        raise InputError(f"No device of the fleet is called '{name}'; there are: {known}.")
    kinds: dict[str, list[FleetDevice]] = {}
    for device in usable:
        kinds.setdefault(device.kind, []).append(device)
    if name is None and len(kinds) > 1:
        lines = "; ".join(_described(group) for group in kinds.values())
        raise InputError(
            f"The fleet has devices of {len(kinds)} kinds, whose latencies do not compare: {lines}. "
            "Say which kind with --device NAME, the name of one of them."
        )
    return next(
        group for group in kinds.values() if name is None or name in {device.name for device in group}
    )


def _described(group: Sequence[FleetDevice]) -> str:
    about = "; ".join([group[0].fingerprint.describe(), *group[0].gpus])
    return f"{', '.join(device.name for device in group)} ({about})"
