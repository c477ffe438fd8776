"""Edits and variations in the OpenAPI document."""

import copy

from server.edits.request import EditRequest, Expand
from server.observability.request_record import EDIT_PATHS
from server.openapi.document import (
    ERRORS,
    HEADERS,
    IMAGE_FILES,
    Schema,
    errors,
    header_parameters,
    json_of,
    schemas_of,
)
from server.schemas.responses import ImagesResponse
from server.service import Service

EVENT: Schema = {
    "type": "object",
    "description": "image_edit.partial_image, image_edit.completed, error; image_edit.progress if "
    "`progress` is set.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON"}},
}
FILE: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
TEXT: Schema = {"type": "string", "description": "Base64, also in lines, or a data URL."}
IMAGE = "A PNG, JPEG, WebP or AVIF file; of several, the first is used."
MASK = "What is painted, in the shape of the image; see `mask_mode`."


def describe_edits(document: Schema, service: Service) -> Schema:
    """The document with edits; without their paths if the server has none."""
    paths: Schema = document["paths"]
    if not service.edits.is_on:
        document["paths"] = {path: item for path, item in paths.items() if path not in EDIT_PATHS}
        return document
    fields = schemas_of(service.edits.request_model, Expand)
    edit = fields.pop(EditRequest.__name__)
    variation = {key: value for key, value in edit.items() if key != "oneOf"}
    document["components"]["schemas"] |= fields | {
        "EditRequest": _with_images(edit, TEXT),
        "EditForm": _with_images(edit, FILE),
        "VariationRequest": _with_images(variation, TEXT),
        "VariationForm": _with_images(variation, FILE),
    }
    for path, kind in zip(EDIT_PATHS, ("Edit", "Variation"), strict=True):
        _describe(paths[path]["post"], kind)
    return document


def _with_images(schema: Schema, kind: Schema) -> Schema:
    described = copy.deepcopy(schema)
    images = {"anyOf": [kind, {"type": "array", "items": kind, "minItems": 1, "maxItems": 16}]}
    described["properties"] |= {
        "image": images | {"description": IMAGE},
        "mask": kind | {"description": MASK},
    }
    described["required"] = ["image"]
    return described


def _describe(operation: Schema, kind: str) -> None:
    content = {
        "multipart/form-data": {"schema": {"$ref": f"#/components/schemas/{kind}Form"}},
        "application/json": {"schema": {"$ref": f"#/components/schemas/{kind}Request"}},
    }
    operation["requestBody"] = {"required": True, "content": content}
    operation["parameters"] = header_parameters(HEADERS)
    operation["responses"] = {
        "200": {
            "description": "The images.",
            "content": json_of(ImagesResponse) | {"text/event-stream": {"schema": EVENT}} | IMAGE_FILES,
        }
    } | errors(*ERRORS)
