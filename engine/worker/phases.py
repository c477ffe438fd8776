"""The phases of a worker's start, for its log line. Torch-free."""

import time
from collections.abc import Callable


class Phases:
    """Seconds of each phase, which follow one another from construction on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended = clock()
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """The phase `name` ends now."""
        now = self._clock()
        self._seconds[name], self._ended = now - self._ended, now

    def fields(self) -> dict[str, object]:
        """For the log: seconds of each phase, and of all."""
        rounded = {name: round(seconds, 3) for name, seconds in self._seconds.items()}
        return {"phase_seconds": rounded, "start_seconds": round(sum(self._seconds.values()), 3)}

    def __str__(self) -> str:
        each = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self._seconds.items())
        return f"ready after {sum(self._seconds.values()):.2f} s: {each}"
