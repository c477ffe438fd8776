"""The served model and its limits."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from engine.config import ModelConfig
from server.errors import ApiError
from server.service import Service

router = APIRouter()


@router.get("/v1/models", operation_id="list_models")
async def list_models(request: Request) -> JSONResponse:
    """The one model this server serves."""
    service: Service = request.app.state.service
    service.authenticate(request, request.state.record)
    return JSONResponse({"object": "list", "data": [describe(service)]})


@router.get("/v1/models/{model_id:path}", operation_id="retrieve_model")
async def retrieve_model(request: Request) -> JSONResponse:
    """The model by its id."""
    service: Service = request.app.state.service
    service.authenticate(request, request.state.record)
    if request.path_params["model_id"] != service.engine.config.model_id:
        raise ApiError(404, "model_not_found", "This server does not serve that model.", param="model")
    return JSONResponse(describe(service))


def describe(service: Service) -> dict[str, Any]:
    config = service.engine.config
    return {
        "id": config.model_id,
        "object": "model",
        "created": config.created,
        "owned_by": "ideoserve",
        "fingerprint": config.fingerprint,
        "default_size": f"{config.default_width}x{config.default_height}",
        "default_preset": config.default_preset,
        "presets": _presets(config),
        "limits": {
            "min_size": config.limits.min_size,
            "max_size": config.limits.max_size,
            "multiple_of": config.limits.multiple_of,
            "max_aspect_ratio": config.limits.max_aspect_ratio,
            "max_prompt_tokens": config.limits.max_prompt_tokens,
            "max_n": service.settings.max_n,
        },
    }


def _presets(config: ModelConfig) -> dict[str, Any]:
    return {
        name: {
            "num_inference_steps": preset.num_inference_steps,
            "guidance_schedule": preset.guidance_schedule,
            "mu": preset.mu,
            "std": preset.std,
        }
        for name, preset in config.presets.items()
    }
