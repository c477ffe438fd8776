"""Probes, metrics and the drain: no authentication."""

import ipaddress

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.schemas.errors import ApiError
from server.service import Service

router = APIRouter()
# Sent by proxies, and by browsers for a web page.
FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")


@router.get("/healthz", operation_id="healthz")
async def healthz() -> JSONResponse:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", operation_id="readyz")
async def readyz(request: Request) -> JSONResponse:
    """The worker has loaded and warmed up, and admission is open."""
    service: Service = request.app.state.service
    service.lifecycle.check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/metrics", operation_id="metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/drain", operation_id="drain")
async def drain(request: Request) -> JSONResponse:
    """For a preStop hook: readiness fails from now on. Only from this machine, and not through a proxy."""
    if not _is_local(request):
        raise ApiError(403, "forbidden", "Only from this machine.")
    lifecycle = request.app.state.service.lifecycle
    lifecycle.drain()
    return JSONResponse({"status": "draining", "in_flight": lifecycle.in_flight})


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in FORWARDING_HEADERS):
        return False
    return ipaddress.ip_address(request.client.host).is_loopback
