"""Probes: live, and ready to take work."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.errors import ApiError
from server.service import Service

router = APIRouter()


@router.get("/healthz")
async def healthz() -> JSONResponse:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """The worker is warm and admission is open."""
    service: Service = request.app.state.service
    if not service.engine.is_ready:
        raise ApiError(503, "model_not_ready", "The model is loading.", retry_after=5)
    return JSONResponse({"status": "ready"})
