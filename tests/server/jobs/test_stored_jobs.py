"""A job as it is stored: the request that another server reads is the one that was sent."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine.adapters.adapter_file import AdapterInfo
from server.access.api_keys import Caller
from server.adapters.adapter import Adapter, Weights
from server.adapters.offer import Offer
from server.generation.generations import GenerationRequest
from server.generation.idempotency import Fingerprint
from server.generation.parameters import ServedModel, resolve
from server.generation.processing import OptOuts
from server.jobs.job import VERSION, JobRecord, JobSpec
from server.schemas.errors import RefusedError
from server.schemas.images import ImageRequest
from server.schemas.issue import Issue
from tests.server.fake_engine import CONFIG

NOW = 1_750_000_000.0
CAPTION = {
    "high_level_description": "caf\u00e9 \u2028 \U0001f600",
    "compositional_deconstruction": {
        "background": "sea",
        "elements": [{"type": "obj", "bbox": [1, 2, 3, 4], "desc": "x", "odd": [1.5, 1e300, 2**70, None]}],
    },
}
BODIES: list[dict[str, Any]] = [
    {"prompt": "a cat"},
    {"prompt": "a \u2028 cat", "n": 3, "seed": 2**31 - 2, "partial_images": 2, "output_format": "webp"},
    {"json_prompt": CAPTION, "style": "ignored"},
    {"prompt": "{broken", "mu": 0.1, "std": 1.7, "guidance_schedule": [1, 7.3, 19.999999999999996]},
    {"prompt": "a cat", "adapters": [{"name": "style", "scale": 0.1, "steps": [1, 7]}]},
]


INFO = AdapterInfo("peft", 2, 8, 1000, "conditional", ("x",))
OFFER = Offer({"style": Adapter("style", weights=Weights(Path("style.safetensors"), "ff", INFO))})


def spec(body: dict[str, Any], **fields: Any) -> JobSpec:
    wanted = ImageRequest.read({"size": "64x64", **body})
    request = GenerationRequest(
        caller=Caller("k\u00e9y", 3, ("batch",), ("moderation",)),
        parameters=resolve(wanted, ServedModel(CONFIG, offer=OFFER)),
        opt_outs=OptOuts("off", moderation=True),
        priority="batch",
        deadline=time.monotonic() + 60,
        fingerprint=Fingerprint.of("k", "key", b"\xff", "png"),
    )
    return JobSpec("job-1", time.time(), time.time() + 60, "model", request, **fields)


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_a_stored_request_is_exact(body: dict[str, Any]) -> None:
    sent = spec(body, device_seconds=0.1, digest="ff", webhook="https://a.b", metadata={"a": "\U0001f600"})
    read = JobSpec.from_json(sent.to_json())
    for name in ("caller", "parameters", "opt_outs", "priority"):
        assert getattr(read.request, name) == getattr(sent.request, name)
    assert read.attempt(1, 0).parameters.prompt.warnings == sent.request.parameters.prompt.warnings
    assert len(read.request.parameters.adapters) == len(body.get("adapters", ()))
    assert [type(value) for value in read.request.parameters.sampling.guidance_schedule] == [float] * len(
        sent.request.parameters.sampling.guidance_schedule
    )
    for name in ("id", "created_at", "deadline", "submission", "digest", "webhook", "metadata"):
        assert getattr(read, name) == getattr(sent, name)


def test_each_attempt_has_its_own_id_and_the_deadline_of_the_job() -> None:
    stored = spec({"prompt": "a cat"})
    first, second = stored.attempt(1, 60), stored.attempt(2, 60)
    assert first.request_id != second.request_id
    assert first.deadline == second.deadline == 60
    assert first.fingerprint is not None  # of this process; it is not stored
    assert JobSpec.from_json(stored.to_json()).request.fingerprint is None


def test_a_job_of_another_version_is_refused() -> None:
    data = json.loads(spec({"prompt": "a cat"}).to_json())
    for version in (VERSION - 1, VERSION + 1):
        said = f"the job has version {version}; this server runs version {VERSION}"
        with pytest.raises(ValueError, match=said):
            JobSpec.from_json(json.dumps(data | {"version": version}).encode())
    del data["request"]["parameters"]["seeds"]
    with pytest.raises(ValueError, match=r"^the job is invalid at request\.parameters\.seeds$"):
        JobSpec.from_json(json.dumps(data).encode())


def test_a_record_keeps_what_a_client_sees() -> None:
    record = JobRecord.of(spec({"prompt": "a cat"})).started(NOW)
    failed = record.failed(NOW, RefusedError("prompt", ["b", "a"]))
    read = JobRecord.from_json(failed.to_json())
    assert read == failed
    assert read.error is not None
    assert (read.error["categories"], read.outcome) == (["a", "b"], "content_policy_violation")
    assert (record.requeued().status, record.requeued().attempts) == ("queued", 1)
    warned = JobRecord.from_json(
        JobRecord.of(spec({"prompt": "x"})).to_json().replace(b'"warnings":[]', b'"warnings":[%b]' % WARNING)
    )
    assert warned.warnings == (Issue(code="c", path=None, message="m"),)


WARNING = b'{"code":"c","path":null,"message":"m"}'
