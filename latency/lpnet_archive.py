"""An LPNet's folder as a zip archive: how it travels. Archives of strangers are read with care."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from latency.errors import LimitError, ProfileError
from latency.lpnet_files import (
    GRADIENT_FILE,
    GRID_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    file_hashes,
    read_file,
)

FILES = (MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE, GRADIENT_FILE, GRID_FILE)
NEEDED_FILES = (MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE)

LARGEST_FILE_BYTES = 64 * 2**20
"""The largest tables are 15 MB, see `latency.grid_tables`."""


def archive_of(contents: Mapping[str, bytes]) -> bytes:
    """A zip archive of files by name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for name, content in contents.items():
            files.writestr(name, content)
    return archive.getvalue()


def zipped(folder: Path) -> bytes:
    """A zip archive of the LPNet in a folder.

    Raises:
        ProfileError: a file is missing or damaged.
    """
    contents = {name: read_file(folder, name) for name in file_hashes(folder)}
    return archive_of({MANIFEST_FILE: (folder / MANIFEST_FILE).read_bytes(), **contents})


def unzipped(content: bytes) -> dict[str, bytes]:
    """The files in an archive of an LPNet, by name.

    Raises:
        ProfileError: it holds anything else, lacks a file, or is damaged.
        LimitError: a file is too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            strange = [name for name in names if name not in FILES]
            if strange or len(set(names)) != len(names):
                raise ProfileError(
                    f"The archive holds {strange or names}; allowed are {', '.join(FILES)}, each once."
                )
            missing = [name for name in NEEDED_FILES if name not in names]
            if missing:
                raise ProfileError(f"The archive lacks {', '.join(missing)}.")
            return {name: _read_member(archive, name) for name in names}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise ProfileError(f"The upload is no zip archive that can be read: {error}.") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    # The size that the archive states may be a lie: what comes out counts.
    with archive.open(name) as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise LimitError(f"{name} is larger than {LARGEST_FILE_BYTES // 2**20} MiB when unpacked.")
    return content
