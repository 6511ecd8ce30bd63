"""Profile sets: rows uploaded in any portions, read in pages or as a parquet file."""

import dataclasses
import io
import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from starlette.status import HTTP_201_CREATED

from latency.errors import ProfileError
from latency.profile_rows import ProfileRow
from latency.profiles import ProfileSet
from latency.registry.records import ProfileRecord
from latency.service.state import Body, Parts, binary_body

router = APIRouter(prefix="/v1/profiles", tags=["profiles"])

JSON_LINES = "application/jsonl"
PARQUET = "application/vnd.apache.parquet"


@dataclass(frozen=True, slots=True)
class Kept:
    """What an upload came to.

    Attributes:
        id: the profile set.
        n_new: rows that were not there before.
    """

    id: str
    n_new: int


@dataclass(frozen=True, slots=True)
class RowPage:
    """Rows in the order in which they arrived.

    Attributes:
        rows: lines of a `profile.jsonl`.
        next_after: `after` of the next page; None on the last one.
    """

    rows: list[dict[str, Any]]
    next_after: int | None


@dataclass(frozen=True, slots=True)
class MeasuredLatencies:
    """Candidates of a split with their latencies by the device's clock.

    Attributes:
        widths: [n, n_groups].
        latency_ms: [n].
        relative_stderr: [n].
    """

    widths: list[list[int]]
    latency_ms: list[float]
    relative_stderr: list[float]


@router.get("")
def list_profiles(
    service: Parts, structure_hash: str | None = None, device_digest: str | None = None
) -> list[ProfileRecord]:
    """Profile sets, the oldest first; of one network or one device if asked."""
    return service.registry.profiles.all(structure_hash, device_digest)


@router.post(
    "",
    status_code=HTTP_201_CREATED,
    openapi_extra=binary_body(JSON_LINES, "A profile.jsonl, whole or as far as it has come."),
)
def upload_profile(body: Body, service: Parts) -> Kept:
    """Keep a profile set; what is there already is left alone, so an upload can be repeated."""
    return Kept(*service.registry.profiles.upload(body))


@router.get("/{profile_id}")
def show_profile(profile_id: str, service: Parts) -> ProfileRecord:
    """A profile set without its rows."""
    return service.registry.profiles.get(profile_id)


@router.post(
    "/{profile_id}/rows",
    openapi_extra=binary_body(JSON_LINES, "Lines of rows as in a profile.jsonl, without its first line."),
)
def upload_rows(profile_id: str, body: Body, service: Parts) -> Kept:
    """Keep rows as they are measured; those that are there already are left alone."""
    rows = [_row(number, line) for number, line in enumerate(body.splitlines(), 1) if line.strip()]
    return Kept(profile_id, service.registry.profiles.append(profile_id, rows))


@router.get("/{profile_id}/rows")
def page_rows(
    profile_id: str,
    service: Parts,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> RowPage:
    """Rows in pages: ask again with `after` set to `next_after` until that is null."""
    numbered = service.registry.profiles.page(profile_id, after=after, limit=limit)
    rows = [row.to_json() for _, row in numbered]
    return RowPage(rows, numbered[-1][0] if len(numbered) == limit else None)


@router.get("/{profile_id}/measured")
def measured(profile_id: str, service: Parts, held_out: bool = False) -> MeasuredLatencies:
    """Measured candidates of the training split, or the held-out one, at the pace of the device's clock."""
    arrays = service.registry.profiles.read(profile_id).arrays("held_out" if held_out else "train")
    return MeasuredLatencies(
        arrays.widths.tolist(), arrays.latency_ms.tolist(), arrays.relative_stderr.tolist()
    )


@router.get("/{profile_id}/jsonl", response_class=Response)
def download_jsonl(profile_id: str, service: Parts) -> Response:
    """The profile set as a profile.jsonl."""
    profile = service.registry.profiles.read(profile_id)
    records = [profile.header.to_json(), *(row.to_json() for row in profile.rows)]
    if profile.fixed_reference_ms is not None:
        records.append({"kind": "reference", "reference_ms": profile.fixed_reference_ms})
    return Response("".join(json.dumps(record) + "\n" for record in records), media_type=JSON_LINES)


@router.get("/{profile_id}/parquet", response_class=Response)
def download_parquet(profile_id: str, service: Parts) -> Response:
    """The rows as a parquet file, the header as JSON in its metadata under `trimms`."""
    return Response(_parquet(service.registry.profiles.read(profile_id)), media_type=PARQUET)


def _row(number: int, line: bytes) -> ProfileRow:
    try:
        record = json.loads(line)
        if record.get("kind") != "row":
            raise ValueError(f"kind is {record.get('kind')!r}, not 'row'")
        return ProfileRow.from_json(record)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, ProfileError) as error:
        raise ProfileError(f"Line {number} is no row of a profile: {error}.") from error


def _parquet(profile: ProfileSet) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        field.name: [getattr(row, field.name) for row in profile.rows]
        for field in dataclasses.fields(ProfileRow)
    }
    table = pa.table(columns).replace_schema_metadata({"trimms": json.dumps(profile.header.to_json())})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()
