"""The service as an ASGI app."""

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from latency.registry.registry import Registry
from latency.service.access import REFRESH_S, Access
from latency.service.gate import Gate
from latency.service.metrics import ServiceMetrics
from latency.service.predictors import cached_predictors, cached_spaces
from latency.service.problems import add_handlers
from latency.service.routes import health, jobs, lpnets, networks, page, profiles
from latency.service.routes.predictions import OPERATIONS, Predictions
from latency.service.runner import JobRunner
from latency.service.settings import ServiceSettings
from latency.service.state import Service

PAGE = Path(__file__).parent / "page"

_DESCRIPTION = """How many milliseconds does a pruned network take on a device?

Widths are channels kept, one for each channel group of a search space; latencies are in ms. Errors are
`application/problem+json`; requests need the header `Authorization: Bearer TOKEN`.
"""


def make_app(
    registry: Registry,
    settings: ServiceSettings,
    *,
    listens_on_loopback: bool,
    log_request: Callable[[Mapping[str, object]], None],
) -> ASGIApp:
    """The ASGI app of a registry.

    Args:
        registry: an open registry; whoever opened it closes it.
        settings: limits.
        listens_on_loopback: whether no other machine can reach the server.
        log_request: is given what is known of each request once it is answered.
    """
    access = Access(registry.tokens, listens_on_loopback=listens_on_loopback)
    service = Service(
        registry=registry,
        settings=settings,
        access=access,
        metrics=ServiceMetrics(),
        predictors=cached_predictors(registry, settings.kept_predictors),
        spaces=cached_spaces(registry, max(1, settings.kept_predictors // 16)),
        can_train=settings.run_jobs and can_train_here(),
    )
    predictions = Predictions(service, _everything_else(service))
    return Gate(predictions, access, service.metrics, settings, log_request)


def _everything_else(service: Service) -> FastAPI:
    """Routes that are not on the way of every prediction."""
    app = FastAPI(
        title="trimms",
        version=importlib.metadata.version("trimms"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        # Both load scripts from elsewhere; the page shows what there is.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    add_handlers(app)
    for module in (health, networks, profiles, lpnets, jobs, page):
        app.include_router(module.router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    schema = app.openapi()  # kept by FastAPI from now on
    schema["paths"] |= {path: {"post": operation} for path, operation in OPERATIONS.items()}
    return app


def can_train_here() -> bool:
    """Whether what a fit needs is installed."""
    return all(find_spec(name) is not None for name in ("torch", "sklearn", "safetensors"))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    tasks = [asyncio.create_task(_refresh_tokens(service.access))]
    if service.can_train:
        tasks.append(asyncio.create_task(JobRunner(service.registry).run()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _refresh_tokens(access: Access) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        await asyncio.to_thread(access.refresh)
