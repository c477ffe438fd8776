"""`python -m server`: reads the settings and serves a checkpoint."""

import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import FastAPI

from engine.client.engine_client import EngineClient
from engine.client.preflight import open_tokenizer
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import CheckpointError, OptionError
from engine.memory.fitting import bounded
from engine.memory.plan import MemoryPlan
from engine.precision import PrecisionOptions
from server.adapters.catalog import Catalog
from server.app import create_app, run
from server.hub.sources import ModelSources
from server.observability import logs
from server.queue.roles import queue_access, queue_engine
from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings
from server.transport.server import listen
from server.transport.startup import answering_probes

if TYPE_CHECKING:
    from server.queue.connection.access import Access

UNUSABLE = 2
logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Return the exit code."""
    settings = read_settings(argv)
    try:
        with queue_access(settings) as access:
            return _serve(settings, access)
    except (CheckpointError, ConfigError, OptionError) as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return UNUSABLE


def _serve(settings: Settings, access: "Access | None") -> int:
    sources = ModelSources.parse(settings.model, settings.transformer)
    sockets = listen(settings)
    if not sources.need_download:
        return run(_app(settings, access, sources), sockets)
    with answering_probes(settings, sockets):
        app = _app(settings, access, sources)
    return run(app, sockets)


def _app(settings: Settings, access: "Access | None", sources: ModelSources) -> FastAPI:
    options = EngineOptions(
        devices=settings.device_list,
        uncond_device=settings.uncond_device,
        dtype=settings.dtype,
        precision=PrecisionOptions(settings.weights, settings.matmul, settings.quantize),
        compile=settings.compile,
        offload=settings.offload,
        kernels=settings.kernel_pins,
        cuda_graphs=settings.cuda_graphs,
        max_batch_size=settings.max_batch_size,
        max_running=settings.max_running,
        adapter_memory_gb=settings.adapter_memory_gb if settings.adapters else 0.0,
        adapter_ignore=settings.ignored_keys,
        uncond_adapter=str(settings.uncond_adapter) if settings.uncond_adapter else None,
        edits=settings.edits == "on",
    )
    checkpoint, transformer = sources.fetch(weights=settings.role != "front")
    config = ModelConfig.load(
        checkpoint, settings.model_name, transformer, settings.presets, settings.uncond_adapter
    )
    if settings.role == "front":  # which has no device
        return _create(settings, access, config, options)
    plan = MemoryPlan.of(config, options, settings.max_memory_gb)
    config, options = bounded(plan)
    app = _create(settings, access, config, options)
    logs.configure(settings.log_level)
    logger.info("memory plan", extra={"fields": replace(plan, config=config, options=options).fields()})
    return app


def _create(
    settings: Settings, access: "Access | None", config: ModelConfig, options: EngineOptions
) -> FastAPI:
    adapters = Catalog.of(settings, config)
    if access is None:
        return create_app(settings, EngineClient(config, options), adapters=adapters)
    engine = queue_engine(
        settings,
        access,
        config,
        adapters,
        local=lambda: EngineClient(config, options),
        tokenize=lambda: open_tokenizer(config).encode,
    )
    broker = None if settings.role == "worker" else engine.broker
    return create_app(settings, engine, engine, broker, adapters)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
