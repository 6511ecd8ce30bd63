"""How to reach a fleet: its scheduler, and the files that prove who may."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from latency.errors import InputError

if TYPE_CHECKING:
    from distributed import Security


@dataclass(frozen=True, slots=True)
class FleetAddress:
    """A Dask scheduler, and how to talk to it.

    Attributes:
        scheduler: such as "tcp://10.0.0.5:8786", or "tls://…" for encrypted and authenticated connections.
        tls_ca: PEM file with the authority that has signed everybody's certificate; needed for tls://.
        tls_cert: PEM file with the own certificate.
        tls_key: PEM file with its private key.
    """

    scheduler: str
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        parts = _split(self.scheduler)
        if parts is None or parts[0] not in ("tcp", "tls"):
            raise InputError(
                f"The scheduler '{self.scheduler}' is not tcp://HOST:PORT or tls://HOST:PORT; "
                "`dask scheduler` prints its address when it starts."
            )
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        n_needed = len(files) if self.encrypted else 0
        if sum(file is not None for file in files) != n_needed:
            needs = (
                "all of --tls-ca, --tls-cert and --tls-key" if self.encrypted else "none of the --tls files"
            )
            raise InputError(f"{self.scheduler} needs {needs}; tls:// is encrypted, tcp:// is not.")
        for file in files:
            if file is not None and not file.is_file():
                raise InputError(f"The file '{file}' does not exist; give a PEM file.")

    @property
    def encrypted(self) -> bool:
        """Whether connections are encrypted and both ends prove who they are."""
        return self.scheduler.startswith("tls://")

    @property
    def danger(self) -> str | None:
        """One sentence where strangers could reach the fleet, None where they could not."""
        if self.encrypted or _is_loopback(self.scheduler):
            return None
        return (
            f"{self.scheduler} is neither encrypted nor authenticated: whoever reaches it can run code on every "
            "device. Keep it in a network of your own, or use tls:// with --tls-ca, --tls-cert and --tls-key."
        )

    def security(self) -> "Security | None":
        """What Dask needs to know for tls://, None for tcp://."""
        from distributed import Security

        if not self.encrypted:
            return None
        cert, key = str(self.tls_cert), str(self.tls_key)
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.tls_ca),
            tls_client_cert=cert,
            tls_client_key=key,
            tls_worker_cert=cert,
            tls_worker_key=key,
        )


def _split(address: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None where one is missing."""
    try:
        parts = urlsplit(address)
        return (parts.scheme, parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:  # a port that is no number
        return None


def _is_loopback(address: str) -> bool:
    parts = _split(address)
    host = parts[1] if parts else ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
