"""The parts of a server that depend on its role. Imports what needs the extra `queue` on call."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from engine.config.model_config import ModelConfig
from server.adapters.catalog import Catalog
from server.engine_port import Engine
from server.settings.config_error import ConfigError
from server.settings.settings import Settings

if TYPE_CHECKING:
    from server.queue.connection.access import Access
    from server.queue.connection.broker import Broker
    from server.queue.queue_engine import QueueEngine


@contextlib.contextmanager
def queue_access(settings: Settings) -> Iterator["Access | None"]:
    """None without a queue. Raises ConfigError if its servers cannot be used."""
    if settings.queue is None:
        yield None
        return
    try:
        from server.queue.connection import access, check
        from server.queue.front.answers import Answers
    except ModuleNotFoundError as error:
        raise ConfigError(f"--queue needs the extra queue: {error.name} is not installed") from None
    with access.opened(settings) as opened:

        async def declare(broker: "Broker") -> None:
            if settings.role != "worker":
                await Answers.of(broker, settings).start()

        check.check_access(opened, declare)
        yield opened


def queue_engine(
    settings: Settings,
    access: "Access",
    config: ModelConfig,
    adapters: Catalog,
    local: Callable[[], Engine],
    tokenize: Callable[[], Callable[[str], tuple[int, ...]]],
) -> "QueueEngine":
    """`local` creates the engine of this process, which a front lacks; `tokenize` opens the tokenizer, which
    a worker lacks. Raises CheckpointError or ConfigError."""
    from server.queue.queue_engine import QueueEngine

    return QueueEngine(
        config,
        settings,
        access,
        adapters,
        local=None if settings.role == "front" else local(),
        tokenize=None if settings.role == "worker" else tokenize(),
    )
