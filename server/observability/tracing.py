"""OpenTelemetry spans; needs the optional extra `otel`."""

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from server import VERSION
from server.observability.request_record import RequestRecord, TraceParent

NANOSECONDS = 1_000_000_000


class Spans:
    """Exports one span per image request with a child span per stage, from a thread of the SDK."""

    def __init__(self, endpoint: str) -> None:
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        resource = Resource.create({"service.name": "ideoserve", "service.version": VERSION})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ideoserve")

    def export(self, record: RequestRecord) -> None:
        start = _nanoseconds(record.started)
        attributes: dict[str, str | int] = {
            "http.request.method": record.method,
            "url.path": record.path,
            "http.response.status_code": record.status,
            "ideoserve.outcome": record.outcome,
            "ideoserve.request_id": record.request_id,
        }
        context = _context(record.parent) if record.parent else None
        name = f"{record.method} {record.path}"
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span(name, context, kind, attributes=attributes, start_time=start)
        if record.timings:
            self._export_stages(span, start, record.timings.stages())
        if record.status >= 500:
            span.set_status(trace.StatusCode.ERROR, record.outcome)
        span.end(start + _nanoseconds(record.seconds))

    def _export_stages(self, parent: trace.Span, start: int, stages: dict[str, float]) -> None:
        context = trace.set_span_in_context(parent)
        for name, seconds in stages.items():
            span = self._tracer.start_span(name, context, start_time=start)
            start += _nanoseconds(seconds)
            span.end(start)

    def close(self) -> None:
        """Export the remaining spans."""
        self._provider.shutdown()


def _context(parent: TraceParent) -> Context:
    remote = trace.SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), True, trace.TraceFlags(int(parent.flags, 16))
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
