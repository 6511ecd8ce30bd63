"""First tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "devices",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_devices"),
    )
    op.create_table(
        "spaces",
        sa.Column("structure_hash", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("base_sha256", sa.String(), nullable=True),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("structure_hash", name="pk_spaces"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("cancel_asked", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "tokens",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_tokens"),
        sa.UniqueConstraint("name", name="uq_tokens_name"),
    )
    _make_tables_of_both()


def _make_tables_of_both() -> None:
    """Tables that belong to a space and a device."""
    for table, columns in (
        (
            "profiles",
            [
                sa.Column("header", sa.JSON(), nullable=False),
                sa.Column("reference_ms", sa.Double(), nullable=True),
            ],
        ),
        (
            "lpnets",
            [sa.Column("manifest", sa.JSON(), nullable=False), sa.Column("files", sa.JSON(), nullable=False)],
        ),
    ):
        op.create_table(
            table,
            sa.Column("id", sa.String(), nullable=False),
            sa.Column("structure_hash", sa.String(), nullable=False),
            sa.Column("device_digest", sa.String(), nullable=False),
            *columns,
            sa.Column("created_at", sa.Double(), nullable=False),
            sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
            sa.ForeignKeyConstraint(
                ["structure_hash"], ["spaces.structure_hash"], name=f"fk_{table}_structure_hash_spaces"
            ),
            sa.ForeignKeyConstraint(
                ["device_digest"], ["devices.digest"], name=f"fk_{table}_device_digest_devices"
            ),
        )
        op.create_index(f"ix_{table}_structure_hash", table, ["structure_hash"])
        op.create_index(f"ix_{table}_device_digest", table, ["device_digest"])
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("profile_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("row", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name="fk_measurements_profile_id_profiles"),
    )
    op.create_index("ux_measurements_profile_key", "measurements", ["profile_id", "key"], unique=True)


def downgrade() -> None:
    """Drop the tables."""
    for table in ("measurements", "lpnets", "profiles", "tokens", "jobs", "spaces", "devices"):
        op.drop_table(table)
