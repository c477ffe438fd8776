"""Errors of the engine. The server maps each to a status code."""


class EngineError(Exception):
    """Base of the errors that the engine raises for a request."""


class PromptTooLongError(EngineError):
    """The prompt has more tokens than the model's limit."""

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"the prompt has {count} tokens; the model's limit is {limit}")
        self.count = count
        self.limit = limit


class DeadlineExceededError(EngineError):
    """The request's deadline passed before its last image was finished."""


class GenerationError(EngineError):
    """The model failed on this request: an exception, NaN, or out of memory with a single sample."""


class WorkerCrashedError(EngineError):
    """The worker died twice while it ran only this request."""


class AdapterUnavailableError(EngineError):
    """No worker has the file of an adapter, or it was replaced or removed. The message names the adapter."""


class AdapterFailedError(EngineError):
    """An adapter cannot be loaded, or images with it are not finite. The message names it."""


class AdaptersTooLargeError(EngineError):
    """The adapters of the request exceed the memory of adapters. The message names them and the limit."""


class VersionMismatchError(EngineError):
    """The worker runs another version of the server, which cannot read the request."""


class EngineDeadError(EngineError):
    """The engine cannot serve any more. The process should exit with `exit_code`."""

    def __init__(self, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.exit_code = exit_code

    def copy(self) -> "EngineDeadError":
        """A new instance to raise: raising the same one again would extend its traceback."""
        return EngineDeadError(str(self), self.exit_code)


class CheckpointError(Exception):
    """A checkpoint that cannot be served. The message is one line that names the file and the key."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class OptionError(Exception):
    """An option that this machine or model cannot satisfy. The message is one line that names the option."""
