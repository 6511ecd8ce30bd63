"""What every route works with."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from latency.registry.registry import Registry
from latency.service.access import Access
from latency.service.batching import Batcher
from latency.service.metrics import ServiceMetrics
from latency.service.predictors import LastUsed
from latency.service.settings import ServiceSettings
from latency.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Service:
    """An app's parts.

    Attributes:
        registry: what is kept.
        settings: limits.
        access: who may do what.
        metrics: what is counted.
        predictors: LPNets in memory, by id.
        spaces: search spaces in memory, by structure hash.
        can_train: whether jobs that train can be carried out here.
    """

    registry: Registry
    settings: ServiceSettings
    access: Access
    metrics: ServiceMetrics
    predictors: LastUsed[Batcher]
    spaces: LastUsed[SearchSpace]
    can_train: bool


def service_of(request: Request) -> Service:
    """The app's parts."""
    service: Service = request.app.state.service
    return service


async def read_body(request: Request) -> bytes:
    """The request's body; the gate limits its size."""
    return await request.body()


Parts = Annotated[Service, Depends(service_of)]
Body = Annotated[bytes, Depends(read_body)]


def binary_body(media_type: str, description: str) -> dict[str, object]:
    """OpenAPI's description of a body that is a file."""
    schema = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {media_type: {"schema": schema}},
        }
    }
