"""Tables of the registry.

A change here needs a migration beside it: `migrations/README.md`.
"""

from typing import Any, ClassVar

from sqlalchemy import JSON, Double, ForeignKey, Index, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Root of the tables; constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double()}


class Device(Base):
    """A machine with its runtime and settings: a fingerprint."""

    __tablename__ = "devices"

    digest: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    fingerprint: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float]


class Space(Base):
    """A search space; its base network is kept where somebody has uploaded it."""

    __tablename__ = "spaces"

    structure_hash: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    base_sha256: Mapped[str | None]
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float]


class Profile(Base):
    """A profile set's header; its identity is the header's hash."""

    __tablename__ = "profiles"

    id: Mapped[str] = mapped_column(primary_key=True)
    structure_hash: Mapped[str] = mapped_column(ForeignKey("spaces.structure_hash"), index=True)
    device_digest: Mapped[str] = mapped_column(ForeignKey("devices.digest"), index=True)
    header: Mapped[dict[str, Any]] = mapped_column(JSON)
    reference_ms: Mapped[float | None]
    created_at: Mapped[float]


class Measurement(Base):
    """A profile set's row, once for each of its keys."""

    __tablename__ = "measurements"
    __table_args__ = (Index("ux_measurements_profile_key", "profile_id", "key", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id"))
    key: Mapped[str]
    split: Mapped[str]
    status: Mapped[str]
    row: Mapped[str] = mapped_column(Text)


class LPNet(Base):
    """A fitted LPNet; its identity is the hash of its manifest file, which names all its files by hash."""

    __tablename__ = "lpnets"

    id: Mapped[str] = mapped_column(primary_key=True)
    structure_hash: Mapped[str] = mapped_column(ForeignKey("spaces.structure_hash"), index=True)
    device_digest: Mapped[str] = mapped_column(ForeignKey("devices.digest"), index=True)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)
    files: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[float]


class Job(Base):
    """Work that takes longer than a request."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    arguments: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)
    cancel_asked: Mapped[bool]
    attempts: Mapped[int]
    created_at: Mapped[float]
    heartbeat_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class Token(Base):
    """A bearer token, by its hash alone."""

    __tablename__ = "tokens"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]
