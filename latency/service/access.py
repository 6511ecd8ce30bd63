"""Who may do what: bearer tokens with scopes; none only where no other machine can reach the service."""

import hashlib
import hmac
import threading
import time
from dataclasses import dataclass

from latency.errors import AccessError, RateLimitError
from latency.registry.records import TokenRecord
from latency.registry.tokens import Tokens
from latency.service.settings import is_loopback

REFRESH_S = 2.0
"""A token that was made or revoked elsewhere counts after so long."""

ANONYMOUS = TokenRecord("anonymous", "", frozenset({"read", "write"}), 0.0)


class Access:
    """Knows the active tokens.

    Args:
        tokens: the registry's tokens.
        listens_on_loopback: whether no other machine can reach the service. Only then, and while there are no
            tokens, requests need none.
    """

    def __init__(self, tokens: Tokens, *, listens_on_loopback: bool) -> None:
        self._tokens = tokens
        self._is_local = listens_on_loopback
        self._active = tokens.active()

    def refresh(self) -> None:
        """Read the tokens anew."""
        self._active = self._tokens.active()

    def identify(self, authorization: bytes | None, host: bytes | None, origin: bytes | None) -> TokenRecord:
        """The token that a request shows.

        Args:
            authorization: the header `Authorization`.
            host: the header `Host`.
            origin: the header `Origin`, which browsers send.

        Raises:
            AccessError: it shows none that is active.
        """
        active = self._active
        if not active and self._is_local:
            _require_local(host, origin)
            return ANONYMOUS
        if authorization is None:
            raise AccessError("A token is needed: send the header 'Authorization: Bearer TOKEN'.")
        kind, _, token = authorization.partition(b" ")
        shown = hashlib.sha256(token.strip()).hexdigest()
        found = None
        for known in active:  # all of them, so that time tells nothing
            if hmac.compare_digest(known.sha256, shown):
                found = known
        if found is None or kind.lower() != b"bearer":
            raise AccessError("The token is unknown or revoked; make one with `trimms token create`.")
        return found


def require_scope(token: TokenRecord, scope: str) -> None:
    """Make sure that a token allows something.

    Raises:
        AccessError: it does not.
    """
    if scope not in token.scopes:
        has = ", ".join(sorted(token.scopes))
        raise AccessError(f"Token {token.name!r} allows {has}; this needs {scope}.")


def _require_local(host: bytes | None, origin: bytes | None) -> None:
    """Refuse what a page of somebody else's makes a browser on this machine send."""
    for name, value in (("Host", host), ("Origin", origin)):
        if value is None:
            continue
        text = value.decode("latin-1").rpartition("//")[2]
        bare = text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() else text
        if not is_loopback(bare):
            raise AccessError(
                f"{name} is {value.decode('latin-1')!r}; without tokens only localhost is served."
            )


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """A token bucket for each name.

    Args:
        per_second: requests in the long run.
        burst: requests at once.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> None:
        """Count a request.

        Raises:
            RateLimitError: there were too many; after `retry_after_s` the next is answered.
        """
        now = time.monotonic()
        with self._lock:
            bucket = self._buckets.setdefault(name, _Bucket(float(self._burst), now))
            refilled = bucket.tokens + (now - bucket.filled_at) * self._per_second
            bucket.tokens, bucket.filled_at = min(float(self._burst), refilled), now
            if bucket.tokens >= 1.0:
                bucket.tokens -= 1.0
                return
        raise RateLimitError(
            f"More than {self._per_second:g} requests a second with token {name!r}; "
            "slow down, or put many width vectors into one request."
        )

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which another request is answered."""
        return max(1, round(1.0 / self._per_second))
