"""The served model, its presets and its limits."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.schemas.errors import ApiError
from server.schemas.images import Model, ModelList
from server.service import Service

router = APIRouter()


@router.get("/v1/models", operation_id="list_models")
async def list_models(request: Request) -> JSONResponse:
    """List the served model."""
    service: Service = request.app.state.service
    service.authenticate(request, request.state.record)
    return JSONResponse(ModelList(data=[_model(service)]).model_dump())


@router.get("/v1/models/{model_id:path}", operation_id="retrieve_model")
async def retrieve_model(request: Request) -> JSONResponse:
    """Retrieve the served model by its id."""
    service: Service = request.app.state.service
    service.authenticate(request, request.state.record)
    if request.path_params["model_id"] != service.engine.config.model_id:
        raise ApiError(404, "model_not_found", "This server does not serve that model.", param="model")
    return JSONResponse(_model(service).model_dump())


def _model(service: Service) -> Model:
    return Model.of(service.engine.config, service.settings.max_n)
