import errno
import hashlib
import os

import pytest

from pruning.errors import StorageError
from pruning.files import file_sha256, write_atomically


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left to write '.*file'.*; the previous one is kept"),
        (errno.EACCES, "Cannot write '.*file': Permission denied; the previous one is kept"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch, number, message):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=message):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"Cannot write '.*below'"):
        write_atomically(tmp_path / "file" / "below", b"new")
