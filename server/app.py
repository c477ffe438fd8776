"""create_app: the parts put together, and every exception turned into the wire's error."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server import VERSION
from server.engine_port import Engine
from server.errors import ApiError, ClientDisconnectedError, internal_error
from server.images import ImageEncoder
from server.protocol import limited_to
from server.routes import health, images
from server.service import Service
from server.settings import Settings


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The engine is started and closed with the application."""
    encoder = ImageEncoder(settings.image_threads, settings.png_compress_level)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()
        encoder.close()

    app = FastAPI(title="ideoserve", version=VERSION, lifespan=lifespan)
    app.state.service = Service(settings, engine, encoder, limited_to(engine.config, settings.max_n))
    for router in (images.router, health.router):
        app.include_router(router)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnectedError, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body().model_dump(), error.status, error.headers)


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    return _respond(ApiError(error.status_code, code, error.detail, headers=error.headers))


async def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _on_bug(_: Request, error: Exception) -> Response:
    return _respond(internal_error())
