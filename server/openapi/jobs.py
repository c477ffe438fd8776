"""The jobs in the OpenAPI document."""

from server.generation.image_encoder import MEDIA_TYPES
from server.openapi.document import (
    EVENT,
    SECURITY,
    Schema,
    errors,
    header_parameters,
    json_of,
    ok,
    schemas_of,
)
from server.schemas.responses import Job, JobDeleted, JobFilter, JobList
from server.service import Service

PATH = "/v1/jobs"
HEADERS = ("X-Request-Id", "X-Request-Timeout", "X-Priority", "Idempotency-Key")
RETRIEVAL_ERRORS = (401, 404, 431, 503)
EVENTS = EVENT | {
    "description": "Those of an image request, and at the end job.completed, job.failed or job.cancelled."
}
PREFER: Schema = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async` creates a job, as `POST /v1/jobs` does.",
    "schema": {"type": "string"},
}
LAST_EVENT_ID: Schema = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The last event that was read.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
}


def describe_jobs(document: Schema, service: Service) -> Schema:
    """The document with the jobs; without their paths if there is no queue."""
    paths: Schema = document["paths"]
    if service.jobs is None:
        document["paths"] = {path: item for path, item in paths.items() if not path.startswith(PATH)}
        return document
    document["components"]["schemas"] |= schemas_of(service.job_model, Job, JobDeleted, JobList)
    _describe_creation(paths)
    _describe_retrieval(paths)
    if service.settings.api_keys_file:
        for path in (each for each in paths if each.startswith(PATH)):
            for operation in paths[path].values():
                operation["security"] = SECURITY
    return document


def _describe_creation(paths: Schema) -> None:
    created = {"202": {"description": "The job; `Location` is its path.", "content": json_of(Job)}}
    operation = paths[PATH]["post"]
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}}
    operation["requestBody"] = {"required": True, "content": body}
    operation["parameters"] = header_parameters(HEADERS)
    operation["responses"] = created | errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 499, 503)
    images = paths["/v1/images"]["post"]
    images["parameters"] = [*images["parameters"], PREFER]
    images["responses"] |= created


def _describe_retrieval(paths: Schema) -> None:
    identified = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
    index = {"name": "index", "in": "path", "required": True, "schema": {"type": "integer"}}
    image = {"schema": {"type": "string", "format": "binary"}}
    paths[PATH]["get"] |= {
        "parameters": JobFilter.parameters(),
        "responses": ok(JobList) | errors(400, 401, 431, 503),
    }
    paths[f"{PATH}/{{job_id}}"]["get"] |= {
        "parameters": [identified],
        "responses": ok(Job) | errors(*RETRIEVAL_ERRORS),
    }
    either = [json_of(model)["application/json"]["schema"] for model in (Job, JobDeleted)]
    paths[f"{PATH}/{{job_id}}"]["delete"] |= {
        "parameters": [identified],
        "responses": {
            "200": {
                "description": "The cancelled job, or that it was deleted.",
                "content": {"application/json": {"schema": {"anyOf": either}}},
            }
        }
        | errors(*RETRIEVAL_ERRORS),
    }
    paths[f"{PATH}/{{job_id}}/events"]["get"] |= {
        "parameters": [identified, LAST_EVENT_ID],
        "responses": {
            "200": {"description": "The events.", "content": {"text/event-stream": {"schema": EVENTS}}},
            "204": {"description": "No event follows `Last-Event-ID`."},
        }
        | errors(400, *RETRIEVAL_ERRORS),
    }
    paths[f"{PATH}/{{job_id}}/images/{{index}}"]["get"] |= {
        "parameters": [identified, index],
        "responses": {
            "200": {"description": "The file.", "content": dict.fromkeys(MEDIA_TYPES.values(), image)}
        }
        | errors(*RETRIEVAL_ERRORS),
    }
