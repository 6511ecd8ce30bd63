"""The gate that every request passes: an id, a token, limits, a line in the log, a count.

Plain ASGI, since it is on the way of every prediction.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latency.errors import AccessError, LimitError, RateLimitError
from latency.service.access import Access, RateLimit, require_scope
from latency.service.metrics import ServiceMetrics
from latency.service.problems import failure, problem
from latency.service.settings import MIB, ServiceSettings

PUBLIC = ("/health/live", "/health/ready", "/openapi.json", "/", "/page/")
"""Paths, and beginnings of paths, that need no token: they show nothing of what is kept."""

_READS_BY_POST = ("/predict", "/gradient", "/layers", "/predict-onnx")
_UPLOADS = ("/spaces", "/profiles", "/rows", "/lpnets", "/predict-onnx")
_GIVEN_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")

_log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware; see the module.

    Args:
        app: what is behind the gate.
        access: knows the tokens.
        metrics: counts.
        settings: limits.
        log_request: is given what is known of each request once it is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        metrics: ServiceMetrics,
        settings: ServiceSettings,
        log_request: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._log_request = log_request
        self._app = app
        self._access = access
        self._metrics = metrics
        self._settings = settings
        self._rate = RateLimit(settings.requests_per_second, settings.burst)
        self._prefix = os.urandom(4).hex()
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = self._id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        who = ""
        self._metrics.in_progress.inc()
        try:
            refusal, who = self._examine(scope, headers, request_id)
            if refusal is None:
                await self._app(scope, self._limited(scope, receive), answer.send)
            else:
                await refusal(scope, receive, answer.send)
        except Exception as error:
            _log.error("failure", exc_info=error, extra={"request_id": request_id})
            if not answer.has_begun:
                await failure(request_id)(scope, receive, answer.send)
        finally:
            self._metrics.in_progress.dec()
            self._note(scope, answer, who, time.perf_counter() - began)

    def _note(self, scope: Scope, answer: "_Answer", who: str, seconds: float) -> None:
        """Count a request and log it."""
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.observe(scope["method"], route, answer.status, seconds)
        self._log_request(
            {
                "request_id": answer.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": answer.status,
                "ms": round(seconds * 1e3, 3),
                "token": who,
            }
        )

    def _id(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id", b"")
        if _GIVEN_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers):x}"

    def _examine(
        self, scope: Scope, headers: dict[bytes, bytes], request_id: str
    ) -> tuple[ASGIApp | None, str]:
        """Why a request is refused, None where it is not, and whose it is."""
        path, who = scope["path"], ""
        try:
            if not _is_public(path):
                token = self._access.identify(
                    headers.get(b"authorization"), headers.get(b"host"), headers.get(b"origin")
                )
                who = token.name
                self._rate.take(who)
                require_scope(token, _scope_for(scope["method"], path))
            length = headers.get(b"content-length", b"0")
            _require_size(int(length) if length.isdigit() else 0, self._body_limit(path))
        except AccessError as error:
            if who:  # known, but not allowed
                return problem(error, status=403, request_id=request_id), who
            return problem(error, request_id=request_id, headers={"WWW-Authenticate": "Bearer"}), who
        except LimitError as error:
            is_rate = isinstance(error, RateLimitError)
            wait = {"Retry-After": str(self._rate.retry_after_s)} if is_rate else {}
            return problem(error, request_id=request_id, headers=wait), who
        if headers.get(b"content-encoding", b"identity") != b"identity":
            refused = "Bodies are sent as they are: leave Content-Encoding out."
            return problem(refused, status=415, request_id=request_id), who
        return None, who

    def _body_limit(self, path: str) -> int:
        is_upload = path.endswith(_UPLOADS)
        return self._settings.upload_bytes if is_upload else self._settings.body_bytes

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Receives a body up to its limit, whatever its length was said to be."""
        limit, so_far = self._body_limit(scope["path"]), 0

        async def receive_on() -> Any:
            nonlocal so_far
            message = await receive()
            so_far += len(message.get("body", b""))
            _require_size(so_far, limit)
            return message

        return receive_on


class _Answer:
    """What becomes of a request: sends its answer on, with the request's id, and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.status, self.has_begun = 500, False
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status, self.has_begun = message["status"], True
            id_header = (b"x-request-id", self.request_id.encode())
            message["headers"] = [*message.get("headers", ()), id_header]
        await self._send(message)


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith("/page/")


def _scope_for(method: str, path: str) -> str:
    return "read" if method in ("GET", "HEAD", "OPTIONS") or path.endswith(_READS_BY_POST) else "write"


def _require_size(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        raise LimitError(f"The body is larger than the {limit / MIB:g} MiB that are allowed here.")
