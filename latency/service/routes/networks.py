"""Devices and search spaces."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette.status import HTTP_201_CREATED

from latency.registry.networks import LONGEST_NAME
from latency.registry.records import DeviceRecord, SpaceRecord
from latency.service.state import Body, Parts, binary_body

router = APIRouter(prefix="/v1", tags=["devices and search spaces"])


@router.get("/devices")
def list_devices(service: Parts) -> list[DeviceRecord]:
    """Devices that profiles or LPNets belong to, the one known longest first."""
    return service.registry.networks.devices()


@router.get("/devices/{digest}")
def show_device(digest: str, service: Parts) -> DeviceRecord:
    """A device by the digest of its fingerprint."""
    return service.registry.networks.device(digest)


@router.get("/spaces")
def list_spaces(service: Parts) -> list[SpaceRecord]:
    """Search spaces, the one known longest first."""
    return service.registry.networks.spaces()


@router.get("/spaces/{structure_hash}")
def show_space(structure_hash: str, service: Parts) -> SpaceRecord:
    """A search space by the hash of its structure."""
    return service.registry.networks.space(structure_hash)


@router.post(
    "/spaces",
    status_code=HTTP_201_CREATED,
    openapi_extra=binary_body("application/octet-stream", "A base.onnx, as `trimms trace` writes it."),
)
def upload_space(
    body: Body, service: Parts, name: Annotated[str, Query(max_length=LONGEST_NAME)] = ""
) -> SpaceRecord:
    """Keep a base network; the same one again changes nothing but its name."""
    return service.registry.networks.add_space(body, name)


@router.get("/spaces/{structure_hash}/base", response_class=Response)
def download_space(structure_hash: str, service: Parts) -> Response:
    """The base network's ONNX file."""
    return Response(service.registry.networks.base(structure_hash), media_type="application/octet-stream")
