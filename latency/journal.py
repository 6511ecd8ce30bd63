"""Appending to a profile set so that a crash at any moment costs at most the line being written."""

import contextlib
import errno
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from latency.errors import DeviceMismatchError, EnvironmentFailure, ProfileError
from latency.profile_rows import FORMAT_NAME, ProfileHeader, ProfileRow, RowKey
from latency.profiles import REFERENCE_ROWS, ProfileSet, Round, parse_profile

# How every profile set starts.
_MAGIC = json.dumps({"kind": FORMAT_NAME}).encode().rstrip(b"}")


class RowSink(Protocol):
    """Where a profile's rows go besides its file, such as a service; a `LatencyError` ends the profiling."""

    def start(self, header: ProfileHeader, rows: Sequence[ProfileRow]) -> None:
        """Begin the profile set with this header, or go on with it, with the rows that are on disk already."""

    def append(self, row: ProfileRow) -> None:
        """Take a row that has just been measured; it is on disk."""


class ProfileJournal:
    """An open profile set; every line is on disk when the call that wrote it returns.

    Use `open_journal`. One process at a time may have the file open for writing.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file
        content = file.readall()
        if not _MAGIC.startswith(content[: len(_MAGIC)]):
            raise ProfileError(f"{path} is no profile set, and is left as it is; choose another file.")
        complete = content.rfind(b"\n") + 1
        found = parse_profile(content, path)
        if complete < len(content):  # a line torn by a crash
            file.truncate(complete)
            file.seek(complete)
        self.header = found.header if found else None
        self._rows: dict[RowKey, ProfileRow] = {row.key: row for row in found.rows} if found else {}
        self._reference_ms = found.fixed_reference_ms if found else None
        self.rounds: tuple[Round, ...] = found.rounds if found else ()

    @property
    def keys(self) -> frozenset[RowKey]:
        """What has been measured, or has failed, already."""
        return frozenset(self._rows)

    @property
    def profile(self) -> ProfileSet:
        """Everything written so far.

        Raises:
            ProfileError: not even the header is written.
        """
        if self.header is None:
            raise ProfileError(f"{self.path} has no header yet.")
        return ProfileSet(self.header, tuple(self._rows.values()), self._reference_ms, self.rounds)

    def start(self, header: ProfileHeader) -> None:
        """Write the header; the file must have none."""
        if self.header is not None:
            raise ProfileError(f"{self.path} has a header already.")
        self._write(header.to_json())
        self.header = header

    def append(self, row: ProfileRow) -> None:
        """Write a row, and fix the device's clock once enough rows are there.

        Raises:
            ProfileError: the candidate is in the file already.
            EnvironmentFailure: the file cannot be written.
        """
        if row.key in self._rows:
            raise ProfileError(f"{self.path} holds {row.split} widths {list(row.widths)} already.")
        self._write(row.to_json())
        self._rows[row.key] = row
        if self._reference_ms is None and len(self.profile.ok_rows) >= REFERENCE_ROWS:
            self.fix_reference()

    def fix_reference(self) -> None:
        """Write the device's clock, unless it is there already or nothing has been measured."""
        if self._reference_ms is None and self.profile.ok_rows:
            reference_ms = self.profile.reference_ms
            self._write({"kind": "reference", "reference_ms": reference_ms})
            self._reference_ms = reference_ms

    def begin_round(self, chosen: Round) -> None:
        """Write down what an active round chose, before any of it is measured: a fit is not made twice alike."""
        self._write({"kind": "round", "widths": [list(widths) for widths in chosen]})
        self.rounds = (*self.rounds, chosen)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise EnvironmentFailure(
                f"Cannot write {self.path} ({error.strerror}); what it holds is safe. "
                "Free some space, then run the same command again."
            ) from error


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[ProfileJournal]:
    """The profile set at `path` for appending, made where it is missing, a torn last line cut off.

    Raises:
        ProfileError: another process is writing it, or it is damaged.
        EnvironmentFailure: it cannot be opened for writing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    except OSError as error:
        raise EnvironmentFailure(f"Cannot open the profile set {path}: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProfileError(
                f"Another process is profiling into {path}; wait for it to end, or choose another file."
            ) from None
        except OSError as error:
            raise EnvironmentFailure(
                f"Cannot lock the profile set {path}: {error.strerror}; let --out be a folder on a file system with "
                "locks, such as a local disk."
            ) from error
        _sync_folder(path.parent)
        yield ProfileJournal(path, file)


def require_same(found: ProfileHeader, wanted: ProfileHeader, path: Path) -> None:
    """Make sure that measurements under `wanted` may be added to the profile set `found` at `path`.

    Raises:
        DeviceMismatchError: it was measured on another device.
        ProfileError: it belongs to another network, protocol, seed or grid.
    """
    advice = "continue it as it was begun, or profile into another file"
    if found.structure_hash != wanted.structure_hash:
        raise ProfileError(
            f"{path} belongs to another network: structure hash {found.structure_hash[:12]} there, "
            f"{wanted.structure_hash[:12]} here; {advice}."
        )
    if found.fingerprint.digest != wanted.fingerprint.digest:
        differences = "; ".join(found.fingerprint.differences(wanted.fingerprint))
        raise DeviceMismatchError(f"{path} was measured on another device ({differences}, here); {advice}.")
    for name in ("protocol", "seed", "grid"):
        mine, theirs = getattr(wanted, name), getattr(found, name)
        if mine != theirs:
            raise ProfileError(
                f"{path} was begun with another {name}: {theirs} there, {mine} here; {advice}."
            )


def _sync_folder(folder: Path) -> None:
    """Put the file's name on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
