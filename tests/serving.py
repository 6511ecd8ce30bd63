"""Real services for tests."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from latency.client import ServiceClient
from latency.registry.registry import Registry
from latency.service.app import make_app
from latency.service.settings import ServiceSettings

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class RunningService:
    """A service at a port of this machine, with a token for reading and one for writing."""

    url: str
    registry: Registry
    reader: str
    writer: str
    requests: list[Mapping[str, object]]

    def http(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def client(self) -> ServiceClient:
        return ServiceClient(self.url, self.writer)


@contextlib.contextmanager
def running(
    registry: Registry, settings: ServiceSettings, *, with_tokens: bool = True
) -> Iterator[RunningService]:
    """A real server in a thread."""
    names = {"reader": ["read"], "writer": ["write"]} if with_tokens else {}
    tokens = {name: registry.tokens.create(name, scopes) for name, scopes in names.items()}
    requests: list[Mapping[str, object]] = []
    app = make_app(registry, settings, listens_on_loopback=True, log_request=requests.append)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield RunningService(url, registry, tokens.get("reader", ""), tokens.get("writer", ""), requests)
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def served(
    folder: Path, *options: str, database_url: str | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running `trimms serve` and its URL; killed at the end if it still runs."""
    command = [
        sys.executable,
        "-m",
        "pruning.cli",
        "serve",
        "--registry",
        str(folder),
        "--port",
        "0",
        *options,
    ]
    environment = os.environ | ({"TRIMMS_DATABASE_URL": database_url} if database_url else {})
    log = folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file, text=True)
    try:
        yield _url(process, log), process
    finally:
        process.kill()
        process.wait()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    while "serving at " not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    return log.read_text().partition("serving at ")[2].split()[0]
