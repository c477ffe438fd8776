"""Deaths of a device's processes: when the next one starts, when the device counts as failed. Torch-free."""

_MAX_PAUSE_SECONDS = 30.0


class RestartBackoff:
    """`deaths` since a process last answered a request, `start_failures` since one was last ready."""

    def __init__(self, max_start_failures: int) -> None:
        self.deaths = 0
        self.start_failures = 0
        self._max_start_failures = max_start_failures

    def is_ready(self) -> None:
        """A process has loaded."""
        self.start_failures = 0

    def has_answered(self) -> None:
        """A process has answered a request."""
        self.deaths = 0

    def died(self, was_ready: bool, is_hopeless: bool) -> None:
        """A process ended; `is_hopeless` if there is little use in trying again."""
        self.deaths += 1
        if not was_ready:
            self.start_failures += self._max_start_failures if is_hopeless else 1

    @property
    def have_failed(self) -> bool:
        return self.start_failures >= self._max_start_failures

    @property
    def pause_seconds(self) -> float:
        """Before the next start: 0, 0.5, 1.5, 3.5 ... 30."""
        return min(_MAX_PAUSE_SECONDS, 0.5 * (2 ** min(self.deaths - 1, 10) - 1))
