"""How long a worker has been silent, and what follows from that. Torch-free."""

# A unit of work may take this many times what it was expected to before its worker counts as hung.
_HANG_FACTOR = 20.0
# Shares of the allowed silence after which other devices get the work, and the device is not ready.
_DOUBTFUL = 1 / 8
_UNREADY = 1 / 2


class HeartbeatMonitor:
    """Seconds since the last sign of life of a worker, counted only while this process ran itself.

    `tick` it every `interval` seconds. A tick that is late by more than an interval shows that this process
    was stopped (a paused container or virtual machine): the gap counts as one interval, and messages that
    came meanwhile are still in the pipe, so nothing is concluded before the next tick.
    """

    def __init__(self, hang_seconds: float, load_seconds: float, now: float) -> None:
        self.interval = min(1.0, hang_seconds / 20)
        self.seconds = 0.0
        self.allowed = load_seconds
        self._hang_seconds = hang_seconds
        self._ticked = now
        self._is_late = False

    def expect(self, seconds: float) -> None:
        """It is loaded, and its unit of work should take `seconds`: 0 without one."""
        self.allowed = max(self._hang_seconds, _HANG_FACTOR * seconds)

    def heard(self) -> None:
        """A sign of life."""
        self.seconds = 0.0

    def tick(self, now: float) -> None:
        """`now` in seconds of a monotonic clock."""
        elapsed, self._ticked = now - self._ticked, now
        self._is_late = elapsed > 2 * self.interval
        self.seconds += self.interval if self._is_late else elapsed

    @property
    def is_silent(self) -> bool:
        """Work is better given to another worker."""
        return self.seconds > _DOUBTFUL * self.allowed

    @property
    def is_unready(self) -> bool:
        """No new work should be accepted for it."""
        return self.seconds > _UNREADY * self.allowed

    @property
    def is_hung(self) -> bool:
        return self.seconds > self.allowed and not self._is_late
