"""`/v1/jobs`: image requests that outlive their connection."""

import re
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from server.access.api_keys import Caller
from server.edits.editing import read
from server.generation.generations import GenerationRequest
from server.offload import offload
from server.routes.image_request import edit_request, image_request
from server.schemas.errors import ApiError, invalid
from server.schemas.images import ImageRequest, JobFields
from server.schemas.responses import JobFilter
from server.schemas.validation import invalid_request
from server.service import AuthenticatedCaller, InjectedService, Service
from server.transport.body import parse
from server.transport.timeouts import job_seconds, ping_seconds

if TYPE_CHECKING:
    from server.jobs.jobs import Jobs

router = APIRouter()
EVENT_ID = re.compile("[0-9]{1,18}")


def is_wanted_as_job(request: Request, service: Service) -> bool:
    """`Prefer: respond-async`, which a server without jobs ignores, as RFC 7240 allows."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    names = (preference.partition(";")[0].strip() for preference in preferences)
    return service.jobs is not None and "respond-async" in names


@router.post("/v1/jobs", operation_id="create_job")
async def create_job(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """Create a job from an image request. The response does not wait for it."""
    _jobs(service)
    service.enter_job(request.state.record)
    async with service.bodies.receive(request) as body:
        wanted = await offload(len(body), lambda: parse(body, service.job_model))
        _refuse_stream(wanted)
        seconds = job_seconds(request.headers, service.settings.job_ttl_seconds)
        submitted = await image_request(request, service, caller, body, wanted, seconds)
    return await _submit(request, service, submitted, wanted)


async def create_edit_job(request: Request, service: Service, caller: Caller, is_variation: bool) -> Response:
    """Create a job from an edit."""
    edits = service.edits
    service.enter_job(request.state.record)
    async with edits.uploads.receive(request) as payload:
        wanted = read(payload, edits.job_model, is_variation)
        _refuse_stream(wanted)
        seconds = job_seconds(request.headers, service.settings.job_ttl_seconds)
        submitted = await edit_request(request, service, caller, payload, wanted, seconds)
    edits.uploads.hold_image(request.state.record, submitted.parameters)
    return await _submit(request, service, submitted, wanted)


def as_preferred(response: Response) -> Response:
    """The response to `Prefer: respond-async`."""
    response.headers["Preference-Applied"] = "respond-async"
    return response


def _refuse_stream(wanted: ImageRequest) -> None:
    """Raises ApiError 400."""
    if wanted.stream:
        raise invalid("A job has no `stream`; read its events at /v1/jobs/{id}/events.", "stream")


async def _submit(
    request: Request, service: Service, submitted: GenerationRequest, wanted: JobFields
) -> Response:
    job = await _jobs(service).submit(submitted, wanted.webhook, wanted.metadata or {})
    request.state.record.generation_id = job.id
    return JSONResponse(job.model_dump(), 202, {"Location": f"/v1/jobs/{job.id}"})


@router.get("/v1/jobs", operation_id="list_jobs")
async def list_jobs(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """List the jobs of the API key, the newest first."""
    jobs = _jobs(service)
    try:
        wanted = JobFilter.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid_request(error) from None
    return JSONResponse((await jobs.page(caller, wanted)).model_dump())


@router.get("/v1/jobs/{job_id}", operation_id="retrieve_job")
async def retrieve_job(
    request: Request, service: InjectedService, caller: AuthenticatedCaller
) -> JSONResponse:
    """Retrieve a job."""
    jobs = _jobs(service)
    record = await jobs.find(request.path_params["job_id"], caller)
    return JSONResponse((await jobs.describe(record)).model_dump())


@router.get("/v1/jobs/{job_id}/events", operation_id="stream_job_events")
async def stream_job_events(
    request: Request, service: InjectedService, caller: AuthenticatedCaller
) -> Response:
    """Stream the events of a job from the first, or from the one after `Last-Event-ID`."""
    from server.jobs.event_stream import JobEventStream  # imports the client of the queue

    jobs, last_id = _jobs(service), _last_event_id(request)
    record = await jobs.find(request.path_params["job_id"], caller)
    if await jobs.has_read_all(record, last_id):
        return Response(status_code=204)  # tells an EventSource not to reconnect
    ping = ping_seconds(request.headers, service.settings.ping_seconds)
    return JobEventStream(jobs, record.id, last_id, request.state.record, ping)


@router.get("/v1/jobs/{job_id}/images/{index}", operation_id="retrieve_job_image")
async def retrieve_job_image(
    request: Request, service: InjectedService, caller: AuthenticatedCaller
) -> Response:
    """Retrieve an image file of a completed job."""
    jobs = _jobs(service)
    image = await jobs.image(request.path_params["job_id"], request.path_params["index"], caller)
    return Response(image.data, media_type=image.media_type, headers={"X-Seed": str(image.seed)})


@router.delete("/v1/jobs/{job_id}", operation_id="delete_job")
async def delete_job(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """Cancel a job that is queued or running; delete one that is finished, with its images."""
    jobs = _jobs(service)
    result = await jobs.delete(request.path_params["job_id"], caller)
    return JSONResponse(result.model_dump())


def _jobs(service: Service) -> "Jobs":
    """Raises ApiError 404."""
    if service.jobs is None:
        message = "This server runs no jobs; start it with `--queue`."
        raise ApiError(404, "jobs_not_enabled", message)
    return service.jobs


def _last_event_id(request: Request) -> int:
    """0 if absent. Raises ApiError 400."""
    text = request.headers.get("last-event-id", "0")
    if not EVENT_ID.fullmatch(text):
        raise invalid("Last-Event-ID must be the id of an event of this job.", "Last-Event-ID")
    return int(text)
