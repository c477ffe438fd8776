"""create_app: the parts put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from server import VERSION
from server.engine_port import Engine
from server.routes import captions, health, images, models, openapi, playground
from server.schemas.errors import ApiError
from server.service import Service
from server.settings.settings import Settings
from server.transport.middleware import RequestMiddleware
from server.transport.server import serve


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The engine is started and closed with the application. Raises ConfigError."""
    service = Service(settings, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="ideoserve", version=VERSION, lifespan=lifespan, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    app.add_middleware(
        RequestMiddleware, settings=settings, lifecycle=service.lifecycle, finish=service.finish
    )
    app.add_exception_handler(HTTPException, _raise_api_error)
    for router in (images.router, captions.router, models.router, health.router, playground.router):
        app.include_router(router)
    app.openapi = lambda: openapi.describe(app, service)  # type: ignore[method-assign]
    return app


def run(app: FastAPI) -> int:
    """Serve the application until a signal or the engine's death. Returns the exit code."""
    service: Service = app.state.service
    return serve(app, service.settings, service.lifecycle, service.engine)


async def _raise_api_error(_: Request, error: Exception) -> NoReturn:
    """Starlette's own 404 and 405 in the wire's words."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    raise ApiError(error.status_code, code, error.detail, headers=error.headers)
