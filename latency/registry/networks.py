"""Devices and search spaces in the registry."""

import time
from collections.abc import Mapping
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from latency.device import DeviceFingerprint
from latency.errors import LatencyError, ModelFileError, NotFoundError
from latency.registry.artefacts import ArtefactStore
from latency.registry.database import Database
from latency.registry.records import DeviceRecord, SpaceRecord
from latency.registry.schema import Device, Space
from latency.space import SearchSpace

LONGEST_NAME = 200


class Networks:
    """Devices that were measured on, and the networks that were measured."""

    def __init__(self, database: Database, artefacts: ArtefactStore) -> None:
        self._database = database
        self._artefacts = artefacts

    def devices(self) -> list[DeviceRecord]:
        """Every device, the one known longest first."""
        with self._database.read() as session:
            return [
                _device_record(row) for row in session.scalars(select(Device).order_by(Device.created_at))
            ]

    def device(self, digest: str) -> DeviceRecord:
        """A device.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.read() as session:
            row = session.get(Device, digest)
        if row is None:
            raise NotFoundError(f"There is no device {digest!r}.")
        return _device_record(row)

    def add_device(self, fingerprint: DeviceFingerprint) -> DeviceRecord:
        """Make a device known; one that is known stays as it is."""
        with self._database.write() as session:
            self.ensure_device(session, fingerprint)
        return self.device(fingerprint.digest)

    def ensure_device(self, session: Session, fingerprint: DeviceFingerprint) -> None:
        """Make a device known within a transaction."""
        row = {
            "digest": fingerprint.digest,
            "description": fingerprint.describe(),
            "fingerprint": fingerprint.to_json(),
            "created_at": time.time(),
        }
        self._database.insert_new(session, Device, [row])

    def spaces(self) -> list[SpaceRecord]:
        """Every search space, the one known longest first."""
        with self._database.read() as session:
            return [_space_record(row) for row in session.scalars(select(Space).order_by(Space.created_at))]

    def space(self, structure_hash: str) -> SpaceRecord:
        """A search space.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.read() as session:
            row = session.get(Space, structure_hash)
        if row is None:
            raise NotFoundError(f"There is no search space {structure_hash!r}.")
        return _space_record(row)

    def add_space(self, base: bytes, name: str = "") -> SpaceRecord:
        """Keep a base network.

        Args:
            base: content of a `base.onnx`.
            name: for people; an earlier one is replaced by any but an empty one.

        Raises:
            ModelFileError: it is no ONNX file with its weights inside.
            UnsupportedGraphError: its channels are not understood.
        """
        space = uploaded_space(base)
        sha256 = self._artefacts.put(base)
        values: dict[str, Any] = {"base_sha256": sha256, "summary": _summary(space)}
        if name:
            values["name"] = name[:LONGEST_NAME]
        with self._database.write() as session:
            self.ensure_space(session, space.structure_hash)
            session.execute(
                update(Space).where(Space.structure_hash == space.structure_hash).values(**values)
            )
        return self.space(space.structure_hash)

    def ensure_space(self, session: Session, structure_hash: str) -> None:
        """Make a search space known within a transaction, though its base network may not be there yet."""
        row = {"structure_hash": structure_hash, "name": "", "summary": {}, "created_at": time.time()}
        self._database.insert_new(session, Space, [row | {"base_sha256": None}])

    def base(self, structure_hash: str) -> bytes:
        """The base network's file.

        Raises:
            NotFoundError: the space is not known, or nobody has uploaded its base network.
        """
        sha256 = self.space(structure_hash).base_sha256
        if sha256 is None:
            raise NotFoundError(
                f"The base network of search space {structure_hash[:12]} has not been uploaded; upload its base.onnx."
            )
        return self._artefacts.get(sha256)


def uploaded_space(base: bytes) -> SearchSpace:
    """The search space of an uploaded base network.

    Raises:
        ModelFileError: it is no ONNX file with its weights inside, or is damaged.
        UnsupportedGraphError: its channels are not understood.
    """
    try:
        space = SearchSpace.from_model(parsed_model(base))
        if not space.layers or not space.structure.graph.inputs:
            raise ModelFileError("The upload is no network: it has no layer, or no input.")
        if space.precision != "fp32":  # such a file says itself which network it was made from
            raise ModelFileError(
                f"The upload is in {space.precision}; upload the base.onnx that it was made from."
            )
        return space
    except LatencyError:
        raise
    except Exception as error:  # what a stranger's file can break is not known beforehand
        raise ModelFileError(
            f"The upload is no network that can be read ({type(error).__name__}: {error})."
        ) from error


def parsed_model(content: bytes) -> onnx.ModelProto:
    """The model in an uploaded ONNX file.

    Raises:
        ModelFileError: it is none, or its weights are in another file.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelFileError(f"The upload is no ONNX file: {error}.") from error
    outside = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        # The name of a file on this machine, as the upload would have it.
        raise ModelFileError(
            f"Weight {outside[0]!r} is outside of the ONNX file; save the model with its weights inside."
        )
    return model


def _summary(space: SearchSpace) -> Mapping[str, Any]:
    return {
        "group_names": [group.name for group in space.groups],
        "full_widths": space.full_widths.tolist(),
        "layer_names": [layer.name for layer in space.layers],
        "input_shape": list(space.input_shape),
        "macs": space.macs(space.full_widths),
    }


def _device_record(row: Device) -> DeviceRecord:
    return DeviceRecord(row.digest, row.description, row.fingerprint, row.created_at)


def _space_record(row: Space) -> SpaceRecord:
    return SpaceRecord(row.structure_hash, row.name, row.base_sha256, row.summary, row.created_at)
