"""Jobs: image requests that outlive their connection. Imported only if a queue is set."""

from server.engine_port import Engine
from server.generation.generations import Generations
from server.jobs.jobs import Jobs
from server.jobs.runner import Runner
from server.observability.metrics import Metrics
from server.queue.connection.broker import Broker
from server.settings.settings import Settings
from server.store.store import Store
from server.transport.lifecycle import Lifecycle
from server.webhooks.webhooks import Webhooks


class JobService:
    """The jobs of the queue, and what this server does for them. Raises ConfigError."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        engine: Engine,
        generations: Generations,
        files: Store,
        lifecycle: Lifecycle,
        metrics: Metrics,
    ) -> None:
        ttl, limit = settings.job_ttl_seconds, settings.max_queued_jobs
        self._webhooks = Webhooks(settings, broker, metrics.on_upstream, metrics.on_dead_letter)
        self.jobs = Jobs(broker, engine, generations, files, self._webhooks, ttl, limit, metrics.on_job)
        self._runner = Runner(self.jobs, generations, lifecycle)

    async def start(self) -> None:
        """Call it once the broker is connected."""
        await self.jobs.start()
        self._webhooks.start()
        self._runner.start()

    async def close(self) -> None:
        """Call it while the broker is connected."""
        await self._runner.close()
        await self._webhooks.close()
        await self.jobs.close()
