"""Errors over HTTP, after RFC 9457: `application/problem+json`, named as the package's own errors.

`type` is `urn:trimms:` and the name of an error in `latency.errors`, so that a client raises what the
registry raised.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from latency import errors
from latency.errors import LatencyError

CONTENT_TYPE = "application/problem+json"
URN = "urn:trimms:"

STATUS: Mapping[type[LatencyError], int] = {
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.AccessError: 401,
    errors.RateLimitError: 429,
    errors.LimitError: 413,
    errors.InputError: 422,
    errors.NotInstalledError: 501,
    errors.EnvironmentFailure: 503,
}
"""Status of each kind of error; a subclass without one of its own has its parent's."""

_log = logging.getLogger(__name__)


def status_of(error: LatencyError) -> int:
    """HTTP status of an error."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def problem(
    error: LatencyError | str,
    *,
    status: int | None = None,
    request_id: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as a response.

    Args:
        error: the error, or what was wrong where it is none of this package's.
        status: its status, where it is not the usual one.
        request_id: the request that it answers.
        headers: further headers.
    """
    known = error if isinstance(error, LatencyError) else None
    status = status or (status_of(known) if known else 500)
    body: dict[str, Any] = {
        "type": URN + type(known).__name__ if known else "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
        "instance": request_id,
    }
    return Response(
        msgspec.json.encode(body), status_code=status, headers=dict(headers or {}), media_type=CONTENT_TYPE
    )


def failure(request_id: str) -> Response:
    """The answer where the service itself failed."""
    return problem(
        f"The service failed; its log has the reason under request {request_id}.", request_id=request_id
    )


def add_handlers(app: FastAPI) -> None:
    """Have an app answer every error with a problem."""
    app.add_exception_handler(LatencyError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(SQLAlchemyError, _on_database_error)
    app.add_exception_handler(UnicodeEncodeError, _on_strange_text)


def id_of(request: Request) -> str:
    """The request's id, as the gate gave it."""
    return str(request.scope.get("state", {}).get("request_id", ""))


async def _on_own_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LatencyError)
    if isinstance(error, errors.EnvironmentFailure):
        _log.error("environment failure", extra={"request_id": id_of(request), "error": str(error)})
    return problem(error, request_id=id_of(request))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return problem(errors.InputError(said), request_id=id_of(request))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json for what there is."
    return problem(detail, status=error.status_code, request_id=id_of(request), headers=error.headers)


async def _on_database_error(request: Request, error: Exception) -> Response:
    if isinstance(error, DataError):  # such as a NUL in a text
        return problem(
            errors.InputError(f"The database refuses a value: {error.orig}."), request_id=id_of(request)
        )
    _log.error("database", exc_info=error, extra={"request_id": id_of(request)})
    return problem(
        errors.RegistryError("The database does not answer as it should."), request_id=id_of(request)
    )


async def _on_strange_text(request: Request, error: Exception) -> Response:
    return problem(errors.InputError(f"A text is no Unicode: {error}."), request_id=id_of(request))
