"""Error responses, and the mapping from engine errors to them."""

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import BaseModel

from engine.errors import (
    AdapterFailedError,
    AdaptersTooLargeError,
    AdapterUnavailableError,
    DeadlineExceededError,
    EngineDeadError,
    EngineError,
    GenerationError,
    PromptTooLongError,
    VersionMismatchError,
    WorkerCrashedError,
)
from server.schemas.issue import Issue

UPLOAD = "uploaded image"  # a subject of moderation


class ErrorDetail(BaseModel):
    """`param` names the invalid field or header."""

    message: str
    type: str
    param: str | None
    code: str


class CaptionErrorDetail(ErrorDetail):
    """`faults` are the deviations of a caption under `"caption": "strict"`."""

    faults: list[Issue]


class RefusalDetail(ErrorDetail):
    """`categories` are the reasons of a refusal by moderation."""

    categories: list[str]


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: CaptionErrorDetail | RefusalDetail | ErrorDetail


class ApiError(Exception):
    """An error response. `retry` False tells SDKs not to retry: it would waste device time."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(min(max(retry_after, 1), 60))
        if retry is not None:
            self.headers["x-should-retry"] = str(retry).lower()

    def copy(self) -> Self:
        """A new exception for the same response: one that was raised keeps its frames and their contents
        alive."""
        fresh = type(self).__new__(type(self), *self.args)
        fresh.__dict__.update(self.__dict__)
        return fresh

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same with the client's name of the field."""
        self.param = names.get(self.param or "", self.param)
        return self

    def body(self) -> ErrorBody:
        detail = ErrorDetail(
            message=self.message, type=_error_type(self.status), param=self.param, code=self.code
        )
        return ErrorBody(error=self.detail(detail))

    def detail(self, detail: ErrorDetail) -> CaptionErrorDetail | RefusalDetail | ErrorDetail:
        """Adds the fields of a subclass."""
        return detail


class CaptionError(ApiError):
    """A caption deviates from the schema under `"caption": "strict"`."""

    def __init__(self, faults: Iterable[Issue], param: str) -> None:
        self.faults = list(faults)
        named = "; ".join(f"{fault.path or 'caption'}: {fault.message}" for fault in self.faults)
        super().__init__(
            400, "invalid_caption", f"The caption deviates from the schema. {named}", param=param
        )

    def detail(self, detail: ErrorDetail) -> CaptionErrorDetail:
        return CaptionErrorDetail(**detail.model_dump(), faults=self.faults)


class RefusedError(ApiError):
    """Moderation refused a prompt or an image; a retry would be refused too."""

    def __init__(self, subject: str, categories: Iterable[str]) -> None:
        self.subject = subject
        self.categories = sorted(categories)
        message = f"The {subject} was refused: {', '.join(self.categories)}."
        param = {"prompt": "prompt", UPLOAD: "image"}.get(subject)
        super().__init__(400, "content_policy_violation", message, param=param, retry=False)

    def detail(self, detail: ErrorDetail) -> RefusalDetail:
        return RefusalDetail(**detail.model_dump(), categories=self.categories)


class ClientDisconnectedError(ApiError):
    """The client disconnected. One that closed only its sending side can read this response."""

    def __init__(self) -> None:
        message = "The client closed its side of the connection, which must stay open until the response."
        super().__init__(499, "client_disconnected", message, headers={"Connection": "close"})


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 about one field."""
    return ApiError(400, code, message, param=param)


def from_engine(error: EngineError) -> ApiError:
    """The response for an engine error."""
    match error:
        case PromptTooLongError():
            message = f"The prompt has {error.count} tokens; the limit is {error.limit}."
            return invalid(message, "prompt", "string_above_max_length")
        case DeadlineExceededError():
            message = "The deadline passed before the image was done."
            return ApiError(504, "deadline_exceeded", message, retry=False)
        case WorkerCrashedError() | EngineDeadError():
            message = "The worker died and could not finish this request."
            return ApiError(500, "worker_crashed", message, retry=False)
        case VersionMismatchError():
            return ApiError(500, "version_mismatch", f"A worker refused the request: {error}.", retry=False)
        case AdapterUnavailableError():
            return ApiError(503, "adapter_unavailable", f"{error}.", param="adapters")
        case AdaptersTooLargeError():
            return invalid(f"{error}.", "adapters", "adapters_too_large")
        case AdapterFailedError():
            return ApiError(500, "adapter_failed", f"{error}.", param="adapters", retry=False)
        case GenerationError():
            return ApiError(500, "generation_failed", "The model failed on this request.", retry=False)
        case _:
            return internal_error()


def queue_unavailable() -> ApiError:
    """For a request that needs the queue while its broker cannot be reached."""
    return ApiError(503, "queue_unavailable", "The queue cannot be reached.", retry_after=2)


def store_unavailable() -> ApiError:
    """For a request that reads a stored image while the store does not answer."""
    return ApiError(502, "store_unavailable", "The store of images does not answer.", retry=True)


def server_stopped() -> ApiError:
    """For a request that was running when the server was stopped immediately."""
    message = "The server stopped before this request was done."
    return ApiError(503, "server_draining", message, retry_after=1, headers={"Connection": "close"})


def internal_error() -> ApiError:
    return ApiError(500, "internal_error", "The server failed on this request.", retry=False)


def _error_type(status: int) -> str:
    by_status = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return by_status.get(status, "server_error" if status >= 500 else "invalid_request_error")
