"""Which images may be in memory: each takes a seat before its prompt is encoded, until it is decoded."""

from bisect import insort
from collections.abc import Iterator

from engine.request import Priority
from engine.runner.request_state import RequestState

# Priority `batch` gets this part of what an interactive resolution gets, in seats and in device time.
BATCH_SHARE = 0.1


class Seats:
    """At most `max_running`, given image by image in order of the requests' due times.

    Priority `batch` holds at most half of them, at least one. While both priorities wait, `batch` gets the
    next one after interactive images of ten times its predicted seconds.
    """

    def __init__(self, max_running: int) -> None:
        self._max: dict[Priority, int] = {"interactive": max_running, "batch": max(1, max_running // 2)}
        self._taken: dict[Priority, int] = {"interactive": 0, "batch": 0}
        self._waiting: dict[Priority, list[RequestState]] = {"interactive": [], "batch": []}
        self._owed = 0.0  # seconds of images, to `batch`

    def add(self, state: RequestState) -> None:
        """Queue its images that have no seat; it keeps the seats that it has."""
        self._taken[state.priority] += state.num_seats
        if state.unseated:
            insort(self._waiting[state.priority], state, key=lambda waiting: waiting.due)

    def remove(self, state: RequestState) -> None:
        """Free its seats and forget what waits."""
        self._taken[state.priority] -= state.num_seats
        if state.unseated:
            self._waiting[state.priority].remove(state)

    def release(self, state: RequestState) -> None:
        """One of its images is done."""
        self._taken[state.priority] -= 1
        state.images_left -= 1

    def grant(self) -> Iterator[RequestState]:
        """Give the free seats away; the request of each image that got one."""
        while (state := self._next()) is not None:
            self._account(state)
            self._taken[state.priority] += 1
            state.entering.append(state.unseated.pop(0))
            if not state.unseated:
                self._waiting[state.priority].pop(0)
            yield state

    def _next(self) -> RequestState | None:
        interactive, batch = self._head("interactive"), self._head("batch")
        if interactive is None or batch is None:
            return interactive or batch
        return batch if self._owed >= batch.image_seconds else interactive

    def _head(self, priority: Priority) -> RequestState | None:
        is_full = sum(self._taken.values()) >= self._max["interactive"]
        if is_full or self._taken[priority] >= self._max[priority] or not self._waiting[priority]:
            return None
        return self._waiting[priority][0]

    def _account(self, state: RequestState) -> None:
        if state.priority == "batch":
            self._owed = max(0.0, self._owed - state.image_seconds)
        elif self._head("batch") is not None:
            self._owed += BATCH_SHARE * state.image_seconds
