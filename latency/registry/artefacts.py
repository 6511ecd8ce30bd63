"""Files by the hash of their content, in a folder or in any store that fsspec knows, such as S3."""

import contextlib
import hashlib
import os
import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem

from latency.errors import NotFoundError, RegistryError, SettingError


class ArtefactStore:
    """Content-addressed files: the same content is kept once, and what is read is what was written.

    Attributes:
        url: where they are.

    Args:
        url: folder, or URL such as `s3://bucket/prefix` (with fsspec's driver for it installed).

    Raises:
        SettingError: no driver knows the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingError(
                f"Artefacts are kept in a folder or at a URL that fsspec knows; got {url!r}: {error}."
            ) from error
        self._root = root.rstrip("/")

    def put(self, content: bytes) -> str:
        """Keep the content; returns its SHA-256 in hexadecimal digits.

        Raises:
            RegistryError: it could not be written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._path(sha256)
        try:
            if not self._files.exists(path):
                self._write(path, content)
        except Exception as error:  # those of fsspec's drivers share no other base class
            raise RegistryError(f"Artefact {sha256[:12]} cannot be written: {error}.") from error
        return sha256

    def get(self, sha256: str) -> bytes:
        """The content with this hash.

        Raises:
            NotFoundError: there is none.
            RegistryError: it cannot be read, or is damaged.
        """
        try:
            content: bytes = self._files.cat_file(self._path(sha256))
        except FileNotFoundError as error:
            raise NotFoundError(f"There is no artefact {sha256}.") from error
        except Exception as error:  # as in `put`
            raise RegistryError(f"Artefact {sha256[:12]} cannot be read: {error}.") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise RegistryError(f"Artefact {sha256[:12]} is damaged: its content has another hash.")
        return content

    def require_writable(self) -> None:
        """Make sure that artefacts can be written.

        Raises:
            RegistryError: they cannot.
        """
        probe = f"{self._root}/probe-{uuid.uuid4().hex}"
        try:
            if isinstance(self._files, LocalFileSystem):  # elsewhere that would make a bucket
                self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(probe, b"trimms")
            self._files.rm_file(probe)
        except Exception as error:  # as in `put`
            raise RegistryError(f"Artefacts cannot be written: {error}.") from error

    def _path(self, sha256: str) -> str:
        # Two levels keep folders small.
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def _write(self, path: str, content: bytes) -> None:
        if not isinstance(self._files, LocalFileSystem):
            self._files.pipe_file(path, content)  # object stores put a whole object or none
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the name as well
        finally:
            os.close(descriptor)
