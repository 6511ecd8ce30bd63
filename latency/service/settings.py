"""What a service allows and where it listens."""

import ipaddress
from dataclasses import dataclass

from latency.errors import SettingError

MIB = 2**20


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Limits of a service.

    Attributes:
        body_bytes: largest body of a request that uploads no file.
        upload_bytes: largest uploaded file.
        batch_rows: most width vectors in one request.
        requests_per_second: requests of one token that are answered in the long run.
        burst: requests of one token that may come at once.
        kept_predictors: LPNets that are held in memory, the last used ones.
        run_jobs: whether this process carries out jobs.
    """

    body_bytes: int = 8 * MIB
    upload_bytes: int = 512 * MIB
    batch_rows: int = 4096
    requests_per_second: float = 20_000.0
    burst: int = 20_000
    kept_predictors: int = 64
    run_jobs: bool = True

    def __post_init__(self) -> None:
        for name in (
            "body_bytes",
            "upload_bytes",
            "batch_rows",
            "requests_per_second",
            "burst",
            "kept_predictors",
        ):
            if not getattr(self, name) > 0:
                raise SettingError(f"The service's {name} is a number above 0; got {getattr(self, name)!r}.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
