"""Adapters as `GET /v1/adapters` lists them."""

from server.adapters.adapter import Adapter
from server.schemas import models


def describe(adapter: Adapter, model_id: str) -> models.Adapter:
    weights, preset = adapter.weights, adapter.preset
    info = weights.info if weights else None
    return models.Adapter(
        name=adapter.name,
        model=f"{model_id}:{adapter.name}",
        status=adapter.status,
        error=adapter.error,
        scale=adapter.settings.scale,
        preset=models.ModelPreset.of(preset) if preset else None,
        trigger_words=list(adapter.trigger_words),
        digest=weights.digest if weights else None,
        format=info.format if info else None,
        rank=info.rank if info else None,
        modules=info.modules if info else None,
        bytes=info.bytes if info else None,
        target=info.target if info else None,
    )
