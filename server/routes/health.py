"""Probes, metrics and the drain hook. No authentication."""

import ipaddress

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.schemas.errors import ApiError
from server.service import Service

router = APIRouter()
# Set by proxies and, for a script of a web page, by browsers.
FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")


@router.get("/healthz", operation_id="healthz")
async def healthz() -> JSONResponse:
    """Liveness: the process responds."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", operation_id="readyz")
async def readyz(request: Request) -> JSONResponse:
    """Readiness: a device is loaded and responds, and new requests are accepted."""
    service: Service = request.app.state.service
    service.lifecycle.check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/metrics", operation_id="metrics")
async def metrics(request: Request) -> Response:
    """Metrics in the Prometheus text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/drain", operation_id="drain")
async def drain(request: Request) -> JSONResponse:
    """Start draining, from a preStop hook. Refused for other hosts, proxies and web pages."""
    if not _is_local(request):
        raise ApiError(
            403, "forbidden", "This endpoint accepts requests only from the same machine, without a proxy."
        )
    lifecycle = request.app.state.service.lifecycle
    lifecycle.drain()
    return JSONResponse({"status": "draining", "in_flight": lifecycle.in_flight})


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in FORWARDING_HEADERS):
        return False
    return ipaddress.ip_address(request.client.host).is_loopback
