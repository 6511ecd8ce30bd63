"""The probe of a device, kept in a file: its staircases with the fingerprint of the device they belong to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from latency.device import DeviceFingerprint, DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, ProfileError
from latency.probe import ProbeResult

FORMAT_NAME = "trimms-probe"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class DeviceProbe:
    """What probing a device found out.

    Attributes:
        fingerprint: the device, its settings included.
        result: its staircases and the step read off them.
    """

    fingerprint: DeviceFingerprint
    result: ProbeResult

    def to_json(self) -> dict[str, Any]:
        """The probe as a JSON object."""
        return {
            "kind": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint.to_json(),
            "result": self.result.to_json(),
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Probe from a JSON file.

        Raises:
            ProfileError: the file is missing, damaged, or of another kind.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if (record["kind"], record["version"]) != (FORMAT_NAME, FORMAT_VERSION):
                raise ProfileError(
                    f"'{path}' is {record['kind']} version {record['version']}; "
                    f"known is {FORMAT_NAME} version {FORMAT_VERSION}."
                )
            return cls(
                fingerprint=DeviceFingerprint.from_json(record["fingerprint"]),
                result=ProbeResult.from_json(record["result"]),
            )
        except FileNotFoundError as error:
            raise ProfileError(f"'{path}' does not exist; run `trimms probe` first.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProfileError(
                f"'{path}' is damaged ({error!r}); delete it and run `trimms probe` again."
            ) from error


def require_probed_here(probe: DeviceProbe, settings: DeviceSettings, path: Path) -> ProbeResult:
    """The probe's result, if it belongs to this device at these settings.

    Raises:
        DeviceMismatchError: it belongs to another one.
    """
    here = fingerprint(settings)
    if here.digest != probe.fingerprint.digest:
        differences = "; ".join(probe.fingerprint.differences(here))
        raise DeviceMismatchError(
            f"'{path}' was probed on another device ({differences}); delete it, or give another --out."
        )
    return probe.result
