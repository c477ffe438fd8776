"""Many small requests at once in every mode, some of whose clients go away: for a test and a benchmark."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.server.process import small

ACCEPTS = ("application/json", "image/png", "image/jpeg", "text/event-stream")


@dataclass
class Soak:
    """`left` clients went away while the engine held their request, so that it ends only by its abort."""

    port: int
    requests: int
    concurrency: int
    leaving: float
    answered: int = 0
    left: int = 0

    def run(self) -> "Soak":
        asyncio.run(self._run())
        return self

    async def _run(self) -> None:
        numbers = iter(range(self.requests))
        async with asyncio.TaskGroup() as group:
            for worker in range(self.concurrency):
                group.create_task(self._work(numbers, random.Random(worker)))

    async def _work(self, numbers: Iterator[int], dice: random.Random) -> None:
        for number in numbers:
            if dice.random() < self.leaving:
                await self._leave(dice)
            else:
                await self._ask(number, dice)

    async def _ask(self, number: int, dice: random.Random) -> None:
        body = small(prompt=f"cat {number}", n=dice.choice((1, 1, 2)), num_inference_steps=dice.randint(1, 8))
        accept = dice.choice(ACCEPTS[::3] if body["n"] > 1 else ACCEPTS)
        if accept == ACCEPTS[-1]:
            body["partial_images"] = 1
        reader, writer = await self._send(body, accept)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
        assert b"event: error" not in answer
        self.answered += 1

    async def _leave(self, dice: random.Random) -> None:
        _, writer = await self._send(small(prompt="hold: a"), dice.choice(ACCEPTS))
        await asyncio.sleep(dice.uniform(0, 0.05))
        if dice.random() < 0.5:
            writer.transport.abort()
        writer.close()
        self.left += 1

    async def _send(
        self, body: dict[str, object], accept: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        return reader, writer
