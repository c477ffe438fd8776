"""What can go wrong in the engine, in its own words; the server maps each to a status code."""


class EngineError(Exception):
    """Base of every error the engine reports about one request."""


class PromptTooLongError(EngineError):
    """The prompt has more tokens than the model reads."""

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"the prompt has {count} tokens; the model reads at most {limit}")
        self.count = count
        self.limit = limit


class DeadlineExceededError(EngineError):
    """The request's deadline passed before its last image was done."""


class GenerationError(EngineError):
    """The model failed on this request (an exception, NaN or out of memory traced to it)."""


class WorkerCrashedError(EngineError):
    """The worker died while it ran this request, twice."""


class EngineDeadError(EngineError):
    """The worker cannot be started again; the process must end, with `exit_code`."""

    def __init__(self, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class CheckpointError(Exception):
    """A checkpoint that cannot be served; the message is one line that names the file and the key."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
