"""Pulls messages of one priority from the work stream."""

import asyncio
import json
from collections.abc import Callable

from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from server.queue import names
from server.queue.connection.broker import Broker

# Idle workers are served first: pulls have a level, 0 first.
MAX_LEVEL = 9
_GROUP = "workers"
_GRACE_SECONDS = 1.0  # for the broker to answer that nothing is waiting
_NANOSECONDS = 1_000_000_000
_EMPTY = ("404", "408")  # status: no message is waiting, or none came in time
_API = "$JS.API.CONSUMER"


class Pull:
    """A durable consumer that all workers of a model share, which delivers a message again if it is not
    acknowledged for `ack_seconds`. At most one `next` runs at a time; a message that arrives after it was
    cancelled goes to `on_late`."""

    def __init__(
        self, broker: Broker, subject: str, consumer: str, ack_seconds: float, on_late: Callable[[Msg], None]
    ) -> None:
        self._broker = broker
        self._subject = subject
        self._consumer = consumer
        self._ack_seconds = ack_seconds
        self._on_late = on_late
        self.waiting = 0
        self.oldest_seconds = 0.0
        self._inbox = ""
        self._asked = 0
        self._answer: asyncio.Future[Msg | None] | None = None

    async def start(self) -> None:
        await self._declare()
        self._broker.on_reconnect(self._declare)
        self._inbox = self._broker.client.new_inbox()
        await self._broker.client.subscribe(f"{self._inbox}.*", cb=self._on_message)

    async def next(self, level: int, seconds: float) -> Msg | None:
        """The next message, waiting for it for `seconds` (0: not at all); None if there is none."""
        self._asked += 1
        self._answer = answer = asyncio.get_running_loop().create_future()
        wait = {"expires": int(seconds * _NANOSECONDS)} if seconds else {"no_wait": True}
        request = {"batch": 1, "group": _GROUP, "priority": level, **wait}
        await self._broker.client.publish(
            f"{_API}.MSG.NEXT.{names.WORK.name}.{self._consumer}",
            json.dumps(request).encode(),
            reply=f"{self._inbox}.{self._asked}",
        )
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                return await answer
        except TimeoutError:
            return None
        finally:
            if self._answer is answer:  # another call may have begun
                self._answer = None

    async def refresh(self) -> None:
        """Set `waiting`, the messages that no worker has pulled, and the age of the oldest of them."""
        info = await self._broker.ask(f"{_API}.INFO.{names.WORK.name}.{self._consumer}", {})
        self.waiting = info["num_pending"]
        pulled = info["delivered"]["stream_seq"]
        self.oldest_seconds = await self._age_of_next(pulled) if self.waiting else 0.0

    async def _age_of_next(self, sequence: int) -> float:
        """Seconds since the first message after this one was stored; 0 if there is none any more."""
        try:
            message = await self._broker.jetstream.get_msg(
                names.WORK.name, sequence + 1, self._subject, direct=True, next=True
            )
        except NotFoundError:
            return 0.0
        assert message.time is not None
        return max(0.0, self._broker.clock.now() - message.time.timestamp())

    async def _on_message(self, message: Msg) -> None:
        is_status = message.subject.startswith(self._inbox)
        if is_status and message.subject != f"{self._inbox}.{self._asked}":
            return  # of an earlier pull
        if is_status and (message.headers or {}).get("Status") not in _EMPTY:
            self._broker.restore()  # the consumer is gone, which `next` takes as silence
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None if is_status else message)
        elif not is_status:
            self._on_late(message)

    async def _declare(self) -> None:
        """The client library has no priorities."""
        config = {
            "name": self._consumer,
            "durable_name": self._consumer,
            "filter_subject": self._subject,
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_seconds * _NANOSECONDS),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "max_waiting": 10_000,
            "priority_groups": [_GROUP],
            "priority_policy": "prioritized",
        }
        await self._broker.ask(
            f"{_API}.CREATE.{names.WORK.name}.{self._consumer}.{self._subject}",
            {"stream_name": names.WORK.name, "config": config, "action": ""},
        )
