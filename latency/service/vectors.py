"""Width vectors and predictions as they travel: JSON for people and programs, NumPy's format for many at a time."""

from dataclasses import dataclass

import msgspec
import numpy as np

from latency.errors import InputError, LimitError
from latency.npy import NPY, npy_array, npy_bytes
from latency.predictor import FloatArray, Prediction

PREDICTION_COLUMNS = ("latency_ms", "low_ms", "high_ms", "out_of_range")
"""Columns of the predictions of many networks, float64, [n, 4]."""


class _Body(msgspec.Struct):
    widths: msgspec.Raw


class Answer(msgspec.Struct):
    """Predictions as JSON, a column each."""

    lpnet: str
    unit: str
    latency_ms: list[float]
    low_ms: list[float]
    high_ms: list[float]
    out_of_range: list[bool]


class GradientAnswer(msgspec.Struct):
    """Latencies and their gradients as JSON."""

    lpnet: str
    unit: str
    latency_ms: list[float]
    gradient_ms_per_channel: list[list[float]]


class LayersAnswer(msgspec.Struct):
    """Each layer's share of the latencies as JSON; what belongs to no layer comes last."""

    lpnet: str
    unit: str
    layer_names: list[str]
    layer_ms: list[list[float]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body with its type."""

    content: bytes
    media_type: str


def read_widths(body: bytes, media_type: str, *, most_rows: int) -> FloatArray:
    """The width vectors in a request, [n, n_groups] or [n_groups].

    Raises:
        InputError: the body is not what its type says.
        LimitError: there are more vectors than `most_rows`.
    """
    widths = npy_array(body) if media_type == NPY else _from_json(body)
    if not widths.size:
        raise InputError(f"There are no widths: the array's shape is {widths.shape}.")
    if widths.ndim == 2 and len(widths) > most_rows:
        raise LimitError(f"{len(widths)} width vectors in one request; at most {most_rows} are allowed.")
    return widths


def encode_prediction(lpnet_id: str, found: Prediction, *, as_npy: bool) -> Encoded:
    """Predictions as a body."""
    if as_npy:
        columns = [np.asarray(getattr(found, name), dtype=np.float64) for name in PREDICTION_COLUMNS]
        return Encoded(npy_bytes(np.stack(columns, axis=1)), NPY)
    answer = Answer(
        lpnet=lpnet_id,
        unit="ms",
        latency_ms=found.latency_ms.tolist(),
        low_ms=found.low_ms.tolist(),
        high_ms=found.high_ms.tolist(),
        out_of_range=found.out_of_range.tolist(),
    )
    return as_json(answer)


def as_json(answer: msgspec.Struct) -> Encoded:
    """An answer as JSON."""
    return Encoded(msgspec.json.encode(answer), "application/json")


def _from_json(body: bytes) -> FloatArray:
    try:
        raw = memoryview(_decode_body(body).widths)
        is_nested = bytes(raw[1:64]).lstrip()[:1] == b"["
        values = _decode_many(raw) if is_nested else _decode_one(raw)
        return np.array(values, dtype=np.float64)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise InputError(
            'The body is JSON such as {"widths": [16, 32]} or {"widths": [[16, 32], [16, 24]]}, with as many '
            f"numbers in each vector: {error}"
        ) from error


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_one = msgspec.json.Decoder(list[float]).decode
_decode_many = msgspec.json.Decoder(list[list[float]]).decode
