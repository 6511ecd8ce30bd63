from pathlib import Path

import pytest

from latency.errors import InputError
from latency.fleet.address import FleetAddress


@pytest.fixture
def pem(tmp_path) -> Path:
    path = tmp_path / "a.pem"
    path.write_text("-----BEGIN CERTIFICATE-----")
    return path


@pytest.mark.parametrize(
    "text", ["10.0.0.5:8786", "tcp://10.0.0.5", "http://10.0.0.5:8786", "tcp://h:port", ""]
)
def test_what_is_no_address_of_a_scheduler_is_refused(text):
    with pytest.raises(InputError, match=rf"'{text}' is not tcp://HOST:PORT or tls://HOST:PORT"):
        FleetAddress(text)


def test_encryption_takes_all_three_files_and_plain_connections_none(pem):
    with pytest.raises(InputError, match="tls://h:1 needs all of --tls-ca, --tls-cert and --tls-key"):
        FleetAddress("tls://h:1", tls_ca=pem)
    with pytest.raises(InputError, match="tcp://h:1 needs none of the --tls files"):
        FleetAddress("tcp://h:1", pem, pem, pem)


def test_a_missing_file_is_named(pem, tmp_path):
    with pytest.raises(InputError, match=r"gone\.pem' does not exist"):
        FleetAddress("tls://h:1", pem, pem, tmp_path / "gone.pem")


def test_encrypted_connections_show_the_same_certificate_as_client_and_as_worker(pem):
    security = FleetAddress("tls://h:1", pem, pem, pem).security()
    assert security.require_encryption
    assert security.tls_client_cert == security.tls_worker_cert == str(pem)
    assert FleetAddress("tcp://h:1").security() is None


@pytest.mark.parametrize("safe", ["tcp://localhost:1", "tcp://127.0.0.1:1", "tcp://[::1]:1"])
def test_plain_connections_are_called_a_danger_unless_nobody_else_can_reach_them(safe, pem):
    assert FleetAddress(safe).danger is None
    assert FleetAddress("tls://10.0.0.5:1", pem, pem, pem).danger is None
    assert "whoever reaches it can run code" in FleetAddress("tcp://10.0.0.5:1").danger
    assert "neither encrypted" in FleetAddress("tcp://boards.example:1").danger
