"""What is sent for a request that failed in the worker."""

import logging

from engine.errors import AdapterFailedError, EngineError, GenerationError
from engine.messages import RequestFailed
from engine.request import EngineRequest

logger = logging.getLogger(__name__)


def failure(request: EngineRequest, error: Exception) -> RequestFailed:
    """Log the error, and describe it for the client."""
    logger.error("request %s failed", request.request_id, exc_info=error)
    return RequestFailed(request.request_id, _described(request, error))


def _described(request: EngineRequest, error: Exception) -> EngineError:
    """NaN with adapters is their fault: the model was checked without them when it was loaded."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, FloatingPointError) and request.adapters:
        names = ", ".join(f"`{use.name}`" for use in request.adapters)
        return AdapterFailedError(f"The image has NaN or infinity with the adapters {names}")
    return GenerationError(f"{type(error).__name__}: {error}")
