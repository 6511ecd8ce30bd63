"""How many milliseconds: predictions, gradients, layers' shares. The hot path of the service.

Plain ASGI in front of FastAPI, whose machinery takes longer than a prediction; their part of the OpenAPI schema
is written out here.
"""

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from latency.errors import LatencyError
from latency.npy import NPY
from latency.predictor import FloatArray, Predictor
from latency.service.problems import problem
from latency.service.state import Service
from latency.service.vectors import (
    Encoded,
    GradientAnswer,
    LayersAnswer,
    as_json,
    encode_prediction,
    read_widths,
)

ROWS_IN_LOOP = 64
"""Larger batches are priced in a thread, so that others do not wait."""

PREFIX = "/v1/lpnets/{lpnet_id}/"
_PATH = re.compile(r"/v1/lpnets/([^/]+)/(predict|gradient|layers)")

Answer = Callable[[str, Predictor, Any, bool], Encoded]


def _predict(lpnet_id: str, predictor: Predictor, widths: Any, as_npy: bool) -> Encoded:
    return encode_prediction(lpnet_id, predictor.predict(widths), as_npy=as_npy)


def _gradient(lpnet_id: str, predictor: Predictor, widths: Any, _: bool) -> Encoded:
    latency_ms, slopes = predictor.gradient(widths)
    return as_json(GradientAnswer(lpnet_id, "ms", latency_ms.tolist(), slopes.tolist()))


def _layers(lpnet_id: str, predictor: Predictor, widths: Any, _: bool) -> Encoded:
    names = [*predictor.manifest.layer_names, "(no single layer)"]
    return as_json(LayersAnswer(lpnet_id, "ms", names, predictor.predict(widths).layer_ms.tolist()))


ANSWERS: Mapping[str, Answer] = {"predict": _predict, "gradient": _gradient, "layers": _layers}


class Predictions:
    """ASGI app that answers about width vectors.

    Args:
        service: the service's parts.
        otherwise: answers every other request.
    """

    def __init__(self, service: Service, otherwise: ASGIApp) -> None:
        self._service = service
        self._otherwise = otherwise
        # What the gate counts requests by.
        self._routes = {what: SimpleNamespace(path=PREFIX + what) for what in ANSWERS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        found = (
            _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        )
        if found is None:
            await self._otherwise(scope, receive, send)
            return
        lpnet_id, what = found.groups()
        scope["route"] = self._routes[what]
        try:
            encoded = await self._answered(lpnet_id, what, dict(scope["headers"]), receive)
        except LatencyError as error:
            request_id = scope.get("state", {}).get("request_id", "")
            await problem(error, request_id=request_id)(scope, receive, send)
            return
        headers = [
            (b"content-type", encoded.media_type.encode()),
            (b"content-length", str(len(encoded.content)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": encoded.content})

    async def _answered(
        self, lpnet_id: str, what: str, headers: Mapping[bytes, bytes], receive: Receive
    ) -> Encoded:
        body = await _body(receive)
        held = self._service.predictors.peek(lpnet_id)
        if held is None:
            held = await run_in_threadpool(self._service.predictors.get, lpnet_id)
        n_groups = len(held.predictor.manifest.group_names)
        if len(body) > ROWS_IN_LOOP * 8 * n_groups:
            return await run_in_threadpool(self._priced, lpnet_id, held.predictor, what, body, headers)
        if what == "predict" and headers.get(b"accept") != NPY.encode():
            widths = self._widths(body, headers)
            if widths.shape in ((n_groups,), (1, n_groups)):
                found = await held.predict(widths.reshape(-1))
                self._service.metrics.predictions.inc()
                return encode_prediction(lpnet_id, found, as_npy=False)
        return self._priced(lpnet_id, held.predictor, what, body, headers)

    def _priced(
        self, lpnet_id: str, predictor: Predictor, what: str, body: bytes, headers: Mapping[bytes, bytes]
    ) -> Encoded:
        widths = self._widths(body, headers)
        encoded = ANSWERS[what](lpnet_id, predictor, widths, headers.get(b"accept") == NPY.encode())
        self._service.metrics.predictions.inc(1 if widths.ndim == 1 else len(widths))
        return encoded

    def _widths(self, body: bytes, headers: Mapping[bytes, bytes]) -> FloatArray:
        media_type = headers.get(b"content-type", b"application/json").decode("latin-1")
        return read_widths(body, media_type, most_rows=self._service.settings.batch_rows)


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    return body


_VECTOR = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 1}
_BODY = {
    "type": "object",
    "required": ["widths"],
    "properties": {"widths": {"anyOf": [_VECTOR, {"type": "array", "items": _VECTOR}]}},
}


def _operation(what: str, summary: str, description: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of one of the routes, from an example of its answer."""
    content = {
        "application/json": {"schema": _BODY, "example": {"widths": [[32, 16, 96], [32, 16, 48]]}},
        NPY: {"schema": {"type": "string", "format": "binary"}},
    }
    example = {"lpnet": "0f3a5b7c9d1e2f40", "unit": "ms", **answer}
    schema = {"type": "object", "required": list(example)}
    return {
        "operationId": what,
        "tags": ["predictions"],
        "summary": summary,
        "description": description,
        "parameters": [{"name": "lpnet_id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {"application/json": {"schema": schema, "example": example}},
            }
        },
    }


OPERATIONS: Mapping[str, dict[str, Any]] = {
    PREFIX + "predict": _operation(
        "predict",
        "Latency in ms of one or many networks",
        "With the 95 % interval, and whether the network is unlike those that were measured. `widths` is a vector "
        "with a width for each group, in the order of the LPNet's manifest, or many of them. Many are fastest as "
        f"`{NPY}`, float32, rows of vectors; with that in `Accept` too, the answer is one of float64 with the columns "
        "latency_ms, low_ms, high_ms, out_of_range.",
        {
            "latency_ms": [7.52, 6.61],
            "low_ms": [7.37, 6.47],
            "high_ms": [7.68, 6.75],
            "out_of_range": [False, False],
        },
    ),
    PREFIX + "gradient": _operation(
        "gradient",
        "Latency in ms and its gradient in ms per channel",
        "What a pruner elsewhere descends. At a width on the grid it is the slope downwards, what removing channels "
        "saves.",
        {"latency_ms": [7.52], "gradient_ms_per_channel": [[0.021, 0.034, 0.004]]},
    ),
    PREFIX + "layers": _operation(
        "layers",
        "Each layer's share of the latency in ms",
        "The shares of a network sum up to its latency; what belongs to no layer comes last.",
        {"layer_names": ["stem", "head", "(no single layer)"], "layer_ms": [[3.1, 4.0, 0.42]]},
    ),
}
"""The routes' part of the OpenAPI schema, by path."""
