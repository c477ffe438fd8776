"""Sends a request to a server and follows its event stream."""

import base64
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import EventSource

# Seconds without a byte. The server sends pings at least twice in this time.
SILENCE = 60.0


class RequestError(Exception):
    """The server refused or failed the request, or cannot be reached; one line."""


@dataclass(frozen=True, slots=True)
class Step:
    """An image has finished step `step` of `steps`."""

    image: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Image:
    """A preview or a finished image: the bytes of an image file. A preview has no seed."""

    index: int
    data: bytes
    seed: int | None


def send(url: str, api_key: str | None, body: dict[str, Any]) -> Generator[Step | Image, None, None]:
    """Events of the request in their order. Closing the iterator cancels it. Raises RequestError."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(SILENCE)
    try:
        with httpx.stream(
            "POST", f"{url.rstrip('/')}/v1/images", json=body, headers=headers, timeout=timeout
        ) as response:
            yield from _events(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RequestError(f"{url}: {error or type(error).__name__}") from error


def _events(response: httpx.Response) -> Iterator[Step | Image]:
    if not response.is_success:
        response.read()
        raise RequestError(_refusal(response))
    for event in EventSource(response).iter_sse():
        data = json.loads(event.data)
        match event.event.rpartition(".")[2]:
            case "progress":
                yield Step(data["image_index"], data["step"], data["num_steps"])
            case "partial_image" | "completed":
                yield Image(data["image_index"], base64.b64decode(data["b64_json"]), data.get("seed"))
            case "error":
                raise RequestError(_line(data["error"]))


def _refusal(response: httpx.Response) -> str:
    try:
        return _line(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code}, and not as an ideoserve server does"


def _line(error: dict[str, Any]) -> str:
    field = f"{error['param']}: " if error.get("param") else ""
    return f"{field}{error['message']} ({error['code']})"
