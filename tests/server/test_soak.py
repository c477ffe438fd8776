"""Thousands of requests, many of them left in the middle, and nothing stays behind."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.server.process import ServerProcess, small, until
from tests.server.soak import Soak

Start = Callable[..., ServerProcess]
LONG = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")


@contextmanager
def nothing_stays(server: ServerProcess) -> Iterator[None]:
    """Of what is done inside."""
    before = server.http.get("/_fake/alive").json()
    memory = server.metric("process_resident_memory_bytes")
    descriptors = server.metric("process_open_fds")
    yield
    server.wait(running=0)
    until(lambda: server.metric("process_open_fds") <= descriptors)
    until(lambda: server.http.get("/_fake/alive").json() == before)
    for gauge in ("requests_running", "requests_waiting", "backlog_seconds"):
        assert server.metric(f"ideoserve_{gauge}") == 0
    assert server.metric("process_resident_memory_bytes") < memory + (16 << 20)
    assert server.http.post("/drain").json()["in_flight"] == 0
    assert not server.log_lines(level="error")


def test_soak(start: Start) -> None:
    server = start(*LONG)
    Soak(server.port, requests=200, concurrency=32, leaving=0.2).run()
    server.wait(running=0)
    with nothing_stays(server):
        soak = Soak(server.port, requests=2000, concurrency=32, leaving=0.2).run()
        assert soak.answered + soak.left == 2000
        assert soak.left > 300


def test_requests_of_ten_images_left_at_any_stage(start: Start) -> None:
    """While the body is sent, before the response, and after so many of its events; some in company."""
    server = start(*LONG, "--idempotency-bytes", "0")
    asyncio.run(leave_all(server.port, range(360)))
    server.wait(running=0)
    with nothing_stays(server):
        asyncio.run(leave_all(server.port, range(360, 660)))


async def leave_all(port: int, numbers: range) -> None:
    together = asyncio.Semaphore(32)

    async def leave(number: int) -> None:
        async with together:
            await _leave(port, number, *stages[number % len(stages)])

    # Bytes of the request that are not sent, and lines of the response that are read.
    stages = [(40, 0), (1, 0), (0, 0), (0, 1), *((0, lines) for lines in range(9, 60, 7))]
    await asyncio.gather(*map(leave, numbers))


async def _leave(port: int, number: int, unsent: int, lines: int) -> None:
    prompt = "hold: a" if lines == 0 else ("noise: a", "slow: a", "a cat")[number // 12 % 3]
    body = small(prompt=prompt, size="128x128", n=10, num_inference_steps=2, stream=True, partial_images=1)
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: {number // 3}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write((head + content)[: len(head + content) - unsent])
    for _ in range(lines):
        await reader.readline()
    writer.transport.abort() if number % 2 else writer.close()
