"""The brokers of the queue's tests."""

from tests.server.queue.conftest import nats_server, start_nats

__all__ = ["nats_server", "start_nats"]
