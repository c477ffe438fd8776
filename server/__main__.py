"""`python -m server`: reads the settings and serves a checkpoint."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import FastAPI

from engine.client.engine_client import EngineClient
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import CheckpointError
from server.app import create_app, run
from server.hub.sources import ModelSources
from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings
from server.transport.server import listen
from server.transport.startup import answering_probes

if TYPE_CHECKING:
    from server.queue.access import Access

UNUSABLE = 2


def main(argv: list[str]) -> int:
    """Return the exit code."""
    settings = read_settings(argv)
    try:
        with queue_access(settings):
            return _serve(settings)
    except (CheckpointError, ConfigError) as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return UNUSABLE


@contextlib.contextmanager
def queue_access(settings: Settings) -> Iterator["Access | None"]:
    """None without a queue. Raises ConfigError if its servers cannot be used."""
    if settings.queue is None:
        yield None
        return
    try:
        from server.queue import access, broker
    except ModuleNotFoundError as error:
        raise ConfigError(f"--queue needs the extra queue: {error.name} is not installed") from None
    with access.opened(settings) as opened:
        broker.check_access(opened)
        yield opened


def _serve(settings: Settings) -> int:
    sources = ModelSources.parse(settings.model, settings.transformer)
    sockets = listen(settings)
    if not sources.need_download:
        return run(_app(settings, sources), sockets)
    with answering_probes(settings, sockets):
        app = _app(settings, sources)
    return run(app, sockets)


def _app(settings: Settings, sources: ModelSources) -> FastAPI:
    options = EngineOptions(
        devices=settings.device_list,
        uncond_device=settings.uncond_device,
        dtype=settings.dtype,
        compile=settings.compile,
        cuda_graphs=settings.cuda_graphs,
        max_batch_size=settings.max_batch_size,
        max_running=settings.max_running,
    )
    checkpoint, transformer = sources.fetch()
    config = ModelConfig.load(checkpoint, settings.model_name, transformer, settings.presets)
    return create_app(settings, EngineClient(config, options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
