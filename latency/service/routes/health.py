"""Whether the service lives, whether it can answer, and what it counts."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from latency.errors import RegistryError
from latency.service.state import Parts

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """That the process answers."""
    return {"status": "live"}


@router.get("/health/ready")
def ready(service: Parts) -> dict[str, str]:
    """That the database answers and files can be written."""
    try:
        with service.registry.database.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise RegistryError(f"The database does not answer: {error}.") from error
    service.registry.artefacts.require_writable()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
def metrics(service: Parts) -> Response:
    """Counters for Prometheus; it needs a token with the scope read."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
