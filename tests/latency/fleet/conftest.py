"""A real fleet on this machine: a Dask scheduler and workers, each a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest

from latency.fleet.address import FleetAddress

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}


@dataclass
class Fleet:
    """Processes of a fleet.

    Attributes:
        address: how to reach it.
        folder: its temporary files, locks among them.
        scheduler: its process.
        workers: processes by the device's name.
    """

    address: FleetAddress
    folder: Path
    scheduler: "subprocess.Popen[bytes]"
    workers: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        """Start workers, "zero" on a core of its own where there are several; they are ready on return."""
        for name in names:
            core = CORES[(name != "zero") % len(CORES)] if CORES else None
            command = [sys.executable, "-m", "pruning.cli", "worker", "--scheduler", self.address.scheduler]
            command += ["--device", name] + ([] if core is None else ["--cores", str(core)])
            for option in ("ca", "cert", "key"):
                file = getattr(self.address, f"tls_{option}")
                command += [f"--tls-{option}", str(file)] if file else []
            environment = ENVIRONMENT | {"TMPDIR": str(self.folder)}
            self.workers[name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        for name in names:
            said = self.workers[name].stderr.readline()
            assert said.startswith(f"device '{name}' is ready"), said

    def restore(self, *names: str) -> None:
        """These devices and no others, whatever was killed or started before."""
        for name in set(self.workers) - set(names):
            self.kill(name)
        self.start(*(name for name in names if name not in self.workers))

    def kill(self, name: str) -> None:
        """`kill -9`."""
        process = self.workers.pop(name)
        process.kill()
        process.communicate()


@contextlib.contextmanager
def running_fleet(folder: Path, *options: str, **tls: Path) -> Iterator[Fleet]:
    file = folder / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port", "0"]
    command += ["--host", "127.0.0.1", "--scheduler-file", str(file), *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as scheduler:
        deadline = time.monotonic() + 30
        while not file.exists() or not file.read_text():
            assert scheduler.poll() is None, "the scheduler ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        fleet = Fleet(FleetAddress(json.loads(file.read_text())["address"], **tls), folder, scheduler)
        try:
            yield fleet
        finally:
            for name in list(fleet.workers):
                fleet.kill(name)
            scheduler.kill()


@pytest.fixture(scope="module")
def _shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture
def fleet(_shared_fleet: Fleet) -> Fleet:
    """A fleet of two devices, "zero" and "one"."""
    _shared_fleet.restore("zero", "one")
    return _shared_fleet


@pytest.fixture
def start_fleet(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Fleet]]:
    return lambda *options, **tls: running_fleet(tmp_path, *options, **tls)


@pytest.fixture
def space_path(residual_space, tmp_path) -> Path:
    path = tmp_path / "base.onnx"
    onnx.save(residual_space.model, path)
    return path
