"""What a service carries: predictions a second and their latency, server and client on this machine.

    python benchmarks/service_load.py
    python benchmarks/service_load.py --soak-minutes 10

The server is `trimms serve` with tokens, metrics and logging, in a process of its own, holding an LPNet of MobileNetV2
at 224 px (25 groups, 53 layers), fitted to latencies that are made up, since its speed does not depend on them. The
client keeps `connections` requests in flight, each connection with the next one as soon as it has an answer; bodies
are drawn from a thousand random networks on the grid. Latencies are those that the client sees. The soak is the
single case for minutes, with the server's memory at its beginning and end.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
import msgspec
import numpy as np
import numpy.typing as npt
import uvloop
from environment import ROOT, write_results

from latency.device import DeviceSettings, fingerprint
from latency.fitting import fit
from latency.grid import ChannelStep, Grid
from latency.measure import Protocol
from latency.npy import NPY, npy_bytes
from latency.predictor import Predictor
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import ProfileSet
from latency.registry.registry import Registry
from latency.sampling import sample_widths
from pruning.models import load_model
from pruning.trace import trace

N_NETWORKS = 1000
N_CANDIDATES = 120


@dataclass
class Load:
    """Requests to send and what came of them.

    Attributes:
        requests: whole HTTP requests, sent in turn.
        until: time at which no more are begun, by the event loop's clock.
        seconds: time of each answer.
        errors: answers other than 200, and connections that broke.
    """

    requests: list[bytes]
    until: float
    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    n_begun: int = 0


class Connection(asyncio.Protocol):
    """One connection with one request in flight."""

    def __init__(self, load: Load, ended: asyncio.Future[None]) -> None:
        self._load, self._ended = load, ended
        self._received = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._next()

    def data_received(self, data: bytes) -> None:
        """Note an answer once it is complete, and send the next request."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._load.seconds.append(time.perf_counter() - self._began)
        self._load.errors += not head.startswith(b"HTTP/1.1 200")
        self._received = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """Count a connection that the server closed."""
        if not self._ended.done():
            self._load.errors += 1
            self._ended.set_result(None)

    def _next(self) -> None:
        if time.perf_counter() >= self._load.until:
            self._ended.set_result(None)
            self._transport.close()
            return
        request = self._load.requests[self._load.n_begun % len(self._load.requests)]
        self._load.n_begun += 1
        self._began = time.perf_counter()
        self._transport.write(request)


async def send(port: int, requests: list[bytes], *, connections: int, seconds: float) -> Load:
    """Keep so many requests in flight for so long."""
    loop = asyncio.get_running_loop()
    load = Load(requests, until=time.perf_counter() + seconds)
    ends = [loop.create_future() for _ in range(connections)]
    for end in ends:
        await loop.create_connection(lambda end=end: Connection(load, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return load


def row_of(case: str, connections: int, load: Load, seconds: float, per_request: int) -> dict[str, Any]:
    """A case's figures."""
    ms = np.sort(load.seconds) * 1e3
    return {
        "case": case,
        "connections": connections,
        "requests_per_second": len(ms) / seconds,
        "predictions_per_second": per_request * len(ms) / seconds,
        "p50_ms": float(np.quantile(ms, 0.5)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "errors": load.errors,
    }


@dataclass(frozen=True, slots=True)
class Server:
    """A running service.

    Attributes:
        process: its process.
        port: where it listens.
        token: a token for reading.
        lpnet_id: the LPNet that it holds.
        widths: random networks on its grid, [N_NETWORKS, n_groups].
        predictor: the same LPNet in this process.
    """

    process: subprocess.Popen[str]
    port: int
    token: str
    lpnet_id: str
    widths: npt.NDArray[np.float32]
    predictor: Predictor

    def request(self, what: str, body: bytes, media_type: str = "application/json") -> bytes:
        """A whole HTTP request."""
        head = (
            f"POST /v1/lpnets/{self.lpnet_id}/{what} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "
            f"{self.token}\r\nContent-Type: {media_type}\r\nAccept: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def json_requests(self, what: str, n_rows: int) -> list[bytes]:
        """Requests with so many width vectors each."""
        batches = self.widths[: len(self.widths) // n_rows * n_rows].reshape(-1, n_rows, self.widths.shape[1])
        bodies = [{"widths": (batch[0] if n_rows == 1 else batch).astype(int).tolist()} for batch in batches]
        return [self.request(what, msgspec.json.encode(body)) for body in bodies]

    def rss_mib(self) -> float:
        """Memory that the server holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """`trimms serve` on a registry with the LPNet, its log going to a file."""
    make_lpnet(folder / "lpnet")
    predictor = Predictor.load(folder / "lpnet")
    registry = Registry.in_folder(folder / "registry")
    lpnet_id, token = registry.lpnets.add(folder / "lpnet").id, registry.tokens.create("load", ["read"])
    registry.close()
    rng = np.random.default_rng(0)
    grid = predictor.manifest.grid
    widths = np.array([[rng.choice(allowed) for allowed in grid.allowed] for _ in range(N_NETWORKS)])
    command = [
        sys.executable,
        "-m",
        "pruning.cli",
        "serve",
        "--registry",
        str(folder / "registry"),
        "--port",
        "0",
    ]
    log = (folder / "log").open("w")
    process = subprocess.Popen([*command, "--rate", "1000000", "--no-jobs"], cwd=ROOT, stderr=log, text=True)
    try:
        port = _port(folder / "log")
        yield Server(process, port, token, lpnet_id, widths.astype(np.float32), predictor)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        log.close()


def make_lpnet(folder: Path) -> None:
    """An LPNet of MobileNetV2 at 224 px: a real fit, to latencies that grow with the multiply-accumulates."""
    space = trace(load_model("torchvision:mobilenet_v2"), (1, 3, 224, 224))
    grid = Grid.from_step(space.structure, ChannelStep(dense=16, depthwise=16))
    header = ProfileHeader.of_space(space, grid, fingerprint(DeviceSettings()), Protocol())
    rng = np.random.default_rng(0)
    rows = []
    for widths in sample_widths(space, grid, N_CANDIDATES, seed=0):
        ratio = (0.2 + 0.8 * space.macs(widths) / space.macs(space.full_widths)) * rng.normal(1.0, 0.01)
        rows.append(
            ProfileRow(
                widths=tuple(map(int, widths)),
                split="train",
                pass_index=0,
                status="ok",
                ratio=ratio,
                ratio_stderr=0.01,
                candidate_ms=7.5 * ratio,
                reference_ms=7.5,
            )
        )
    fit(ProfileSet(header, tuple(rows)), space).save(folder)


def _port(log: Path) -> int:
    for _ in range(300):
        text = log.read_text()
        if "serving at" in text:
            time.sleep(1)
            return int(text.partition("serving at http://127.0.0.1:")[2].split()[0])
        time.sleep(0.1)
    raise click.ClickException(f"the server did not start: {log.read_text()}")


def in_process(server: Server) -> list[dict[str, Any]]:
    """Predictions without a service: the median time of single calls, and of a batch."""
    rows = []
    for case, vectors in (
        ("in process, single", server.widths[:, None]),
        ("in process, 1000", [server.widths]),
    ):
        seconds = []
        for _ in range(3 if len(vectors) > 1 else 300):
            for vector in vectors:
                began = time.perf_counter()
                server.predictor.predict_ms(vector)
                seconds.append(time.perf_counter() - began)
        each = np.array(seconds) / len(vectors[0])
        rows.append(
            {
                "case": case,
                "connections": 0,
                "requests_per_second": float(1 / np.median(seconds)),
                "predictions_per_second": float(1 / np.median(each)),
                "p50_ms": float(np.quantile(each, 0.5)) * 1e3,
                "p99_ms": float(np.quantile(each, 0.99)) * 1e3,
                "errors": 0,
            }
        )
    return rows


@click.command(help=__doc__)
@click.option("--connections", type=int, default=32, show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Time for each case.")
@click.option("--soak-minutes", type=float, default=0.0, show_default=True)
@click.option("--write/--no-write", default=True, help="Write benchmarks/results/service_load.json.")
def main(connections: int, seconds: float, soak_minutes: float, write: bool) -> None:
    """See the module's docstring."""
    rows = []
    with TemporaryDirectory() as folder, serving(Path(folder)) as server:
        batch = np.resize(server.widths, (2048, server.widths.shape[1]))
        cases = [
            ("predict, single", connections, server.json_requests("predict", 1), 1),
            ("predict, 1000 as JSON", 4, server.json_requests("predict", 1000), 1000),
            ("predict, 2048 as npy", 4, [server.request("predict", npy_bytes(batch), NPY)], 2048),
            ("gradient, single", connections, server.json_requests("gradient", 1), 1),
            ("layers, single", connections, server.json_requests("layers", 1), 1),
        ]
        rows += in_process(server)
        for case, n_connections, requests, per_request in cases:
            uvloop.run(send(server.port, requests, connections=n_connections, seconds=1))
            load = uvloop.run(send(server.port, requests, connections=n_connections, seconds=seconds))
            rows.append(row_of(case, n_connections, load, seconds, per_request))
            click.echo(_line(rows[-1]))
        if soak_minutes:
            rows.append(soak(server, connections, soak_minutes))
    for row in rows:
        click.echo(_line(row))
    if write:
        click.echo(f"written: {write_results('service_load', rows)}")


def soak(server: Server, connections: int, minutes: float) -> dict[str, Any]:
    """Single predictions for minutes, in pieces, so that the client's own memory stays small."""
    requests = server.json_requests("predict", 1)
    n_pieces = max(2, round(minutes * 6))
    pieces, memory_mib = [], []
    for _ in range(n_pieces):
        load = uvloop.run(
            send(server.port, requests, connections=connections, seconds=minutes * 60 / n_pieces)
        )
        pieces.append(row_of("soak", connections, load, minutes * 60 / n_pieces, 1))
        memory_mib.append(server.rss_mib())
    row = {name: float(np.mean([piece[name] for piece in pieces])) for name in pieces[0] if name != "case"}
    row |= {"case": f"predict, single, {minutes:g} min", "connections": connections}
    row |= {
        "p99_ms": max(piece["p99_ms"] for piece in pieces),
        "errors": sum(piece["errors"] for piece in pieces),
    }
    return row | {"server_mib_first": memory_mib[0], "server_mib_last": memory_mib[-1]}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:28} {row['connections']:3} connections  {row['requests_per_second']:9.0f} requests/s "
        f"{row['predictions_per_second']:10.0f} predictions/s  p50 {row['p50_ms']:.3f} ms  p99 {row['p99_ms']:.3f} ms  "
        f"errors {row['errors']}"
    )


if __name__ == "__main__":
    main()
