"""Profile sets in the registry: rows arrive in any portions, any number of times, and are kept once."""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from latency.errors import ConflictError, NotFoundError, ProfileError
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import REFERENCE_ROWS, ProfileSet, parse_profile
from latency.registry.database import Database
from latency.registry.networks import Networks
from latency.registry.records import ProfileRecord
from latency.registry.schema import Measurement, Profile
from latency.registry.strict import require_types

# Keys in one query: both databases take more, and plans stay small.
_KEYS_PER_QUERY = 500


class Profiles:
    """Profile sets, each under the hash of its header."""

    def __init__(self, database: Database, networks: Networks) -> None:
        self._database = database
        self._networks = networks

    def all(self, structure_hash: str | None = None, device_digest: str | None = None) -> list[ProfileRecord]:
        """Profile sets without their rows, the oldest first; of one network or device where it is given."""
        wanted = select(Profile).order_by(Profile.created_at)
        if structure_hash is not None:
            wanted = wanted.where(Profile.structure_hash == structure_hash)
        if device_digest is not None:
            wanted = wanted.where(Profile.device_digest == device_digest)
        with self._database.read() as session:
            return [_record(session, row) for row in session.scalars(wanted)]

    def get(self, profile_id: str) -> ProfileRecord:
        """A profile set without its rows.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.read() as session:
            return _record(session, _found(session, profile_id))

    def begin(self, header: ProfileHeader) -> str:
        """The id of the profile set with this header, made known if it is not."""
        require_types(header)
        profile_id = header_id(header)
        row = {
            "id": profile_id,
            "structure_hash": header.structure_hash,
            "device_digest": header.fingerprint.digest,
            "header": header.to_json(),
            "reference_ms": None,
            "created_at": time.time(),
        }
        with self._database.write() as session:
            self._networks.ensure_device(session, header.fingerprint)
            self._networks.ensure_space(session, header.structure_hash)
            self._database.insert_new(session, Profile, [row])
        return profile_id

    def append(
        self, profile_id: str, rows: Iterable[ProfileRow], *, reference_ms: float | None = None
    ) -> int:
        """Keep rows; those that are kept already are left alone. Returns how many were new.

        Args:
            profile_id: the profile set.
            rows: measurements of its candidates.
            reference_ms: the device's clock as the rows' file has it; the first that is known stays.

        Raises:
            NotFoundError: the profile set is not known.
            ProfileError: a row does not belong to the profile set's network.
            ConflictError: a row differs from the one that is kept for the same candidate, split and pass.
        """
        rows = tuple(rows)
        with self._database.write() as session:
            profile = _found(session, profile_id)
            _require_fitting(rows, profile)
            values = {row["key"]: row for row in (_values(profile_id, row) for row in rows)}
            _require_same(session, profile_id, values)
            n_new = self._database.insert_new(session, Measurement, list(values.values()))
            if profile.reference_ms is None:
                profile.reference_ms = reference_ms or _clock(session, profile)
        return n_new

    def upload(self, content: bytes) -> tuple[str, int]:
        """Keep a whole `profile.jsonl`; returns the profile set's id and how many rows were new.

        Raises:
            ProfileError: it is damaged.
            ConflictError: see `append`.
        """
        profile = parse_profile(content, Path("the upload"))
        if profile is None:
            raise ProfileError("The upload has no complete line; upload a profile.jsonl.")
        profile_id = self.begin(profile.header)
        return profile_id, self.append(profile_id, profile.rows, reference_ms=profile.fixed_reference_ms)

    def read(self, profile_id: str) -> ProfileSet:
        """The profile set with its rows, in the order in which they arrived.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.read() as session:
            return _profile_set(session, _found(session, profile_id))

    def page(self, profile_id: str, *, after: int, limit: int) -> list[tuple[int, ProfileRow]]:
        """Rows whose number is above `after`, with their numbers, at most `limit` of them.

        Raises:
            NotFoundError: the profile set is not known.
        """
        with self._database.read() as session:
            _found(session, profile_id)
            wanted = (
                select(Measurement.id, Measurement.row)
                .where(Measurement.profile_id == profile_id, Measurement.id > after)
                .order_by(Measurement.id)
                .limit(limit)
            )
            return [(number, _parsed_row(text)) for number, text in session.execute(wanted)]


def header_id(header: ProfileHeader) -> str:
    """Identity of a profile set: hash of its header, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(header.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def _found(session: Session, profile_id: str) -> Profile:
    row = session.get(Profile, profile_id)
    if row is None:
        raise NotFoundError(f"There is no profile set {profile_id!r}.")
    return row


def _require_fitting(rows: Iterable[ProfileRow], profile: Profile) -> None:
    full_widths = profile.header["full_widths"]
    for row in rows:
        if len(row.widths) != len(full_widths):
            raise ProfileError(f"A row has {len(row.widths)} widths, the profile {len(full_widths)} groups.")
        if any(not 0 <= width <= full for width, full in zip(row.widths, full_widths, strict=True)):
            raise ProfileError(f"Widths {list(row.widths)} are not within the full ones, {full_widths}.")


def _values(profile_id: str, row: ProfileRow) -> dict[str, Any]:
    require_types(row)
    try:
        text = json.dumps(row.to_json(), allow_nan=False)
    except ValueError as error:
        raise ProfileError(f"A ProfileRow is damaged: {error}.") from error
    key = hashlib.sha256(json.dumps(row.key).encode()).hexdigest()[:32]
    return {"profile_id": profile_id, "key": key, "split": row.split, "status": row.status, "row": text}


def _require_same(session: Session, profile_id: str, values: dict[str, dict[str, Any]]) -> None:
    keys = list(values)
    for first in range(0, len(keys), _KEYS_PER_QUERY):
        wanted = select(Measurement.key, Measurement.row).where(
            Measurement.profile_id == profile_id, Measurement.key.in_(keys[first : first + _KEYS_PER_QUERY])
        )
        for key, text in session.execute(wanted):
            if text != values[key]["row"]:
                widths = json.loads(text)["widths"]
                raise ConflictError(
                    f"Another measurement of widths {widths}, of the same split and pass, is kept already; "
                    "give the new one a pass of its own, or profile with another seed."
                )


def _clock(session: Session, profile: Profile) -> float | None:
    """The device's clock, once enough has been measured."""
    known = _profile_set(session, profile)
    return known.reference_ms if len(known.ok_rows) >= REFERENCE_ROWS else None


def _profile_set(session: Session, profile: Profile) -> ProfileSet:
    wanted = select(Measurement.row).where(Measurement.profile_id == profile.id).order_by(Measurement.id)
    rows = tuple(_parsed_row(text) for text in session.scalars(wanted))
    return ProfileSet(ProfileHeader.from_json(profile.header), rows, profile.reference_ms)


def _parsed_row(text: str) -> ProfileRow:
    return ProfileRow.from_json(json.loads(text))


def _record(session: Session, row: Profile) -> ProfileRecord:
    counted = (
        select(Measurement.split, Measurement.status, func.count())
        .where(Measurement.profile_id == row.id)
        .group_by(Measurement.split, Measurement.status)
    )
    counts = {(split, status): n for split, status, n in session.execute(counted)}
    return ProfileRecord(
        id=row.id,
        structure_hash=row.structure_hash,
        device_digest=row.device_digest,
        header=row.header,
        reference_ms=row.reference_ms,
        n_train=counts.get(("train", "ok"), 0),
        n_held_out=counts.get(("held_out", "ok"), 0),
        n_failed=sum(n for (_, status), n in counts.items() if status == "failed"),
        created_at=row.created_at,
    )
