"""Fitted LPNets in the registry."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import select

from latency.errors import NotFoundError, ProfileError
from latency.lpnet_archive import FILES, archive_of, unzipped
from latency.lpnet_files import MANIFEST_FILE, WEIGHTS_FILE, LPNetManifest, file_hashes, read_manifest
from latency.predictor import Predictor
from latency.registry.artefacts import ArtefactStore
from latency.registry.database import Database
from latency.registry.networks import Networks, parsed_model
from latency.registry.records import LPNetRecord
from latency.registry.schema import LPNet
from latency.registry.strict import require_types


class LPNets:
    """LPNets, each under the hash of its manifest file."""

    def __init__(self, database: Database, artefacts: ArtefactStore, networks: Networks) -> None:
        self._database = database
        self._artefacts = artefacts
        self._networks = networks

    def all(self, structure_hash: str | None = None, device_digest: str | None = None) -> list[LPNetRecord]:
        """LPNets, the newest first; of one network or device where it is given."""
        wanted = select(LPNet).order_by(LPNet.created_at.desc())
        if structure_hash is not None:
            wanted = wanted.where(LPNet.structure_hash == structure_hash)
        if device_digest is not None:
            wanted = wanted.where(LPNet.device_digest == device_digest)
        with self._database.read() as session:
            return [_record(row) for row in session.scalars(wanted)]

    def get(self, lpnet_id: str) -> LPNetRecord:
        """An LPNet.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.read() as session:
            row = session.get(LPNet, lpnet_id)
        if row is None:
            raise NotFoundError(f"There is no LPNet {lpnet_id!r}.")
        return _record(row)

    def add(self, folder: Path) -> LPNetRecord:
        """Keep the LPNet in a folder, once it is known to work.

        Raises:
            ProfileError: a file is missing or damaged, or the model does not predict its own network.
        """
        manifest = read_manifest(folder, needs=WEIGHTS_FILE)
        require_types(manifest)
        names = [name for name in FILES if name == MANIFEST_FILE or name in file_hashes(folder)]
        contents = {name: (folder / name).read_bytes() for name in names}
        for name, content in contents.items():
            if name.endswith(".onnx"):
                parsed_model(content)  # its weights are inside
        require_working(Predictor.load(folder))
        return self._keep(manifest, contents)

    def add_zip(self, content: bytes) -> LPNetRecord:
        """Keep the LPNet in a zip archive of its files.

        Raises:
            ProfileError: it is no archive of an LPNet's files, or one is missing or damaged.
            LimitError: a file in it is too large.
        """
        with TemporaryDirectory() as folder:
            for name, file in unzipped(content).items():
                Path(folder, name).write_bytes(file)
            return self.add(Path(folder))

    def read_zip(self, lpnet_id: str) -> bytes:
        """A zip archive of an LPNet's files."""
        files = self.get(lpnet_id).files
        return archive_of({name: self._artefacts.get(sha256) for name, sha256 in files.items()})

    def load(self, lpnet_id: str) -> Predictor:
        """An LPNet's predictor."""
        with TemporaryDirectory() as folder:
            for name, sha256 in self.get(lpnet_id).files.items():
                if name != WEIGHTS_FILE:
                    Path(folder, name).write_bytes(self._artefacts.get(sha256))
            return Predictor.load(Path(folder))

    def _keep(self, manifest: LPNetManifest, contents: Mapping[str, bytes]) -> LPNetRecord:
        lpnet_id = hashlib.sha256(contents[MANIFEST_FILE]).hexdigest()[:16]
        row = {
            "id": lpnet_id,
            "structure_hash": manifest.structure_hash,
            "device_digest": manifest.fingerprint.digest,
            "manifest": manifest.to_json(),
            "files": {name: self._artefacts.put(content) for name, content in contents.items()},
            "created_at": time.time(),
        }
        with self._database.write() as session:
            self._networks.ensure_device(session, manifest.fingerprint)
            self._networks.ensure_space(session, manifest.structure_hash)
            self._database.insert_new(session, LPNet, [row])
        return self.get(lpnet_id)


def require_working(predictor: Predictor) -> None:
    """Make sure that an LPNet predicts the unpruned network to be near what was measured.

    Raises:
        ProfileError: it does not run, or says something else altogether.
    """
    full_widths, reference_ms = predictor.manifest.full_widths, predictor.manifest.reference_ms
    inside = (full_widths - 0.5)[None]  # between grid points
    try:
        predicted_ms = float(predictor.predict_ms(full_widths)[0])
        shapes = [predictor.predict_ms(widths).shape for widths in (full_widths, inside)]
        if predictor.has_gradient:
            shapes.append(predictor.gradient(inside)[1].shape[:1])
        if predictor.manifest.largest_spread is not None:
            found = [predictor.predict(widths) for widths in (full_widths, inside)]
            shapes += [one.high_ms.shape for one in found]
            n_shares = len(predictor.manifest.layer_names) + 1
            shapes += [(1,) if one.layer_ms.shape == (1, n_shares) else one.layer_ms.shape for one in found]
    except Exception as error:  # ORT's exceptions share no base class below Exception
        raise ProfileError(f"The LPNet does not run: {str(error).splitlines()[0]}.") from error
    if set(shapes) != {(1,)}:
        raise ProfileError(f"The LPNet answers with shapes {shapes} where one network was asked for.")
    if not 0.5 * reference_ms < predicted_ms < 2 * reference_ms:
        raise ProfileError(
            f"The LPNet predicts {predicted_ms:.4g} ms for the unpruned network, which takes {reference_ms:.4g} ms."
        )


def _record(row: LPNet) -> LPNetRecord:
    return LPNetRecord(
        id=row.id,
        structure_hash=row.structure_hash,
        device_digest=row.device_digest,
        manifest=row.manifest,
        files=row.files,
        created_at=row.created_at,
    )
