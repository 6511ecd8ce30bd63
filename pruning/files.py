"""Files that are replaced whole or not at all, or grow by whole lines."""

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from pruning.errors import StorageError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`, whole or not at all, even through a power cut.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(_storage_message(path, len(content), error)) from error


def append_line(path: Path, line: str) -> None:
    """Add a line to the file `path`, which need not be there yet.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    content = (line + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(_storage_message(path, len(content), error)) from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_message(path: Path, n_bytes: int, error: OSError) -> str:
    kept = "; the previous one is kept" if path.exists() else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space left to write '{path}' ({n_bytes / 1e6:.1f} MB){kept}; "
            "free some and give the same command again to go on."
        )
    return f"Cannot write '{path}': {error.strerror or error}{kept}; choose a folder that can be written."
