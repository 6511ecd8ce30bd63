"""`trimms serve` as a process of its own."""

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from latency.client import ServiceClient
from latency.errors import LatencyError, SettingError
from latency.predictor import Predictor
from latency.profiles import parse_profile
from latency.registry.registry import Registry
from latency.service.server import serve
from latency.service.settings import ServiceSettings
from tests.known_network import KnownNetwork
from tests.object_store import S3_USER
from tests.postgresql import empty_database
from tests.serving import served


def test_a_service_that_is_told_to_stop_finishes_what_it_accepted(
    tmp_path: Path, known_network: KnownNetwork
) -> None:
    with served(tmp_path, "--no-jobs") as (url, process), httpx.Client(base_url=url, timeout=30) as http:
        assert http.get("/health/ready").json() == {"status": "ready"}

        def slow_body() -> Iterator[bytes]:
            yield known_network.profile[:100]
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            yield known_network.profile[100:]

        answer = http.post("/v1/profiles", content=slow_body())
        assert (answer.status_code, answer.json()["n_new"]) == (201, 56)
        assert process.wait(timeout=10) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[1:]]
    requests = [line for line in lines if line["message"] == "request"]
    assert [line["path"] for line in requests] == ["/health/ready", "/v1/profiles"]


def test_files_in_an_s3_store_outlive_the_server(
    tmp_path: Path, known_network: KnownNetwork, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (S3_USER | {"AWS_ENDPOINT_URL": s3_url}).items():
        monkeypatch.setenv(name, value)
    options = ("--no-jobs", "--artefacts", "s3://lab/trimms")
    with served(tmp_path, *options) as (url, _), ServiceClient(url) as client:
        lpnet_id = client.upload_lpnet(known_network.lpnet_folder).id
    with served(tmp_path, *options) as (url, _), ServiceClient(url) as client:
        local = Predictor.load(known_network.lpnet_folder)
        found_ms = client.predictor(lpnet_id).predict_ms([[8, 12], [5.5, 3.25]])
        np.testing.assert_allclose(found_ms, local.predict_ms([[8, 12], [5.5, 3.25]]))
    assert not (tmp_path / "artefacts").exists()


def test_other_machines_are_served_only_with_tokens(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"Whoever can reach 0.0.0.0 could use this service"):
        serve(tmp_path, host="0.0.0.0", port=0, settings=ServiceSettings(), announce=print)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, "--no-jobs") as (url, _):
        port = int(url.rpartition(":")[2])
        with pytest.raises(SettingError, match=f"Cannot listen at 127.0.0.1 port {port}"):
            serve(tmp_path, host="127.0.0.1", port=port, settings=ServiceSettings(), announce=print)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_kill_9_under_upload_load_loses_nothing_that_was_acknowledged(
    tmp_path: Path, known_network: KnownNetwork, kind: str, request: pytest.FixtureRequest
) -> None:
    database_url = None
    if kind == "postgresql":
        database_url = request.getfixturevalue("postgresql_url")
        empty_database(database_url)
    profile = parse_profile(known_network.profile, Path("profile.jsonl"))
    assert profile is not None
    acknowledged: set[tuple[object, ...]] = set()
    lost = threading.Lock()

    def upload(url: str, worker: int, began: float) -> None:
        with contextlib.suppress(LatencyError), ServiceClient(url, timeout_s=5) as client:
            profile_id = client.begin_profile(profile.header)
            for number in range(10_000):
                row = profile.rows[number % len(profile.rows)]
                own = dataclasses.replace(row, pass_index=int(began * 1e6) + worker * 10_000 + number)
                client.upload_rows(profile_id, [own])
                with lost:
                    acknowledged.add(own.key)

    for _ in range(3):
        with served(tmp_path, "--no-jobs", database_url=database_url) as (url, process):
            began = time.time()
            threads = [threading.Thread(target=upload, args=(url, n, began)) for n in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(2.0)
            process.kill()
            for thread in threads:
                thread.join()
    registry = Registry.in_folder(tmp_path, database_url)
    (record,) = registry.profiles.all()
    kept = {row.key for row in registry.profiles.read(record.id).rows}
    registry.close()
    assert len(acknowledged) > 100
    assert acknowledged <= kept
