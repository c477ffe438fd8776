"""The served model, its presets and its limits."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.schemas.models import Model, ModelList
from server.service import Service

router = APIRouter()


@router.get("/v1/models", operation_id="list_models")
async def list_models(request: Request) -> JSONResponse:
    """List the served model, once under its id and once under each alias."""
    service: Service = request.app.state.service
    service.authenticate(request, request.state.record)
    models = [_model(service, name) for name in service.model.names]
    return JSONResponse(ModelList(data=models).model_dump())


@router.get("/v1/models/{model_id:path}", operation_id="retrieve_model")
async def retrieve_model(request: Request) -> JSONResponse:
    """Retrieve the served model by its id or an alias."""
    service: Service = request.app.state.service
    service.authenticate(request, request.state.record)
    name = request.path_params["model_id"]
    service.model.require(name)
    return JSONResponse(_model(service, name).model_dump())


def _model(service: Service, name: str) -> Model:
    return Model.of(service.engine.config, name, service.settings.max_n)
