"""Serving a registry: what `trimms serve` runs."""

import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from latency.errors import SettingError
from latency.registry.registry import Registry
from latency.service.app import make_app
from latency.service.logs import RequestLog, log_as_json
from latency.service.settings import ServiceSettings, is_loopback

GRACE_S = 30
"""Time that accepted requests have to finish after a signal to stop."""

# A thread that prices a batch lets the others run this often; Python's own 5 ms are longer than most requests take.
_SWITCH_S = 5e-4


def serve(
    folder: Path,
    *,
    host: str,
    port: int,
    settings: ServiceSettings,
    database_url: str | None = None,
    artefacts_url: str | None = None,
    announce: Callable[[str], None],
) -> None:
    """Serve a registry until SIGINT or SIGTERM, then finish what was accepted.

    Args:
        folder: folder of the registry.
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        settings: limits.
        database_url: where its database is, if not in the folder.
        artefacts_url: where its files are, if not in the folder.
        announce: is told the URL once connections are taken.

    Raises:
        SettingError: other machines could reach the service, and no token protects it; or the address is taken.
    """
    registry = Registry.in_folder(folder, database_url, artefacts_url)
    try:
        is_local = is_loopback(host)
        if not is_local and not registry.tokens.active():
            raise SettingError(
                f"Whoever can reach {host} could use this service, since it has no token; make one with "
                "`trimms token create NAME`, or listen at 127.0.0.1."
            )
        log_as_json(logging.INFO)
        sys.setswitchinterval(_SWITCH_S)
        log = RequestLog(sys.stderr.buffer)
        app = make_app(registry, settings, listens_on_loopback=is_local, log_request=log)
        listener = _listener(host, port)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S, server_header=False
        )
        # uvicorn stops at SIGTERM, then raises it again: to be told to stop is no failure.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        announce(f"http://{host}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        registry.close()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise SettingError(
            f"Cannot listen at {host} port {port}: {error.strerror}; choose another --port."
        ) from error
    listener.listen(1024)
    return listener
