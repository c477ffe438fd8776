"""Generate a steady mixed load on a balancer and record the outcome of each request."""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

import httpx

BODY = {"prompt": "a red circle on a white background", "size": "64x64", "num_inference_steps": 2}
PAUSE_SECONDS = 0.25  # between two requests of a client, to stay below saturation
MAX_REQUESTS = 2000  # per load


@dataclass
class Outcome:
    """Outcome of one request. `error` is empty on success, `server` is empty if no response head arrived."""

    body: dict[str, Any]
    key: str
    error: str = ""
    server: str = ""
    image: str = ""

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


async def ask(client: httpx.AsyncClient, body: dict[str, Any], began: asyncio.Event | None = None) -> Outcome:
    """Send one request without retries. Sets `began` at the response head, or at the end if there is none."""
    outcome = Outcome(body, uuid4().hex)
    return await ask_again(client, outcome, began)


async def ask_again(
    client: httpx.AsyncClient, before: Outcome, began: asyncio.Event | None = None
) -> Outcome:
    """Send the request again with the same Idempotency-Key."""
    outcome = Outcome(before.body, before.key)
    try:
        headers = {"Idempotency-Key": outcome.key}
        async with client.stream("POST", "/v1/images", json=outcome.body, headers=headers) as response:
            outcome.server = response.headers.get("x-served-by", "").rpartition(" ")[2]
            if began and outcome.is_stream:
                began.set()
            text = (await response.aread()).decode()
        outcome.error = "" if response.status_code == 200 else f"{response.status_code} {text[:200]}"
        if not outcome.error:
            outcome.image = _image(text, outcome.is_stream)
    except httpx.TransportError as error:
        outcome.error = repr(error)
    finally:
        if began:
            began.set()
    return outcome


def _image(text: str, is_stream: bool) -> str:
    if not is_stream:
        return str(json.loads(text)["data"][0]["b64_json"])
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1]["type"] == "image_generation.completed", events[-1]
    return str(events[-1]["b64_json"])


async def load(url: str, stop: asyncio.Event, clients: int = 2) -> list[Outcome]:
    """Send JSON requests and streams in turn from each client until `stop` is set."""
    outcomes: list[Outcome] = []
    numbers = count()

    async def work(client: httpx.AsyncClient) -> None:
        while not stop.is_set() and (number := next(numbers)) < MAX_REQUESTS:
            stream = {"stream": True} if number % 2 else {}
            outcomes.append(await ask(client, BODY | stream | {"seed": number}))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PAUSE_SECONDS)

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return outcomes
