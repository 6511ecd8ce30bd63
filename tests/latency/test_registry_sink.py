"""Rows on their way into a registry, past services that go away, refuse, and come back."""

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from latency.client import ServiceClient
from latency.errors import AccessError, ConflictError, ServiceError, SettingError
from latency.profiles import ProfileSet, parse_profile, read_profile
from latency.registry.registry import Registry
from latency.registry_sink import RegistrySink, streaming
from latency.service.settings import ServiceSettings
from tests.known_network import KnownNetwork
from tests.serving import RunningService, running, served


@pytest.fixture
def profile_path(known_network: KnownNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "profile.jsonl"
    path.write_bytes(known_network.profile + b'{"kind": "reference", "reference_ms": 1.25}\n')
    return path


@pytest.fixture
def base_path(known_network: KnownNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "base.onnx"
    path.write_bytes(known_network.base)
    return path


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    registry = Registry.in_folder(tmp_path / "registry")
    with running(registry, ServiceSettings(run_jobs=False)) as found:
        yield found
    registry.close()


def _kept(client: ServiceClient) -> ProfileSet:
    (record,) = client.profiles()
    found = parse_profile(client.download_profile(record.id), Path("kept"))
    assert found is not None
    return found


def test_rows_outlive_a_service_that_goes_away(tmp_path: Path, profile_path: Path, base_path: Path) -> None:
    measured = read_profile(profile_path)
    now_s, lines = 0.0, list[str]()
    with contextlib.ExitStack() as stack:
        with served(tmp_path / "registry", "--no-jobs") as (url, _):
            client = stack.enter_context(ServiceClient(url))
            sink = RegistrySink(client, lines.append, lambda: now_s)
            sink.start(measured.header, measured.rows[:3])
            sink.append(measured.rows[3])
            assert _kept(client).rows == measured.rows[:4]
        for row in measured.rows[4:10]:  # killed: only the first of these is tried
            sink.append(row)
        assert len(lines) == 1
        assert "rows for the registry wait, the profile goes on: The service at http://127" in lines[0]
        with pytest.raises(
            ServiceError, match=r"complete in .*profile.jsonl, .* Give the same command again"
        ):
            sink.finish(base_path, profile_path)

        port = url.rpartition(":")[2]
        stack.enter_context(served(tmp_path / "registry", "--no-jobs", "--port", port))
        now_s = 20.0
        sink.append(measured.rows[10])
        assert _kept(client).rows == measured.rows[:11]
        assert lines[1:] == ["the registry takes rows again; those that waited are there"]

        sink.finish(base_path, profile_path)
        assert _kept(client).digest == measured.digest  # the clock too
        assert client.spaces()[0].base_sha256 is not None


def test_a_service_that_is_away_at_first_gets_everything_later(
    profile_path: Path, base_path: Path, tmp_path: Path
) -> None:
    measured = read_profile(profile_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    with ServiceClient(f"http://127.0.0.1:{port}") as client:
        sink = RegistrySink(client)
        sink.start(measured.header, measured.rows[:3])
        with served(tmp_path / "registry", "--no-jobs", "--port", port):
            sink.finish(base_path, profile_path)
            assert _kept(client).digest == measured.digest


def test_rows_that_are_there_are_not_sent_again(service: RunningService, profile_path: Path) -> None:
    measured = read_profile(profile_path)
    with service.client() as client:
        sink = RegistrySink(client)
        sink.start(measured.header, measured.rows)
        n_requests = len(service.requests)
        sink.start(measured.header, measured.rows)
        assert len(service.requests) == n_requests
        assert _kept(client).rows == measured.rows


def test_a_refusal_comes_before_anything_is_measured(service: RunningService, profile_path: Path) -> None:
    measured = read_profile(profile_path)
    with ServiceClient(service.url, service.reader) as client, pytest.raises(AccessError, match="write"):
        RegistrySink(client).start(measured.header, ())


def test_a_folder_is_no_service(profile_path: Path) -> None:
    to_folder = streaming("registry", base=profile_path, profile=profile_path)
    with pytest.raises(SettingError, match=r"a URL such as .*; got 'registry'"), to_folder:
        pass


def test_a_refusal_later_on_ends_no_measurement(
    service: RunningService, profile_path: Path, base_path: Path
) -> None:
    measured = read_profile(profile_path)
    lines: list[str] = []
    with service.client() as client:
        elsewhere = dataclasses.replace(measured.rows[1], ratio=0.123)
        client.upload_rows(client.begin_profile(measured.header), [elsewhere])
        sink = RegistrySink(client, lines.append)
        sink.start(measured.header, measured.rows[:1])
        for row in measured.rows[1:4]:
            sink.append(row)
        assert len(lines) == 1
        assert "Another measurement of widths" in lines[0]
        with pytest.raises(ConflictError, match=r"does not hold all of it: Another measurement"):
            sink.finish(base_path, profile_path)
