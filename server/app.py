"""The FastAPI application and its middleware."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route

from server import VERSION
from server.adapters.catalog import Catalog
from server.engine_port import Engine
from server.generation.sharing import SharedQueue
from server.openapi.document import describe
from server.openapi.edits import describe_edits
from server.openapi.jobs import describe_jobs
from server.routes import captions, files, health, images, jobs, models, playground
from server.schemas.errors import ApiError
from server.service import Service
from server.settings.settings import Settings
from server.transport.middleware import ErrorMiddleware, RequestMiddleware
from server.transport.server import serve

if TYPE_CHECKING:
    from server.queue.connection.broker import Broker

# Response headers that cross-origin scripts can read.
EXPOSED_HEADERS = (
    "Retry-After",
    "Server-Timing",
    "X-Request-Id",
    "X-Seed",
    "X-Should-Retry",
    "X-Warnings",
)
RESOURCES = (images, jobs, files, captions, models, health, playground)


def create_app(
    settings: Settings,
    engine: Engine,
    queue: SharedQueue | None = None,
    broker: "Broker | None" = None,
    adapters: Catalog | None = None,
) -> FastAPI:
    """Create the application, which starts and closes the engine with itself. A worker serves only probes,
    metrics and the drain hook. Raises CheckpointError or ConfigError.

    `broker` is that of the queue, for jobs; without one there are none. `adapters` are those of the settings,
    unless they are given.
    """
    service = Service(settings, engine, queue, broker, adapters)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="ideoserve",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    _add_middleware(app, service)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for resource in (health,) if settings.role == "worker" else RESOURCES:
        app.include_router(resource.router)
    app.openapi = lambda: _described(app, service)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI, service: Service) -> dict[str, Any]:
    document = describe_edits(describe(app, service), service)
    return describe_jobs(document, service)


def run(app: FastAPI, sockets: list[socket.socket]) -> int:
    """Serve until a signal or the end of the engine. Returns the exit code."""
    service: Service = app.state.service
    return serve(app, service.settings, service.lifecycle, service.engine, sockets)


def _add_middleware(app: FastAPI, service: Service) -> None:
    """From the innermost to the outermost: error responses get CORS headers, preflights get a log line."""
    app.add_middleware(ErrorMiddleware, settings=service.settings)
    if service.settings.cors_origin_list:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origin_list,
            allow_methods=("DELETE", "GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestMiddleware, is_closing=service.lifecycle.is_closing, finish=service.finish)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer OPTIONS; raise Starlette's 404 and 405 as ApiError."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(_allowed_methods(request, headers["Allow"])))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    raise ApiError(error.status_code, code, error.detail, headers=headers)


def _allowed_methods(request: Request, allow: str) -> set[str]:
    """The methods of all routes of the path, where Starlette lists those of the first; with OPTIONS and,
    where GET is, HEAD."""
    routes = [route for each in RESOURCES for route in each.router.routes if isinstance(route, Route)]
    matching = [route.methods or () for route in routes if route.matches(request.scope)[0] != Match.NONE]
    methods = {"OPTIONS", *allow.split(", "), *chain.from_iterable(matching)}
    return methods | {"HEAD"} if "GET" in methods else methods
