"""A profile's rows go into a service's registry as they are measured; what the service cannot take now goes later."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from latency.client import ServiceClient
from latency.errors import InputError, LatencyError
from latency.profile_rows import ProfileHeader, ProfileRow, RowKey

Announce = Callable[[str], None]

# Each try costs a device that measures for itself up to three of these, when the service's machine is gone.
_ANSWER_S = 10.0
# Pause after a failure; it doubles from one to the next.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 600.0
# Some hundred kilobytes.
_ROWS_PER_REQUEST = 200


class RegistrySink:
    """Sends rows to a service, a `latency.journal.RowSink`.

    Once a profile has begun nothing that the service does ends it: rows that are not taken wait, here as on disk, and
    go along with a later one.

    Args:
        service: where they go.
        announce: called with a line when rows begin to wait, and when they no longer do.
        now: clock in seconds.
    """

    def __init__(
        self,
        service: ServiceClient,
        announce: Announce = lambda line: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service, self._announce, self._now = service, announce, now
        self._header: ProfileHeader | None = None
        self._profile_id: str | None = None
        self._waiting: dict[RowKey, ProfileRow] = {}
        self._kept: set[RowKey] = set()
        self._pause_s = 0.0
        self._next_try = 0.0

    def start(self, header: ProfileHeader, rows: Sequence[ProfileRow]) -> None:
        """Begin the profile set, or go on with it, and send the rows that the service may not have yet.

        Raises:
            InputError: the service refuses them, before anything was measured.
        """
        has_begun, self._header = self._header is not None, header
        self._waiting |= {row.key: row for row in rows if row.key not in self._kept}
        try:
            self._send(header)
        except LatencyError as error:
            if isinstance(error, InputError) and not has_begun:
                raise
            self._hold(error)

    def append(self, row: ProfileRow) -> None:
        """Send a row, or have it wait."""
        assert self._header is not None, "start comes first"
        self._waiting[row.key] = row
        if self._now() < self._next_try:
            return
        try:
            self._send(self._header)
        except LatencyError as error:
            self._hold(error)

    def finish(self, base: Path, profile: Path) -> None:
        """Send the whole file, with the device's clock, and the network where the service lacks it.

        Args:
            base: the network's `base.onnx`.
            profile: the profile set's file.

        Raises:
            LatencyError: the service does not take them; the message says that nothing is lost.
        """
        assert self._header is not None, "start comes first"
        structure_hash = self._header.structure_hash
        try:
            self._service.upload_profile(profile.read_bytes())
            spaces = self._service.spaces()
            if not any(space.structure_hash == structure_hash and space.base_sha256 for space in spaces):
                self._service.upload_space(base)
        except LatencyError as error:
            raise type(error)(
                f"The profile is complete in {profile}, but the registry does not hold all of it: {error} "
                "Give the same command again to send the rest; nothing is measured twice."
            ) from error

    def _send(self, header: ProfileHeader) -> None:
        if self._profile_id is None:
            self._profile_id = self._service.begin_profile(header)
        while self._waiting:
            batch = list(itertools.islice(self._waiting.values(), _ROWS_PER_REQUEST))
            self._service.upload_rows(self._profile_id, batch)
            for row in batch:
                del self._waiting[row.key]
                self._kept.add(row.key)
        if self._pause_s:
            self._announce("the registry takes rows again; those that waited are there")
        self._pause_s = self._next_try = 0.0

    def _hold(self, error: LatencyError) -> None:
        if not self._pause_s:
            self._announce(f"rows for the registry wait, the profile goes on: {error}")
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._next_try = self._now() + self._pause_s


@contextlib.contextmanager
def streaming(
    url: str, *, base: Path, profile: Path, announce: Announce = lambda line: None
) -> Iterator[RegistrySink]:
    """A sink for a profile's rows; at the end the registry holds all of them, or that is an error.

    Args:
        url: the service.
        base: the network's `base.onnx`.
        profile: the profile set's file.
        announce: see `RegistrySink`.

    Raises:
        SettingError: the URL is none.
        LatencyError: as `RegistrySink.start` and `finish`.
    """
    with ServiceClient(url, timeout_s=_ANSWER_S) as service:
        sink = RegistrySink(service, announce)
        yield sink
        sink.finish(base, profile)
