"""The connection to NATS JetStream: credentials, reconnection, and what is declared on the server."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import APIError, NoStreamResponseError
from nats.js.kv import KeyValue

from server.queue.connection.access import Access, failure
from server.queue.connection.clock import Clock
from server.queue.names import STREAMS, Bucket, Stream
from server.queue.tasks import Tasks
from server.settings.config_error import ConfigError

CONNECT_SECONDS = 5
START_SECONDS = 15.0  # to connect and declare
RECONNECT_SECONDS = 0.25
PING_SECONDS = 5  # two unanswered pings end the connection
PUBLISH_SECONDS = 5.0
MIN_PAYLOAD = 1 << 20  # bytes of a message, the default of nats-server
RETRY_SECONDS = 0.25
# A stream that is declared while nats-server deletes it never takes a message.
DELETION_SECONDS = 0.5
STREAM_NOT_FOUND = 10059

logger = logging.getLogger(__name__)


class Broker:
    """One connection, which is restored whenever it breaks. Use it on one event loop."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client = access.client()
        self.jetstream: JetStreamContext = self._client.jetstream(timeout=PUBLISH_SECONDS)
        self._up = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_closing = False
        self._problem: Exception | None = None
        self._listeners: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks = Tasks()
        self._waits: set[asyncio.Timeout] = set()
        self._streams, self._buckets = list(STREAMS), list[Bucket]()
        self.clock = Clock(self.ask)
        self._restoring: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect and declare streams and buckets. Raises ConfigError, in one line, if that fails."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._connect()
                async with self._answering():
                    await self._declare()
        except (OSError, nats.errors.Error, TimeoutError, ValueError) as error:
            await self.close()
            raise ConfigError(failure(self._access, error, self._problem)) from None
        if self.max_payload < MIN_PAYLOAD:
            await self.close()
            limit = f"max_payload is {self.max_payload} bytes, below {MIN_PAYLOAD}"
            raise ConfigError(f"--queue: {self._access}: {limit}")
        self.clock.start()
        self._up.set()

    async def close(self) -> None:
        self._is_closing = True
        self.clock.close()
        self._up.clear()
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._client.close()

    @property
    def client(self) -> Client:
        """For subjects that are not stored. A message is lost if no server is connected."""
        return self._client

    @property
    def is_up(self) -> bool:
        return self._up.is_set() and self._client.is_connected

    @property
    def max_payload(self) -> int:
        """Maximum bytes of a message and its headers."""
        return self._client.max_payload

    async def wait_up(self) -> None:
        await self._up.wait()

    async def wait_ended(self) -> None:
        """Wait until the connection cannot be restored, such as with credentials that are refused."""
        await self._ended.wait()

    def on_reconnect(self, listener: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `listener()` in a task each time the connection, or what was declared, is restored."""
        self._listeners.append(listener)

    def restore(self) -> None:
        """Declare streams, buckets and consumers again, because the server has lost some."""
        self._restore_in(DELETION_SECONDS)

    def on_failure(self, error: Exception) -> None:
        """Restore what the server has lost, if that is the reason of a failed request."""
        is_lost = isinstance(error, (NoStreamResponseError, nats.errors.NoRespondersError))
        if is_lost or getattr(error, "err_code", None) == STREAM_NOT_FOUND:
            self.restore()

    async def store(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> PubAck:
        """Publish to a stream, again and again until the server has stored the message.

        An answer that was lost causes a second publication: give `Nats-Msg-Id` where that matters. Raises
        APIError if the server refuses the message, such as for another last sequence than expected, and
        MaxPayloadError.
        """
        reported = ""
        while True:
            await self._up.wait()
            try:
                async with self._answering():
                    return await self.jetstream.publish(subject, data, headers=dict(headers or {}))
            except (nats.errors.Error, OSError, TimeoutError) as error:
                if _is_refusal(error):
                    raise
                self.on_failure(error)
                problem = str(error) or type(error).__name__
                if problem != reported:
                    logger.warning("%s is not stored yet: %s", subject, problem)
                reported = problem
            await asyncio.sleep(RETRY_SECONDS)

    async def ask(self, subject: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call JetStream's API. Raises APIError, or nats.errors.Error without an answer."""
        async with self._answering():
            answer = await self._client.request(subject, json.dumps(request).encode(), PUBLISH_SECONDS)
        response: Mapping[str, Any] = json.loads(answer.data)
        if "error" in response:
            raise APIError.from_error(response["error"])
        return response

    async def purge(self, stream: Stream, subject: str) -> None:
        """Remove messages soon, without waiting for an answer. If that fails, they expire."""
        if self.is_up:
            request = json.dumps({"filter": subject}).encode()
            with contextlib.suppress(nats.errors.Error):
                await self._client.publish(f"$JS.API.STREAM.PURGE.{stream.name}", request)

    async def declare(self, bucket: Bucket) -> KeyValue:
        """Create a bucket if it is missing, and open it."""
        self._buckets.append(bucket)
        return await bucket.declare(self.jetstream, self._access.replicas)

    async def declare_stream(self, stream: Stream) -> None:
        """Create or update a stream."""
        self._streams.append(stream)
        await stream.declare(self.jetstream, self._access.replicas)

    async def _declare(self) -> None:
        for stream in self._streams:
            await stream.declare(self.jetstream, self._access.replicas)
        for bucket in self._buckets:
            await bucket.declare(self.jetstream, self._access.replicas)
        await self.clock.sync()

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Raises TimeoutError if the connection breaks, or the server refuses a subject."""
        async with asyncio.timeout(None) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)

    def _end_waits(self) -> None:
        for wait in self._waits:
            if wait.when() is None:
                wait.reschedule(0)

    async def _connect(self) -> None:
        # One attempt at first, so that a wrong address is reported at once.
        await self._client.connect(
            list(self._access.servers),
            name="ideoserve",
            allow_reconnect=False,
            connect_timeout=CONNECT_SECONDS,
            reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]
            max_reconnect_attempts=1,
            ping_interval=PING_SECONDS,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_closed,
            **self._access.options,
        )
        self._client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}

    async def _on_error(self, error: Exception) -> None:
        self._problem = error
        self._end_waits()
        if self._up.is_set():
            logger.warning("broker: %s", error or type(error).__name__)

    async def _on_disconnect(self) -> None:
        self._up.clear()
        self._end_waits()
        if not self._is_closing:
            logger.warning("the connection to the broker is lost")

    async def _on_reconnect(self) -> None:
        logger.warning("the connection to the broker is restored")
        self._restore_in(0.0)

    def _restore_in(self, seconds: float) -> None:
        if self._restoring is None or self._restoring.done():
            self._restoring = self._tasks.spawn(self._restore(seconds))

    async def _restore(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self._client.is_connected:
            try:
                async with self._answering():
                    await self._declare()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                logger.warning("the streams are not declared yet: %s", error or type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._up.set()
                for listener in self._listeners:
                    self._tasks.spawn(listener())
                return

    async def _on_closed(self) -> None:
        self._up.clear()
        if not self._is_closing:
            self._ended.set()


def _is_refusal(error: Exception) -> bool:
    """Whether the server will never store the message."""
    is_passing = isinstance(error, APIError) and error.code == 503  # no leader, or no resources at the moment
    return isinstance(error, (APIError, MaxPayloadError)) and not is_passing
