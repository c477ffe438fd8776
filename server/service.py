"""What every route shares, made once per application."""

from dataclasses import dataclass

from server.engine_port import Engine
from server.images import ImageEncoder
from server.protocol import ImageRequest
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """The application's parts."""

    settings: Settings
    engine: Engine
    encoder: ImageEncoder
    request_model: type[ImageRequest]
