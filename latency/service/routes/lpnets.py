"""Fitted LPNets."""

from dataclasses import dataclass

from fastapi import APIRouter, Response
from starlette.status import HTTP_201_CREATED

from latency.recovery import recovered_widths
from latency.registry.networks import parsed_model
from latency.registry.records import LPNetRecord
from latency.service.state import Body, Parts, binary_body

router = APIRouter(prefix="/v1/lpnets", tags=["LPNets"])

ZIP = "application/zip"


@dataclass(frozen=True, slots=True)
class LPNetSummary:
    """An LPNet in a few figures.

    Attributes:
        id: its version.
        structure_hash: its network.
        device_digest: its device.
        reference_ms: latency of the unpruned network.
        n_groups: length of a width vector.
        n_train: networks it was fitted to.
        held_out_mape: mean error on the held-out networks, 0.01 is 1 %; None where there were none.
        noise_floor_mape: error of one measurement; None where nothing was measured twice.
        created_at: seconds since 1970.
    """

    id: str
    structure_hash: str
    device_digest: str
    reference_ms: float
    n_groups: int
    n_train: int
    held_out_mape: float | None
    noise_floor_mape: float | None
    created_at: float


@router.get("")
def list_lpnets(
    service: Parts, structure_hash: str | None = None, device_digest: str | None = None
) -> list[LPNetSummary]:
    """LPNets, the newest first; of one network or one device if asked."""
    return [_summary(record) for record in service.registry.lpnets.all(structure_hash, device_digest)]


@router.post(
    "",
    status_code=HTTP_201_CREATED,
    openapi_extra=binary_body(ZIP, "A zip archive of the files in an `lpnet` folder."),
)
def upload_lpnet(body: Body, service: Parts) -> LPNetRecord:
    """Keep an LPNet, once its hashes agree and it runs; the same one again changes nothing."""
    return service.registry.lpnets.add_zip(body)


@router.get("/{lpnet_id}")
def show_lpnet(lpnet_id: str, service: Parts) -> LPNetRecord:
    """An LPNet with its whole manifest: groups, grid, layers, device, metrics."""
    return service.registry.lpnets.get(lpnet_id)


@router.get("/{lpnet_id}/files", response_class=Response)
def download_lpnet(lpnet_id: str, service: Parts) -> Response:
    """A zip archive of the LPNet's files."""
    return Response(service.registry.lpnets.read_zip(lpnet_id), media_type=ZIP)


@router.post(
    "/{lpnet_id}/predict-onnx",
    openapi_extra=binary_body("application/octet-stream", "A pruned network, such as `pruned.onnx`."),
)
def predict_onnx(lpnet_id: str, body: Body, service: Parts) -> dict[str, object]:
    """Latency of a pruned network in an ONNX file; its widths are recovered by comparison with the base network."""
    predictor = service.predictors.get(lpnet_id).predictor
    space = service.spaces.get(predictor.manifest.structure_hash)
    widths = recovered_widths(space, parsed_model(body))
    found = predictor.predict(widths)
    service.metrics.predictions.inc()
    return {
        "lpnet": lpnet_id,
        "unit": "ms",
        "latency_ms": float(found.latency_ms[0]),
        "low_ms": float(found.low_ms[0]),
        "high_ms": float(found.high_ms[0]),
        "out_of_range": bool(found.out_of_range[0]),
        "widths": dict(zip(predictor.manifest.group_names, widths.tolist(), strict=True)),
    }


def _summary(record: LPNetRecord) -> LPNetSummary:
    manifest = record.manifest
    own = manifest["metrics"].get(manifest["kind"])
    return LPNetSummary(
        id=record.id,
        structure_hash=record.structure_hash,
        device_digest=record.device_digest,
        reference_ms=manifest["reference_ms"],
        n_groups=len(manifest["group_names"]),
        n_train=manifest["n_train"],
        held_out_mape=None if own is None else own["mape"],
        noise_floor_mape=manifest["noise_floor_mape"],
        created_at=record.created_at,
    )
