"""Bearer tokens in the registry: kept by their hash, so that a copy of the database opens nothing."""

import hashlib
import secrets
import time
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from latency.errors import ConflictError, NotFoundError, SettingError
from latency.registry.database import Database
from latency.registry.records import TokenRecord
from latency.registry.schema import Token

SCOPES = ("read", "write")
PREFIX = "trimms_"
"""How every token starts, so that it is recognised where it should not be, in a commit say."""


class Tokens:
    """Tokens of the people and programs that may use the registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scopes: Iterable[str]) -> str:
        """A new token; it cannot be shown again.

        Args:
            name: for people, unique among the tokens, revoked ones too.
            scopes: what it allows, of `SCOPES`; "write" allows reading too.

        Raises:
            SettingError: a scope is unknown, or the name is empty.
            ConflictError: the name is taken.
        """
        wanted = sorted(set(scopes))
        unknown = [scope for scope in wanted if scope not in SCOPES]
        if unknown or not wanted or not name.strip():
            raise SettingError(
                f"A token needs a name and scopes of {', '.join(SCOPES)}; got name {name!r}, scopes {wanted}."
            )
        token = PREFIX + secrets.token_urlsafe(32)
        row = Token(
            sha256=token_hash(token), name=name, scopes=wanted, created_at=time.time(), revoked_at=None
        )
        try:
            with self._database.write() as session:
                session.add(row)
        except IntegrityError as error:
            raise ConflictError(f"There is a token named {name!r} already; choose another name.") from error
        return token

    def active(self) -> tuple[TokenRecord, ...]:
        """Tokens that are not revoked."""
        with self._database.read() as session:
            rows = session.scalars(select(Token).where(Token.revoked_at.is_(None)).order_by(Token.created_at))
            return tuple(
                TokenRecord(row.name, row.sha256, _with_implied(row.scopes), row.created_at) for row in rows
            )

    def revoke(self, name: str) -> None:
        """Take a token's rights away.

        Raises:
            NotFoundError: no active token has this name.
        """
        with self._database.write() as session:
            row = session.scalar(select(Token).where(Token.name == name, Token.revoked_at.is_(None)))
            if row is None:
                raise NotFoundError(f"There is no active token named {name!r}.")
            row.revoked_at = time.time()


def token_hash(token: str) -> str:
    """Hash of a token. It is random enough (256 bits) that no salt or slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def _with_implied(scopes: Iterable[str]) -> frozenset[str]:
    known = frozenset(scopes)
    return known | {"read"} if "write" in known else known
