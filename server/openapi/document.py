"""The OpenAPI document, with the limits of the served model."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.captions.schema import caption_schema
from server.generation.image_encoder import MEDIA_TYPES
from server.observability.request_record import GENERATION_PATHS, IMAGE_PATHS
from server.schemas.errors import ErrorBody
from server.schemas.images import ImageRequest, PromptFields
from server.schemas.models import AdapterList, Model, ModelList
from server.schemas.responses import CaptionReport, ImageEstimate, ImagesResponse
from server.service import Service

Schema = dict[str, Any]
SECURITY: list[Schema] = [{"bearer": []}, {"apiKey": []}]
ERRORS = {
    400: "invalid JSON, an unknown field, a wrong type or value, or a prompt that is too long or was refused",
    401: "missing or invalid API key",
    403: "not permitted for this API key, or by the signature of the URL",
    404: "unknown model, adapter or file, or no edits",
    406: "no media type in Accept is supported",
    408: "the body was not received in time",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "the Idempotency-Key was used with a different body",
    429: "the queue is full, the deadline cannot be met, or the API key is at its concurrency limit",
    431: "too many headers",
    499: "the client closed its side of the connection before the response",
    500: "the worker crashed, the generation failed, or an internal error occurred",
    502: "storing the image for `response_format` `url` failed",
    503: "the model is loading, the server is draining or at a limit of memory or connections, a required "
    "upstream service failed, the store is full, or the file of an adapter is not available yet",
    504: "the deadline passed after admission",
}
IMAGE_FILES: Schema = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()
}
EVENT: Schema = {
    "type": "object",
    "description": "image_generation.partial_image, image_generation.completed, error; "
    "image_generation.queued and image_generation.progress if `progress` is set.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON"}},
}
SCHEMAS = (
    *(PromptFields, CaptionReport, ErrorBody, ImageEstimate, ImagesResponse),
    *(Model, ModelList, AdapterList),
)
VALIDATE_PATH = "/v1/captions/validate"
EXPAND_PATH = "/v1/captions/expand"
ESTIMATE_PATH = "/v1/images/estimate"
CAPTION: Schema = {
    "high_level_description": "a lighthouse in a storm",
    "compositional_deconstruction": {
        "background": "a stormy sea",
        "elements": [{"type": "obj", "bbox": [200, 400, 900, 600], "desc": "a white lighthouse"}],
    },
}
SECURED_PATHS = (
    *("/v1/models", "/v1/models/{model_id}", "/v1/adapters"),
    *(VALIDATE_PATH, EXPAND_PATH, ESTIMATE_PATH),
    *IMAGE_PATHS,
)
HEADERS: dict[str, tuple[str, Schema]] = {
    "X-Request-Id": ("Returned in the response if it matches [A-Za-z0-9._-]{1,128}.", {"type": "string"}),
    "X-Request-Timeout": (
        "Maximum time for the response, in seconds.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    "X-Priority": ("Priority of the request.", {"type": "string", "enum": ["interactive", "batch"]}),
    "Idempotency-Key": (
        "Requests with the same key and body share one generation.",
        {"type": "string", "minLength": 1, "maxLength": 256},
    ),
    "traceparent": ("W3C trace context.", {"type": "string"}),
}


def describe(app: FastAPI, service: Service) -> Schema:
    """Return the OpenAPI document."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    document["components"] = {
        "schemas": schemas_of(service.request_model, *SCHEMAS),
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "Api-Key"},
        },
    }
    for path in GENERATION_PATHS:
        _describe_images(document["paths"][path]["post"], service)
    _describe_estimate(document["paths"][ESTIMATE_PATH]["post"])
    _describe_captions(document)
    _describe_models(document["paths"])
    _describe_files(document["paths"]["/v1/files/{name}"]["get"])
    _describe_probes(document["paths"])
    if service.settings.api_keys_file:
        for path in SECURED_PATHS:
            for operation in document["paths"][path].values():
                operation["security"] = SECURITY
    return document


def _describe_images(operation: Schema, service: Service) -> None:
    content = json_of(ImageRequest)
    content["application/json"]["examples"] = _examples(service)
    operation["requestBody"] = {"required": True, "content": content}
    operation["parameters"] = header_parameters(HEADERS)
    operation["responses"] = {
        "200": {
            "description": "The images.",
            "content": json_of(ImagesResponse) | {"text/event-stream": {"schema": EVENT}} | IMAGE_FILES,
        }
    } | errors(*ERRORS)


def _describe_estimate(operation: Schema) -> None:
    operation["requestBody"] = {"required": True, "content": json_of(ImageRequest)}
    operation["responses"] = ok(ImageEstimate) | errors(400, 401, 403, 404, 408, 413, 415, 431, 503)


def header_parameters(names: Iterable[str]) -> list[Schema]:
    return [
        {"name": name, "in": "header", "required": False, "description": HEADERS[name][0]}
        | {"schema": HEADERS[name][1]}
        for name in names
    ]


def _describe_captions(document: Schema) -> None:
    operation = document["paths"][VALIDATE_PATH]["post"]
    operation["requestBody"] = {"required": True, "content": json_of(PromptFields)}
    operation["responses"] = ok(CaptionReport) | errors(400, 401, 408, 413, 415, 431, 503)
    operation = document["paths"][EXPAND_PATH]["post"]
    operation["requestBody"] = {"required": True, "content": json_of(ImageRequest)}
    operation["parameters"] = header_parameters(("X-Request-Timeout",))
    operation["responses"] = ok(CaptionReport) | errors(
        *(400, 401, 403, 404, 408, 413, 415, 431, 499, 503, 504)
    )
    schemas = document["components"]["schemas"]
    schemas["Caption"] = caption_schema()
    for name in (ImageRequest.__name__, PromptFields.__name__):
        # The model was trained on the first; any object is accepted, with warnings.
        taken = {"anyOf": [{"$ref": "#/components/schemas/Caption"}, {"type": "object"}]}
        schemas[name]["properties"]["json_prompt"]["anyOf"][0] = taken


def _examples(service: Service) -> Schema:
    config = service.engine.config
    width, height = config.default_width, config.default_height
    bodies: dict[str, Schema] = {
        "prompt": {"prompt": "a lighthouse in a storm", "seed": 1},
        "caption": {"json_prompt": CAPTION, "quality": "low"},
        "sides": {
            "prompt": "a lighthouse",
            "width": width,
            "height": height,
            "preset": config.default_preset,
        },
        "stream": {"prompt": "a lighthouse", "stream": True, "partial_images": 2, "output_format": "webp"},
        "sampling": {"prompt": "a lighthouse", "num_inference_steps": 8, "guidance_scale": 4.5},
    }
    return {name: {"value": {"model": config.model_id, **body}} for name, body in bodies.items()}


def _describe_models(paths: Schema) -> None:
    paths["/v1/models"]["get"]["responses"] = ok(ModelList) | errors(401, 431)
    paths["/v1/adapters"]["get"]["responses"] = ok(AdapterList) | errors(401, 431)
    retrieve = paths["/v1/models/{model_id}"]["get"]
    retrieve["responses"] = ok(Model) | errors(401, 404, 431, 503)
    retrieve["parameters"] = [
        {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]


def _describe_files(operation: Schema) -> None:
    operation["responses"] = {
        "200": {"description": "The image.", "content": IMAGE_FILES},
        "206": {"description": "The part named by Range.", "content": IMAGE_FILES},
        "304": {"description": "Not modified."},
        "416": {"description": "Range starts after the end."},
    } | errors(403, 404, 431)


def _describe_probes(paths: Schema) -> None:
    state = {"application/json": {"schema": {"type": "object"}}}
    for path, statuses in {"/healthz": (431,), "/readyz": (431, 503), "/drain": (403, 431)}.items():
        (operation,) = paths[path].values()
        operation["responses"] = {"200": {"description": "OK", "content": state}} | errors(*statuses)
    text = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"]["get"]["responses"] = {"200": {"description": "OK", "content": text}} | errors(431)


def schemas_of(*models: type[BaseModel]) -> Schema:
    _, root = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: Schema = root["$defs"]
    return schemas


def ok(model: type[BaseModel]) -> Schema:
    return {"200": {"description": "OK", "content": json_of(model)}}


def errors(*statuses: int) -> Schema:
    return {
        str(status): {"description": ERRORS[status], "content": json_of(ErrorBody)} for status in statuses
    }


def json_of(model: type[BaseModel]) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
