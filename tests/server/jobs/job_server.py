"""`python -m tests.server.jobs.job_server FLAGS`: a server over the fake engine that runs jobs.

It runs the job of another server soon after that died.
"""

import sys

from server.app import create_app, run
from server.jobs import attempt, job_index, job_store, runner
from server.queue.connection.access import Access
from server.queue.connection.broker import Broker
from server.settings.settings import read_settings
from server.transport.server import listen
from tests.server.fake_engine import FakeEngine
from tests.server.fake_server import control

MAX_ATTEMPTS = 2


class ConnectedEngine(FakeEngine):
    """Connects the broker, as the engine of a queue does."""

    broker: Broker

    async def start(self) -> None:
        await self.broker.connect()

    async def close(self) -> None:
        await self.broker.close()


def main() -> int:
    settings = read_settings(["--model", "fake", *sys.argv[1:]])
    engine = ConnectedEngine()
    engine.broker = Broker(Access.of(settings))
    app = create_app(settings, engine, broker=engine.broker)
    app.include_router(control(engine))
    return run(app, listen(settings))


if __name__ == "__main__":
    runner.ACK_SECONDS = 1.0
    runner.MAX_ATTEMPTS = MAX_ATTEMPTS
    attempt.TICK_SECONDS = 0.1
    runner.OVERDUE_SECONDS = 0.2
    job_store.GRACE_SECONDS = job_index.GRACE_SECONDS = 1.0
    sys.exit(main())
