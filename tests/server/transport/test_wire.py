"""Edge cases of RFC 9110 and RFC 9112 over raw sockets."""

import json
import socket
from collections.abc import Callable

import pytest

from tests.server.process import ServerProcess, until
from tests.server.raw import BODY, HEAD, answers, connection, everything, get, post, post_chunked

Start = Callable[..., ServerProcess]
LAST = get(headers=b"Connection: close\r\n")
EXPECT = b"Expect: 100-continue\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"

SERVED = {
    "absolute target": get(b"http://example.com/healthz"),
    "absolute target of another port and case": get(b"HTTP://example.com:8000/healthz?a=b"),
    "absolute target of an image": post().replace(b"/v1/images", b"http://example.com/v1/images", 1),
    "bare line feeds": get().replace(b"\r\n", b"\n"),
    "folded header": get(headers=b"X-A: 1\r\n 2\r\n"),
    "length twice, the same": post(b"Content-Length: %d\r\n" % len(BODY)),
    "chunks": post_chunked(),
    "chunk extension": post_chunked(extension=b";a=" + b"b" * 1000),
    "trailer": post_chunked(trailer=b"X-A: 1\r\n"),
    "expectation": post(EXPECT),
    "expectation of a body in chunks": post_chunked(EXPECT),
    "upgrade to h2c": post(UPGRADE),
    "upgrade without a body": get(headers=UPGRADE),
    "Accept on two lines": post(b"Accept: text/html\r\nAccept: application/json\r\n"),
    "byte order mark": post(body=b"\xef\xbb\xbf" + BODY),
    "base URL that ends in a slash": post().replace(b"/v1/images", b"/v1//images/generations", 1),
    "slashes in front": post().replace(b"/v1/images", b"//v1/images", 1),
    "slash at the end": post().replace(b"/v1/images", b"/v1/images/generations/", 1),
    "slash at the end of a model's id": get(b"/v1/models/fake-model/"),
    "slashes in an absolute target": get(b"http://example.com//v1//models//"),
    "identity on two lines": post(b"Content-Encoding: identity\r\nContent-Encoding: IDENTITY\r\n"),
}
REFUSED_AND_KEPT = {
    "slashes before a probe": (get(b"//metrics"), 404, "not_found"),
    "slash after a probe": (get(b"/metrics/"), 404, "not_found"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
    "fragment": (get(b"/healthz#a"), 400, "invalid_request"),
    "ftp target": (get(b"ftp://example.com/healthz"), 400, "invalid_request"),
    "absolute target without a path": (get(b"http://example.com?a").replace(b"GET", b"PUT"), 405, None),
    "NUL in the path": (get(b"/healthz%00"), 404, "not_found"),
    "unknown method": (get().replace(b"GET", b"BREW"), 405, "method_not_allowed"),
    "long target": (get(b"/" + b"a" * 40_000), 400, "invalid_request"),
    "two encodings": (
        post(b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"),
        415,
        "unsupported_media_type",
    ),
    "two content types": (post(b"Content-Type: text/plain\r\n"), 400, "invalid_value"),
    "two keys": (post(b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"), 400, "invalid_value"),
    "two priorities": (post(b"X-Priority: batch\r\nX-Priority: interactive\r\n"), 400, "invalid_value"),
    "two credentials": (post(b"Authorization: a\r\nAuthorization: b\r\n"), 400, "invalid_value"),
    "nothing acceptable on two lines": (post(b"Accept: a/b\r\nAccept: c/d\r\n"), 406, "not_acceptable"),
}
REFUSED_AND_CLOSED = {
    "length and chunks": (post_chunked(b"Content-Length: 5\r\n"), 400, "invalid_request"),
    "chunks in HTTP/1.0": (post_chunked().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "invalid_request"),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400, "invalid_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_not_supported"),
    "no Host": (get().replace(b"Host: x\r\n", b""), 400, "invalid_request"),
    "two Hosts": (get(headers=b"Host: y\r\n"), 400, "invalid_request"),
    "signed length": (HEAD + b"Content-Length: +5\r\n\r\nabcde", 400, "invalid_request"),
    "two lengths": (post(b"Content-Length: 1\r\n"), 400, "invalid_request"),
    "identity transfer": (post(b"Transfer-Encoding: identity\r\n"), 400, "invalid_request"),
    "gzip transfer": (post_chunked(b"Transfer-Encoding: gzip\r\n"), 400, "invalid_request"),
    "space before a colon": (get(headers=b"X-A : 1\r\n"), 400, "invalid_request"),
    "NUL in a header": (get(headers=b"X-A: a\0b\r\n"), 400, "invalid_request"),
    "bare carriage return": (get(headers=b"X-A: a\rX-B: b\r\n"), 400, "invalid_request"),
    "space in the target": (get(b"/healthz a"), 400, "invalid_request"),
}
EXPECTATIONS = {
    "too large": (HEAD + EXPECT + b"Content-Length: 9999999\r\n\r\n", 413),
    "wrong type": (HEAD.replace(b"json", b"xml") + EXPECT + b"Content-Length: 9\r\n\r\n", 415),
    "wrong path": (HEAD.replace(b"images", b"nowhere") + EXPECT + b"Content-Length: 9\r\n\r\n", 404),
    "no JSON": (post(EXPECT + b"Connection: close\r\n", b"{"), 400),
}


@pytest.mark.parametrize("sent", SERVED.values(), ids=SERVED)
def test_served_and_kept(server: ServerProcess, sent: bytes) -> None:
    with connection(server, sent + LAST) as client:
        found = answers(everything(client))
    assert [answer.status for answer in found] == [200, 200]
    assert b"connection: close" not in found[0].head
    assert not server.log_lines(level="warning")


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED_AND_KEPT.values(), ids=REFUSED_AND_KEPT)
def test_refused_and_kept(server: ServerProcess, sent: bytes, status: int, code: str | None) -> None:
    with connection(server, sent + LAST) as client:
        first, second = answers(everything(client))
    assert (first.status, second.status) == (status, 200)
    assert code in (None, json.loads(first.body)["error"]["code"])


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED_AND_CLOSED.values(), ids=REFUSED_AND_CLOSED)
def test_refused_and_closed(server: ServerProcess, sent: bytes, status: int, code: str) -> None:
    """The rest of the input could be part of the body, so it is not parsed as a request."""
    with connection(server, sent + get()) as client:
        (answer,) = answers(everything(client))
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert b"connection: close" in answer.head


@pytest.mark.parametrize(("sent", "status"), EXPECTATIONS.values(), ids=EXPECTATIONS)
def test_a_refused_expectation_closes_the_connection(server: ServerProcess, sent: bytes, status: int) -> None:
    """The server could not tell whether the client sends the body or its next request."""
    with connection(server, sent) as client:
        (answer,) = answers(everything(client))
    assert answer.status == status
    assert b"connection: close" in answer.head


@pytest.mark.parametrize("headers", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0(server: ServerProcess, headers: bytes) -> None:
    with connection(server, get(headers=headers).replace(b"HTTP/1.1", b"HTTP/1.0")) as client:
        (answer,) = answers(everything(client))
    assert answer.status == 200
    assert b"connection: close" in answer.head


@pytest.mark.parametrize("transfer", [b"identity", b"gzip, chunked"])
def test_an_unknown_transfer_encoding_is_named(server: ServerProcess, transfer: bytes) -> None:
    with connection(server, HEAD + b"Transfer-Encoding: " + transfer + b"\r\n\r\n") as client:
        assert b"Transfer-Encoding" in answers(everything(client))[0].body


def test_an_error_about_headers_names_the_limit(server: ServerProcess) -> None:
    """Complete headers, and headers without an end."""
    whole = get(headers=b"Connection: close\r\nX-A: " + b"a" * 40_000 + b"\r\n")
    for sent in (whole, whole[:-4]):
        with connection(server, sent) as client:
            assert b"exceed 32768 bytes" in answers(everything(client))[0].body


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    with connection(server, get(b"/v1/models") + post() + get(b"/nowhere") + LAST) as client:
        found = answers(everything(client))
    assert [answer.status for answer in found] == [200, 200, 404, 200]


def test_a_refusal_reaches_a_client_that_is_still_sending(server: ServerProcess) -> None:
    """Closing a connection with unread input resets it, which can discard the response."""
    with connection(server, HEAD + b"Content-Length: 8388608\r\n\r\n") as client:
        assert client.recv(1, socket.MSG_PEEK)
        client.sendall(b" " * (8 << 20))
        (answer,) = answers(everything(client))
    assert json.loads(answer.body)["error"]["code"] == "body_too_large"


def test_a_refused_client_that_keeps_sending_is_disconnected(start: Start) -> None:
    server = start("--header-timeout-seconds", "0.2")
    with connection(server, HEAD + b"Content-Length: 8388608\r\n\r\n") as client:
        assert answers(everything(client))[0].status == 413
        until(lambda: is_reset(client))


def is_reset(client: socket.socket) -> bool:
    try:
        client.sendall(b" ")
    except OSError:
        return True
    return False


HALF_CLOSED = {
    "probe": (get(), [200]),
    "pipelined": (get() + get(b"/v1/models") + get(b"/nowhere"), [200, 200, 404]),
    "refusal": (post(body=b"{}"), [400]),
    "refusal after a while": (post(body=b'{"prompt": "%s"}' % (b"a " * 3000)), [400]),
    "unfinished body": (HEAD + b"Content-Length: 99\r\n\r\n{", [400]),
    "unfinished chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", [400]),
    "unfinished head": (b"GET /healthz HTTP/1.1\r\n", []),
}


@pytest.mark.parametrize(("sent", "statuses"), HALF_CLOSED.values(), ids=HALF_CLOSED)
def test_a_half_closed_client_is_answered(server: ServerProcess, sent: bytes, statuses: list[int]) -> None:
    with connection(server, sent) as client:
        client.shutdown(socket.SHUT_WR)
        assert [answer.status for answer in answers(everything(client))] == statuses
    assert not server.log_lines(level="error")


def test_a_half_closed_client_gets_a_stored_response(server: ServerProcess) -> None:
    """The response takes no device time."""
    sent = post(b"Idempotency-Key: half\r\nAccept: image/png\r\nConnection: close\r\n")
    with connection(server, sent) as client:
        made = answers(everything(client))[0].body
    with connection(server, sent) as client:
        client.shutdown(socket.SHUT_WR)
        assert answers(everything(client))[0].body == made


@pytest.mark.parametrize("accept", [b"application/json", b"image/png", b"text/event-stream"])
def test_a_half_close_aborts_the_generation(server: ServerProcess, accept: bytes) -> None:
    """A half-closed connection looks the same as a client whose process died."""
    aborted = server.state()["aborted"]
    with connection(server, post(b"Accept: " + accept + b"\r\n", b'{"prompt": "hold: a"}')) as client:
        server.wait(running=1)
        client.shutdown(socket.SHUT_WR)
        received = everything(client)
    assert b'"code":"client_disconnected"' in received.replace(b'": "', b'":"')
    assert received.startswith(b"HTTP/1.1 200 " if accept == b"text/event-stream" else b"HTTP/1.1 499 ")
    server.wait(running=0, aborted=aborted + 1)
    assert not server.log_lines(level="error")


def test_a_disconnect_after_pipelined_input_is_noticed(server: ServerProcess) -> None:
    """The next request waits for the response to the first; the end of the connection does not."""
    aborted = server.state()["aborted"]
    with connection(server, post(body=b'{"prompt": "hold: a"}')) as client:
        server.wait(running=1)
        server.state()
        client.sendall(get())
        server.state()  # a response on another connection: the input on this one has been read
    server.wait(running=0, aborted=aborted + 1)
