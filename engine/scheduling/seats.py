"""Seats: which images may be in memory. An image takes a seat before its prompt is encoded, and keeps it
until it is decoded."""

from bisect import insort
from collections.abc import Iterator

from engine.request import BATCH_SHARE, Priority
from engine.runner.request_state import RequestState


class Seats:
    """`max_running` seats, granted to one image at a time in order of the requests' due times.

    Priority `batch` holds at most half of the seats, at least one. While both priorities wait, `batch` gets
    the next seat once `interactive` images of ten times its image's predicted seconds have got theirs.
    """

    def __init__(self, max_running: int) -> None:
        self._max: dict[Priority, int] = {"interactive": max_running, "batch": max(1, max_running // 2)}
        self._taken: dict[Priority, int] = {"interactive": 0, "batch": 0}
        self._waiting: dict[Priority, list[RequestState]] = {"interactive": [], "batch": []}
        self._credit = 0.0  # of `batch`, in predicted seconds of images

    def add(self, state: RequestState) -> None:
        """Queue the images of a request that have no seat, and count the seats that it holds."""
        self._taken[state.priority] += state.num_seats
        if state.unseated:
            insort(self._waiting[state.priority], state, key=lambda waiting: waiting.due)

    def remove(self, state: RequestState) -> None:
        """Free the seats of a request, and remove its images that wait for one."""
        self._taken[state.priority] -= state.num_seats
        if state.unseated:
            self._waiting[state.priority].remove(state)

    def release(self, state: RequestState) -> None:
        """Free the seat of an image that was decoded."""
        self._taken[state.priority] -= 1
        state.images_left -= 1

    def grant(self) -> Iterator[RequestState]:
        """Grant the free seats, and yield the request of each image that got one."""
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
        return batch if self._credit >= batch.image_seconds else interactive

    def _head(self, priority: Priority) -> RequestState | None:
        is_full = sum(self._taken.values()) >= self._max["interactive"]
        if is_full or self._taken[priority] >= self._max[priority] or not self._waiting[priority]:
            return None
        return self._waiting[priority][0]

    def _account(self, state: RequestState) -> None:
        if state.priority == "batch":
            self._credit = max(0.0, self._credit - state.image_seconds)
        elif self._head("batch") is not None:
            self._credit += BATCH_SHARE * state.image_seconds
