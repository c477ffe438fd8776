"""The components of the application, and the dependencies that give them to the routes."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Protocol

from fastapi import Depends, Request

from server import store
from server.access.admission import Admission
from server.access.api_keys import Caller, Keys
from server.adapters.catalog import Catalog
from server.engine_port import Engine
from server.generation.generations import Generations
from server.generation.idempotency import IdempotencyCache
from server.generation.image_encoder import ImageEncoder
from server.generation.parameters import ServedModel
from server.generation.sharing import SharedQueue
from server.integrations import Integrations
from server.observability import logs
from server.observability.metrics import Metrics
from server.observability.request_record import RequestRecord
from server.schemas.errors import invalid
from server.schemas.images import job_request, limited_to
from server.settings.settings import Settings
from server.store.results import Results
from server.transport.body import Bodies
from server.transport.lifecycle import Lifecycle
from server.upstream.client import UpstreamClients

if TYPE_CHECKING:  # imported only if a queue is set
    from server.jobs import JobService
    from server.jobs.jobs import Jobs
    from server.queue.connection.broker import Broker


class _Spans(Protocol):
    def export(self, record: RequestRecord) -> None: ...
    def close(self) -> None: ...


class Service:
    """Raises CheckpointError or ConfigError. `adapters` are those of the settings, unless they are given."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        queue: SharedQueue | None = None,
        broker: "Broker | None" = None,
        adapters: Catalog | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.keys = Keys(settings.api_keys_file)
        self.adapters = adapters or Catalog.of(settings, engine.config)
        self.lifecycle = Lifecycle(engine, queue)
        self.bodies = Bodies(settings)
        self.metrics = Metrics(engine, queue)
        self.results = store.from_settings(settings, self.metrics.on_upstream, broker)
        if self.results:
            self.metrics.observe_store(self.results.stored_bytes)
        self.encoder = ImageEncoder(settings, lambda: engine.config)
        self.upstreams = UpstreamClients(self.metrics.on_upstream)
        self.integrations = Integrations(settings, self.upstreams, engine.config.model_id)
        self.generations = Generations(
            engine,
            Admission(engine, settings.max_backlog_seconds, settings.batch_backlog_share),
            IdempotencyCache(settings.idempotency_seconds, settings.idempotency_bytes),
            self.encoder,
            self.integrations,
            queue,
        )
        self.model = ServedModel(engine.config, settings.model_aliases, settings.size_policy)
        self.request_model = limited_to(engine.config, settings.max_n)
        self.job_model = job_request(self.request_model)
        self._job_service = None if broker is None else self._create_job_service(broker)
        self._spans = _spans(settings.otlp_endpoint)

    def _create_job_service(self, broker: "Broker") -> "JobService":
        from server.jobs import JobService

        assert self.results is not None, "a server with a broker has a store"
        files = self.results.store
        service = JobService(
            self.settings, broker, self.engine, self.generations, files, self.lifecycle, self.metrics
        )
        self.metrics.observe_jobs(service.jobs.index.count)
        return service

    async def start(self) -> None:
        await self.engine.start()
        await self.adapters.start()
        if self.results:
            await self.results.start()
        if self._job_service:
            await self._job_service.start()

    async def close(self) -> None:
        if self._job_service:
            await self._job_service.close()
        await self.engine.close()
        await self.adapters.close()
        if self.results:
            self.results.close()
        await self.upstreams.close()
        self.encoder.close()
        if self._spans:
            self._spans.close()

    @property
    def jobs(self) -> "Jobs | None":
        """None without a queue."""
        return self._job_service.jobs if self._job_service else None

    def model_of(self, caller: Caller) -> ServedModel:
        """The served model with the adapters that the caller may use."""
        return replace(self.model, offer=self.adapters.offered_to(caller.name))

    def authenticate(self, request: Request, record: RequestRecord) -> Caller:
        """Raises ApiError 401."""
        caller = self.keys.authenticate(request.headers)
        record.key = caller.name
        return caller

    def open_store(self) -> Results:
        """The store of images, with room for more. Raises ApiError 400 or 503."""
        if self.results is None:
            message = "Images have no URLs without a store: set --store on the server, or use `b64_json`."
            raise invalid(message, "response_format")
        self.results.check_room()
        return self.results

    def enter(self, record: RequestRecord) -> None:
        """Count the request as in flight: a drain waits for it. Raises ApiError 503."""
        self.lifecycle.check_open()
        self._entered(record)

    def enter_job(self, record: RequestRecord) -> None:
        """As `enter`, but whether a device is ready does not matter. Raises ApiError 503."""
        self.lifecycle.check_accepting()
        self._entered(record)

    def _entered(self, record: RequestRecord) -> None:
        self.lifecycle.request_started()
        record.is_in_flight = True

    def finish(self, record: RequestRecord) -> None:
        """The request was answered, or its client is gone."""
        if record.is_in_flight:
            self.lifecycle.request_finished()
        if record.is_image_request:
            self.metrics.finish(record)
        self._log(record)

    def _log(self, record: RequestRecord) -> None:
        logs.log_request(record, self.settings.log_prompts)
        if self._spans and record.is_image_request:
            self._spans.export(record)


def _spans(endpoint: str | None) -> _Spans | None:
    if endpoint is None:
        return None
    from server.observability.tracing import Spans  # an optional extra

    return Spans(endpoint)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


InjectedService = Annotated[Service, Depends(_service)]


async def _authenticate(request: Request, service: InjectedService) -> Caller:
    return service.authenticate(request, request.state.record)


AuthenticatedCaller = Annotated[Caller, Depends(_authenticate)]
