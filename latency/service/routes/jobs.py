"""Work that takes longer than a request: asked for, polled, cancelled."""

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.status import HTTP_202_ACCEPTED

from latency.errors import InputError, NotInstalledError
from latency.registry.records import JobRecord
from latency.service.state import Body, Parts

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

POLL_AFTER_S = 2


class TrainingOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What to train: an LPNet of a stored profile set."""

    profile_id: str
    seed: int = 0


@router.get("")
def list_jobs(service: Parts) -> list[JobRecord]:
    """The newest hundred jobs, the newest first."""
    return service.registry.jobs.all()


@router.post(
    "",
    status_code=HTTP_202_ACCEPTED,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["profile_id"],
                        "properties": {
                            "profile_id": {"type": "string"},
                            "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
                        },
                        "additionalProperties": False,
                    },
                    "example": {"profile_id": "5b2c9e0d4f1a7788", "seed": 0},
                }
            },
        }
    },
)
def train(request: Request, response: Response, body: Body, service: Parts) -> JobRecord:
    """Train an LPNet on a stored profile set, as `trimms fit` does: accepted now, done later.

    Poll the job at `Location`; its result names the LPNet.
    """
    try:
        order = msgspec.json.decode(body, type=TrainingOrder)
    except msgspec.DecodeError as error:
        raise InputError(f'A job is JSON such as {{"profile_id": "…", "seed": 0}}: {error}.') from error
    if not 0 <= order.seed < 2**31:
        raise InputError(f"seed is from 0 to {2**31 - 1}; got {order.seed}.")
    if not service.can_train:
        raise NotInstalledError(
            "Training needs torch, which is not installed where this service runs: pip install 'trimms[prune]' there, "
            "or train with `trimms fit` elsewhere and upload the LPNet."
        )
    profile = service.registry.profiles.get(order.profile_id)
    service.registry.networks.base(profile.structure_hash)  # what the fit needs as well
    job = service.registry.jobs.submit("train", {"profile_id": order.profile_id, "seed": order.seed})
    response.headers["Location"] = f"{request.url.path}/{job.id}"
    response.headers["Retry-After"] = str(POLL_AFTER_S)
    return job


@router.get("/{job_id}")
def show_job(job_id: str, service: Parts) -> JobRecord:
    """How far a job is."""
    return service.registry.jobs.get(job_id)


@router.delete("/{job_id}", status_code=HTTP_202_ACCEPTED)
def cancel_job(job_id: str, service: Parts) -> JobRecord:
    """Ask to cancel a job; poll it to see when it has ended."""
    return service.registry.jobs.cancel(job_id)
