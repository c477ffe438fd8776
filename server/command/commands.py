"""Runs `generate`, `request` and `completion`."""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import httpx
import shtab

from server.command.arguments import body, parser
from server.command.local_server import listening
from server.command.streaming import Image, RequestError, Step, send
from server.command.terminal import Terminal

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Return the exit code: 1 if the request failed, 130 if it was interrupted."""
    parsed = parser()
    options = parsed.parse_args(argv)
    try:
        if options.command == "completion":
            print(shtab.complete(parsed, options.shell))
        elif options.command == "request":
            _request(options, options.url)
        else:
            if not options.model:
                parsed.error("generate: --model or IDEOSERVE_MODEL is required")
            with _server(options.model) as url:
                _request(options, url)
    except RequestError as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _request(options: argparse.Namespace, url: str) -> None:
    """Write the images as they arrive, and print their paths."""
    count = dict(options.field).get("n", options.n) or 1
    with Terminal() as terminal:
        sent = body(options, terminal.shows_previews)
        with closing(send(url, os.environ.get("IDEOSERVE_API_KEY"), sent)) as events:
            for event in events:
                match event:
                    case Step():
                        terminal.step(event, count)
                    case Image(seed=None):
                        terminal.preview(event.data)
                    case Image():
                        path = _path(options.output, event.index, count)
                        path.write_bytes(event.data)
                        print(f"{path}  seed {event.seed}")


def _path(output: Path, index: int, count: int) -> Path:
    return output if count == 1 else output.with_stem(f"{output.stem}-{index + 1}")


@contextlib.contextmanager
def _server(model: str) -> Iterator[str]:
    """URL of a server on loopback, which runs as long as the context. Raises RequestError."""
    command = [sys.executable, "-m", "server", "--model", model, "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield _ready(process)
    finally:
        process.terminate()
        process.wait()


def _ready(process: subprocess.Popen[str]) -> str:
    try:
        url = listening(process)
    except RuntimeError as error:
        raise RequestError(str(error)) from None
    while process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").is_success:
                return url
        time.sleep(0.1)  # readiness can only be polled
    raise RequestError("the model could not be loaded; the reason is above")
