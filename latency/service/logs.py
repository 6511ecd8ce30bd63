"""Logs as lines of JSON on standard error, for programs that gather them."""

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec

# What every record has; the rest was given by `extra`.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, and whatever `extra` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        fields: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _USUAL}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return msgspec.json.encode(fields, enc_hook=str).decode()


class RequestLog:
    """Writes a line of JSON for each request: straight to a stream, since it is on the way of every prediction.

    Args:
        stream: where to, unbuffered or flushed by its owner.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, fields: Mapping[str, object]) -> None:
        """Write a request's line."""
        line = {"time": round(time.time(), 3), "level": "info", "message": "request", **fields}
        self._stream.write(msgspec.json.encode(line) + b"\n")
        self._stream.flush()


def log_as_json(level: int = logging.INFO) -> None:
    """Have this process log lines of JSON to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("latency", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # `RequestLog` does
