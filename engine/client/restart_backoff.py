"""When to restart a worker, and when its device counts as failed. Torch-free."""

_MAX_PAUSE_SECONDS = 30.0


class RestartBackoff:
    """Counts `deaths` since a process last answered a request, and `start_failures` since one was last
    ready."""

    def __init__(self, max_start_failures: int) -> None:
        self.deaths = 0
        self.start_failures = 0
        self._max_start_failures = max_start_failures

    def is_ready(self) -> None:
        """A process has loaded the model."""
        self.start_failures = 0

    def has_answered(self) -> None:
        """A process has answered a request."""
        self.deaths = 0

    def died(self, was_ready: bool, is_permanent: bool) -> None:
        """A process ended. `is_permanent` if a restart is expected to fail in the same way."""
        self.deaths += 1
        if not was_ready:
            self.start_failures += self._max_start_failures if is_permanent else 1

    @property
    def has_failed(self) -> bool:
        return self.start_failures >= self._max_start_failures

    @property
    def pause_seconds(self) -> float:
        """Seconds to wait before the next start: 0, 0.5, 1.5, 3.5, ... 30."""
        return min(_MAX_PAUSE_SECONDS, 0.5 * (2 ** min(self.deaths - 1, 10) - 1))
