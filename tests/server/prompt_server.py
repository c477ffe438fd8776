"""`python -m tests.server.prompt_server FLAGS`: the fake server, which also tells what its engine was asked
to draw: the text behind the tokens."""

import sys
from collections.abc import AsyncGenerator

from fastapi import APIRouter

from engine.messages import RequestOutput
from engine.request import EngineRequest
from tests.server import fake_server
from tests.server.fake_engine import FakeEngine


class ReadingEngine(FakeEngine):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.texts: dict[tuple[int, ...], str] = {}
        self.drawn: list[str] = []

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        token_ids = super().tokenize(prompt)
        self.texts[token_ids] = prompt
        return token_ids

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        self.drawn.append(self.texts[request.token_ids])
        async for output in super().generate(request):
            yield output


def control(engine: FakeEngine) -> APIRouter:
    assert isinstance(engine, ReadingEngine)
    router = fake_control(engine)

    @router.get("/drawn")
    async def drawn() -> list[str]:
        """One text per request that came to the engine."""
        return engine.drawn

    return router


if __name__ == "__main__":
    fake_control = fake_server.control
    vars(fake_server).update(FakeEngine=ReadingEngine, control=control)
    sys.exit(fake_server.main())
