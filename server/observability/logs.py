"""Structured logs: JSON lines on stderr, one per request, and those of the libraries."""

import json
import logging
import sys
import time
import traceback
from typing import Any

from server.observability.request_record import RequestRecord

PROBES = ("/healthz", "/readyz", "/metrics")
request_logger = logging.getLogger("ideoserve.request")


class JsonFormatter(logging.Formatter):
    """Exceptions are logged by type and location, not by message, which may contain a prompt."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Send the records of all loggers to one handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore"):  # they log URLs, which may contain a token
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_request(record: RequestRecord, with_prompt: bool) -> None:
    """Log one request; probes and scrapes at level `debug`."""
    level = logging.DEBUG if record.path in PROBES else logging.INFO
    request_logger.log(level, "request", extra={"fields": _fields(record, with_prompt)})


def _fields(record: RequestRecord, with_prompt: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.parent.trace_id if record.parent else None,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "outcome": record.outcome,
        "seconds": round(record.seconds, 4),
        "key": record.key,
        "priority": record.priority,
        "mode": record.mode,
        "generation_id": record.generation_id,
    }
    if record.parameters:
        parameters = record.parameters
        fields |= {
            "size": parameters.size,
            "preset": parameters.preset,
            "adapters": [use.name for use in parameters.adapters] or None,
            "steps": parameters.sampling.num_inference_steps,
            "n": len(parameters.seeds),
            "seed": parameters.seeds[0],
        }
        if parameters.source:
            fields["strength"] = parameters.source.strength
        if with_prompt:
            fields |= parameters.prompt.facts()
    if record.timings:
        fields["stage_seconds"] = record.timings.stages()
    return {name: value for name, value in fields.items() if value is not None}
