import hashlib
import socket
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from latency.errors import NotFoundError, RegistryError, SettingError
from latency.registry.artefacts import ArtefactStore
from tests.object_store import S3_USER


def use_s3(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (S3_USER | {"AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they remember where they are connected


@pytest.fixture
def in_s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(s3_url, monkeypatch)


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtefactStore:
    if request.param == "s3":
        request.getfixturevalue("in_s3")
    urls = {
        "folder": tmp_path / "artefacts",
        "memory": f"memory://{tmp_path}",
        "s3": f"s3://lab/{tmp_path.name}",
    }
    return ArtefactStore(str(urls[request.param]))


def test_content_is_kept_once_under_its_hash(store: ArtefactStore) -> None:
    sha256 = store.put(b"content")
    assert sha256 == hashlib.sha256(b"content").hexdigest() == store.put(b"content")
    assert store.get(sha256) == b"content"


def test_what_is_not_there_is_not_found(store: ArtefactStore) -> None:
    with pytest.raises(NotFoundError, match="There is no artefact 00ff"):
        store.get("00ff")


def test_a_store_is_known_to_be_writable(store: ArtefactStore) -> None:
    store.require_writable()
    assert store.put(b"content")


@pytest.mark.usefixtures("in_s3")
def test_a_bucket_that_is_not_there_is_not_made() -> None:
    store = ArtefactStore("s3://lba/trimms")
    for _ in range(2):
        with pytest.raises(RegistryError, match=r"cannot be written: .*bucket does not exist"):
            store.require_writable()
    with pytest.raises(
        RegistryError, match=r"Artefact [0-9a-f]{12} cannot be written: .*bucket does not exist"
    ):
        store.put(b"content")


def test_a_server_that_is_away_is_the_registrys_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    use_s3(f"http://127.0.0.1:{port}", monkeypatch)
    store = ArtefactStore("s3://lab/away")
    with pytest.raises(RegistryError, match="cannot be read: Could not connect"):
        store.get("00ff")
    with pytest.raises(RegistryError, match="cannot be written: Could not connect"):
        store.put(b"content")


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path))
    sha256 = store.put(b"content")
    (tmp_path / sha256[:2] / sha256).write_bytes(b"other")
    with pytest.raises(RegistryError, match=f"Artefact {sha256[:12]} is damaged"):
        store.get(sha256)


def test_a_folder_holds_no_halves_of_files(tmp_path: Path) -> None:
    ArtefactStore(str(tmp_path)).put(b"content")
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [""]


def test_a_store_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SettingError, match="fsspec knows; got 'gopher://hole'"):
        ArtefactStore("gopher://hole")
