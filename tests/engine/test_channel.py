"""The pixels of a source between the client and a worker."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from engine.channel import Channel, receive
from engine.messages import Abort, Ping
from engine.request import EngineRequest, SourceImage
from tests.engine.fakes import request

RGB, MASK = os.urandom(3 * 1024 * 1024), os.urandom(1024 * 1024)  # larger than the pipe


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    channel = Channel(ours)
    yield channel, theirs
    channel.shut_down()
    theirs.close()
    channel.close()


def edit(name: str, mask: bytes | None = MASK) -> EngineRequest:
    return request(name, (1024, 1024), source=SourceImage(RGB, mask, 0.5, name))


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("has_memory", [True, False])
def test_a_worker_receives_the_pixels_in_order_with_other_messages(
    ends: tuple[Channel, Connection], mask: bytes | None, has_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the pipe if there is no shared memory."""
    if not has_memory:
        monkeypatch.delattr(os, "memfd_create")
    channel, worker = ends
    sent = [Ping(), edit("a", mask), edit("b", mask), Abort("a"), request("plain")]
    for message in sent:
        channel.send(message)
    assert [message for _ in sent for message in receive(worker)] == sent


def test_pixels_do_not_wait_for_the_worker_in_the_pipe(ends: tuple[Channel, Connection]) -> None:
    """A worker that reads a message has all of it in the pipe or in memory: 8 requests fit in the pipe."""
    channel, worker = ends
    for index in range(8):
        channel.send(edit(str(index)))
    channel._outbox.put(None)  # ends the sender, once it has sent all
    channel._sender.join(10)
    assert not channel._sender.is_alive()
    assert [receive(worker)[0].request_id for _ in range(8)] == list("01234567")


def test_no_descriptors_are_left(ends: tuple[Channel, Connection]) -> None:
    channel, worker = ends
    channel.send(edit("first"))
    receive(worker)
    channel.send(Ping())  # the sender has closed the first one's
    receive(worker)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        channel.send(edit("again"))
        channel.send(Ping())
        receive(worker), receive(worker)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_dies_before_it_has_sent_the_pixels_ends_the_worker() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.send([request("half", (1024, 1024), source=SourceImage(b"", None, 0.5, ""))])
    closing = threading.Thread(target=ours.close)
    closing.start()
    with pytest.raises(EOFError):
        receive(theirs)
    closing.join()
    theirs.close()
