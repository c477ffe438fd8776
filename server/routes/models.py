"""The served model, its presets, limits and adapters."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.adapters.listing import describe
from server.schemas.models import AdapterList, Model, ModelList
from server.service import AuthenticatedCaller, InjectedService, Service

router = APIRouter()


@router.get("/v1/models", operation_id="list_models")
async def list_models(service: InjectedService, caller: AuthenticatedCaller) -> JSONResponse:
    """List the served model, once under its id, once under each alias, and once with each adapter."""
    model = service.model_of(caller)
    models = [_model(service, name) for name in model.names]
    models += [_model(service, f"{model.config.model_id}:{name}", name) for name in model.offer.names]
    return JSONResponse(ModelList(data=models).model_dump())


@router.get("/v1/models/{model_id:path}", operation_id="retrieve_model")
async def retrieve_model(
    model_id: str, service: InjectedService, caller: AuthenticatedCaller
) -> JSONResponse:
    """Retrieve the served model by its id or an alias, also with an adapter."""
    model = service.model_of(caller)
    if (adapter := model.adapter_in(model_id)) is not None:
        model.offer.find(adapter, "model")
    return JSONResponse(_model(service, model_id, adapter).model_dump())


@router.get("/v1/adapters", operation_id="list_adapters")
async def list_adapters(service: InjectedService, caller: AuthenticatedCaller) -> JSONResponse:
    """List the adapters that the API key may use."""
    model = service.model_of(caller)
    adapters = [describe(adapter, model.config.model_id) for adapter in model.offer]
    return JSONResponse(AdapterList(data=adapters).model_dump())


def _model(service: Service, name: str, adapter: str | None = None) -> Model:
    engine, features = service.engine, service.integrations.configured
    edits, max_n = service.edits.is_on, service.settings.max_n
    return Model.of(engine.config, engine.precision, name, max_n, features, edits, adapter)
