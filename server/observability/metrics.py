"""Prometheus metrics."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.messages import UnitKind
from server import VERSION
from server.engine_port import Engine, Queue
from server.observability.request_record import RequestRecord
from server.schemas.responses import UNFINISHED, JobStatus

WHOLE = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
STAGE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
JOB = (1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)
BATCH = (1, 2, 4, 8, 16, 32, 64)
REJECTIONS = (
    "queue_full",
    "deadline_unreachable",
    "concurrency_limit",
    "model_not_ready",
    "queue_unavailable",
    "server_draining",
    "body_memory_full",
    "upload_memory_full",
    "too_many_connections",
    "invalid_api_key",
)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Counters and histograms are updated by events; gauges of the engine are read at each scrape."""

    def __init__(self, engine: Engine, queue: Queue | None = None) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Image requests by outcome: ok or an error code.", "outcome"
        )
        self._rejected = self._counter(
            "rejected", "Image requests refused before admission, by reason.", "reason"
        )
        for reason in REJECTIONS:
            self._rejected.labels(reason)
        self._aborts = self._counter("aborts", "Image requests whose client disconnected.")
        self._images = self._counter("images", "Images returned.")
        self._request = self._seconds(
            "request_duration",
            "Duration of an image request, from its first byte to the last byte of the response.",
            WHOLE,
        )
        self._queue = self._seconds(
            "queue", "Time of a request in the queue, before its first unit of work on a device.", WHOLE
        )
        self._image = self._seconds(
            "image_encoding", "Duration of encoding the image files of a request.", STAGE
        )
        self._units: dict[UnitKind, Histogram] = {
            "encode": self._seconds("encode", "Duration of a text encoder pass.", STAGE),
            "encode_image": self._seconds("encode_image", "Duration of a VAE encoder pass.", STAGE),
            "denoise": self._seconds("step", "Duration of a denoising step of a batch.", STAGE),
            "decode": self._seconds("decode", "Duration of a VAE decoder pass.", STAGE),
        }
        self._batch = Histogram(
            "ideoserve_batch_size", "Images per denoising step.", buckets=BATCH, registry=self._registry
        )
        self._upstreams = self._counter(
            "backend_requests",
            "Calls of other services by outcome: ok or what went wrong.",
            "backend",
            "outcome",
        )
        self._upstream = self._seconds("backend", "One call of another service.", STAGE)
        self._dead_letters = self._counter(
            "webhook_dead_letters",
            "Webhooks that were given up, by the reason of the last failure.",
            "reason",
        )
        self._jobs = self._counter("jobs", "Jobs that this server finished, by outcome.", "outcome")
        self._job = self._seconds("job_duration", "Time from the creation of a job to its end.", JOB)
        self._registry.register(_EngineCollector(engine))
        if queue is not None:
            self._registry.register(_QueueCollector(queue))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        engine.subscribe(self._on_unit)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def finish(self, record: RequestRecord) -> None:
        """Count one finished image request."""
        self._requests.labels(record.outcome).inc()
        self._request.observe(record.seconds)
        if record.outcome in REJECTIONS and record.generation_id is None:
            self._rejected.labels(record.outcome).inc()
        if record.outcome == "client_disconnected":
            self._aborts.inc()
        if record.timings and record.parameters:
            self._images.inc(len(record.parameters.seeds))
            self._queue.observe(record.timings.times.queue)
            self._image.observe(record.timings.image)

    def observe_store(self, stored_bytes: Callable[[], float]) -> None:
        """Export the size of the stored images."""
        text = "Size of the stored images as of the last sweep."
        Gauge("ideoserve_store_bytes", text, registry=self._registry).set_function(stored_bytes)

    def on_upstream(self, name: str, outcome: str, seconds: float) -> None:
        """Count one call of another service."""
        self._upstreams.labels(name, outcome).inc()
        self._upstream.observe(seconds)

    def on_dead_letter(self, reason: str) -> None:
        """Count a webhook that was given up."""
        self._dead_letters.labels(reason).inc()

    def on_job(self, outcome: str, seconds: float) -> None:
        """Count a job that ended: ok, cancelled or an error code."""
        self._jobs.labels(outcome).inc()
        self._job.observe(seconds)

    def observe_jobs(self, count: Callable[[JobStatus], int]) -> None:
        """Read the unfinished jobs of all servers at each scrape."""
        gauge = Gauge(
            "ideoserve_jobs_unfinished",
            "Jobs of all servers, by status: queued or running.",
            ("status",),
            registry=self._registry,
        )
        for status in UNFINISHED:
            gauge.labels(status).set_function(partial(count, status))

    def _on_unit(self, kind: UnitKind, batch_size: int, seconds: float) -> None:
        self._units[kind].observe(seconds)
        if kind == "denoise":
            self._batch.observe(batch_size)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ideoserve_{name}", text, labels, registry=self._registry)

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"ideoserve_{name}_seconds", text, buckets=buckets, registry=self._registry)


class _EngineCollector:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats, config = self._engine.stats(), self._engine.config
        yield _gauge("requests_running", "Requests that run on a device.", stats.running)
        yield _gauge("requests_waiting", "Admitted requests that have not started.", stats.waiting)
        yield _gauge(
            "backlog_seconds",
            "Predicted device time of the unfinished work on the least loaded device.",
            self._engine.backlog_seconds("batch"),
        )
        yield _gauge(
            "device_memory_bytes",
            "Peak device memory during the last unit of work.",
            stats.device_memory_bytes,
        )
        yield _gauge("ready", "1 if a device is loaded, warm and responds.", float(self._engine.is_ready))
        yield _labelled(
            "devices", "Devices by state: ready, silent, starting or failed.", "state", stats.devices
        )
        yield _gauge(
            "start_seconds",
            "Time from the last start of a worker until it was ready, the longest of all devices; 0 before.",
            stats.start_seconds,
        )
        yield _counter("worker_restarts", "Worker restarts.", stats.restarts)
        yield _counter("prompt_cache_hits", "Prompts found in the prompt cache.", stats.cache_hits)
        yield _counter("prompt_cache_misses", "Prompts not found in the prompt cache.", stats.cache_misses)
        labels = {"version": VERSION, "model": config.model_id, "model_hash": config.fingerprint}
        info = GaugeMetricFamily(
            "ideoserve_build_info", "Version of the server and identity of the model.", labels=list(labels)
        )
        info.add_metric(list(labels.values()), 1)
        yield info


class _QueueCollector:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        stats = self._queue.queue_stats()
        yield _gauge("queue_up", "1 if the broker can be reached.", float(self._queue.is_up))
        yield _counter("queue_pulled", "Requests pulled from the queue.", stats.pulled)
        yield _counter(
            "queue_redelivered", "Requests pulled after a worker died with them.", stats.redelivered
        )
        yield _gauge("queue_held", "Requests of the queue that this worker has.", stats.held)
        yield _gauge("queue_unsent", "Finished requests whose results are not stored yet.", stats.unsent)
        yield _labelled(
            "queue_waiting", "Requests in the queue, as of the last seconds.", "priority", stats.waiting
        )
        yield _labelled(
            "queue_oldest_seconds",
            "Time that the oldest request in the queue has waited, as of the last seconds.",
            "priority",
            stats.oldest_seconds,
        )
        dead = CounterMetricFamily(
            "ideoserve_queue_dead_letters", "Messages of the queue that no worker runs.", labels=["reason"]
        )
        for reason, number in stats.dead_letters.items():
            dead.add_metric([reason], number)
        yield dead


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ideoserve_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[Any, float]) -> Metric:
    gauge = GaugeMetricFamily(f"ideoserve_{name}", text, labels=[label])
    for value, number in values.items():
        gauge.add_metric([value], number)
    return gauge


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"ideoserve_{name}", text, value=value)
