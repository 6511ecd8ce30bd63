"""What the registry hands out: frozen snapshots of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A known device.

    Attributes:
        digest: hash of what makes latencies comparable, see `latency.device.DeviceFingerprint`.
        description: one line for people.
        fingerprint: the fingerprint as JSON.
        created_at: seconds since 1970.
    """

    digest: str
    description: str
    fingerprint: Mapping[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class SpaceRecord:
    """A known search space.

    Attributes:
        structure_hash: the network, see `latency.space.SearchSpace`.
        name: for people; empty where nobody gave one.
        base_sha256: its base network's file; None where it was not uploaded.
        summary: group names, full widths and layers, where the base network is known.
        created_at: seconds since 1970.
    """

    structure_hash: str
    name: str
    base_sha256: str | None
    summary: Mapping[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """A profile set without its rows.

    Attributes:
        id: hash of its header.
        structure_hash: its network.
        device_digest: its device.
        header: the header as JSON.
        reference_ms: the device's clock once it is fixed.
        n_train: training candidates measured, passes counted.
        n_held_out: held-out candidates measured, passes counted.
        n_failed: measurements that failed.
        created_at: seconds since 1970.
    """

    id: str
    structure_hash: str
    device_digest: str
    header: Mapping[str, Any]
    reference_ms: float | None
    n_train: int
    n_held_out: int
    n_failed: int
    created_at: float


@dataclass(frozen=True, slots=True)
class LPNetRecord:
    """A stored LPNet.

    Attributes:
        id: hash of its manifest file: the version that every prediction names.
        structure_hash: its network.
        device_digest: its device.
        manifest: `latency.predictor.LPNetManifest` as JSON.
        files: SHA-256 of each of its files.
        created_at: seconds since 1970.
    """

    id: str
    structure_hash: str
    device_digest: str
    manifest: Mapping[str, Any]
    files: Mapping[str, str]
    created_at: float


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Work that takes longer than a request.

    Attributes:
        id: random.
        kind: what is done, such as "train".
        state: where it is.
        arguments: what was asked for.
        result: what came of it; None before it succeeds.
        error: why it failed; None otherwise.
        cancel_asked: whether somebody asked to cancel it.
        attempts: how often it was begun; more than once where a server died.
        created_at: seconds since 1970.
        finished_at: seconds since 1970; None before.
    """

    id: str
    kind: str
    state: JobState
    arguments: Mapping[str, Any]
    result: Mapping[str, Any] | None
    error: str | None
    cancel_asked: bool
    attempts: int
    created_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A bearer token as far as it is known: by its hash.

    Attributes:
        name: for people.
        sha256: hash of the token.
        scopes: what it allows, of "read" and "write".
        created_at: seconds since 1970.
    """

    name: str
    sha256: str
    scopes: frozenset[str]
    created_at: float
