import hashlib
from pathlib import Path

import pytest

from latency.errors import NotFoundError, RegistryError, SettingError
from latency.registry.artefacts import ArtefactStore


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(str(tmp_path / "artefacts") if request.param == "folder" else f"memory://{tmp_path}")


def test_content_is_kept_once_under_its_hash(store: ArtefactStore) -> None:
    sha256 = store.put(b"content")
    assert sha256 == hashlib.sha256(b"content").hexdigest() == store.put(b"content")
    assert store.get(sha256) == b"content"


def test_what_is_not_there_is_not_found(store: ArtefactStore) -> None:
    with pytest.raises(NotFoundError, match="There is no artefact 00ff"):
        store.get("00ff")


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
