"""Measures how long a worker has been silent. Torch-free."""

# Allowed silence during a unit of work, as a multiple of its predicted seconds.
_HANG_FACTOR = 20.0
# Parts of the allowed silence after which a worker counts as silent and as not ready.
_SILENT = 1 / 8
_UNREADY = 1 / 2


class HeartbeatMonitor:
    """Seconds since a worker's last message, counted only while this process itself was running.

    Call `tick` every `interval` seconds. A tick that is more than an interval late shows that this process
    was stopped (a paused container or virtual machine). Such a gap counts as one interval, and the worker
    does not count as hung before the next tick: its messages may still be unread in the pipe.
    """

    def __init__(self, hang_seconds: float, load_seconds: float, now: float) -> None:
        self.interval = min(1.0, hang_seconds / 20)
        self.seconds = 0.0
        self.allowed = load_seconds
        self._hang_seconds = hang_seconds
        self._ticked = now
        self._is_late = False

    def expect(self, seconds: float) -> None:
        """The worker is loaded, and its unit of work should take `seconds`; 0 if it has none."""
        self.allowed = max(self._hang_seconds, _HANG_FACTOR * seconds)

    def heard(self) -> None:
        """The worker sent a message."""
        self.seconds = 0.0

    def tick(self, now: float) -> None:
        """`now` is in seconds of a monotonic clock."""
        elapsed, self._ticked = now - self._ticked, now
        self._is_late = elapsed > 2 * self.interval
        self.seconds += self.interval if self._is_late else elapsed

    @property
    def is_silent(self) -> bool:
        """Whether other workers should be preferred."""
        return self.seconds > _SILENT * self.allowed

    @property
    def is_unready(self) -> bool:
        """Whether the worker should get no new requests."""
        return self.seconds > _UNREADY * self.allowed

    @property
    def is_hung(self) -> bool:
        """Whether the worker should be killed."""
        return self.seconds > self.allowed and not self._is_late
