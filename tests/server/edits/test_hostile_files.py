"""Hostile files and bodies: a clear error, within limits of memory and time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.edits import decoder
from tests.server.edits.client import EDITS, decoders, edit, peak_bytes, refused
from tests.server.edits.pictures import HOSTILE, encoded, halves, noise
from tests.server.process import ServerProcess, until
from tests.server.raw import connection, everything

Start = Callable[..., ServerProcess]
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
HEAD = b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\n" + FORM


@pytest.mark.parametrize("name", [name for name in HOSTILE if "scans" not in name])
def test_hostile_files(server: ServerProcess, name: str) -> None:
    """None stops the event loop, and the decoder answers the next request."""
    make, said = HOSTILE[name]
    data = make()
    server.http.get("/_fake/stall")
    response = edit(server, data)
    if said is None:
        assert response.status_code == 200, response.text
    else:
        assert said in refused(response, "image")
    assert server.http.get("/_fake/stall").json()["own"] < 0.1
    assert edit(server).status_code == 200


def test_a_decoder_has_a_limit_of_memory(server: ServerProcess) -> None:
    """The server holds none of the pixels."""
    server.peak_bytes()
    assert edit(server, HOSTILE["49 megapixels of zeros"][0]()).status_code == 200
    assert server.peak_bytes() < 512 << 20
    assert 45 << 20 < max(map(peak_bytes, decoders(server))) < decoder.MEMORY_BYTES


def test_a_file_that_takes_long_ends_its_decoder_alone(start: Start) -> None:
    server = start(module="tests.server.edits.impatient_server")
    make, said = HOSTILE["JPEG of 5,000 scans"]
    assert said
    assert said in refused(edit(server, make()), "image")
    assert edit(server).status_code == 200
    assert server.log_lines(level="error") == []


def post(server: ServerProcess, body: bytes, boundary: str = "b") -> httpx.Response:
    kind = f"multipart/form-data; boundary={boundary}"
    return server.http.post(EDITS, content=body, headers={"Content-Type": kind})


def part(name: str, data: bytes = b"x", more: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + data + b"\r\n"


END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "param", "code", "said"),
    [
        (part("a") * 10_000 + END, None, "too_many_parts", "more than 200 parts"),
        (part("prompt") * 2 + END, "prompt", "invalid_value", "more than once"),
        (part("mask", b"x", '; filename="m"') * 2 + END, "mask", "invalid_value", "more than once"),
        (part("expand[left]") * 2 + END, "expand[left]", "invalid_value", "more than once"),
        (part("prompt") + part("prompt[]") + END, "prompt", "invalid_value", "more than once"),
        (part("prompt", b"\xff") + END, "prompt", "invalid_value", "UTF-8"),
        (part("markup", b"x", '; filename="m"') + END, "markup", "unknown_parameter", "file"),
        (part("a" * 65) + END, None, "invalid_multipart", "1 to 64"),
        (part("") + END, None, "invalid_multipart", "1 to 64"),
        (b"--b\r\nX: y\r\n\r\nx\r\n" + END, None, "invalid_multipart", "1 to 64"),
        (part("a", more=";" * 5000) + END, None, "invalid_multipart", "malformed at part 1"),
        (part("a"), None, "invalid_multipart", "ends early"),
        (b"no boundary at all", None, "invalid_multipart", "malformed"),
        (b"", None, "invalid_multipart", "ends early"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_forms(server: ServerProcess, body: bytes, param: str | None, code: str, said: str) -> None:
    assert said in refused(post(server, body), param, code)


def test_text_beyond_the_limit_names_its_part(server: ServerProcess) -> None:
    body = part("prompt", b"a" * (1 << 20)) + part("user", b"b") + END
    assert "part `user`" in refused(post(server, body), "user", "body_too_large", 413)


@pytest.mark.parametrize("boundary", ["", "x" * 71])
def test_bad_boundaries(server: ServerProcess, boundary: str) -> None:
    refused(post(server, END, boundary), "Content-Type", "invalid_value")


def test_other_media_types(server: ServerProcess) -> None:
    response = server.http.post(EDITS, content=b"x", headers={"Content-Type": "text/plain"})
    refused(response, None, "unsupported_media_type", 415)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused(server.http.post(EDITS, content=b"x", headers=headers), None, "unsupported_media_type", 415)


@pytest.fixture(scope="module")
def strict() -> Iterator[ServerProcess]:
    """A server with small limits."""
    flags = ("--max-upload-bytes", "100000", "--max-inflight-upload-bytes", "100000")
    process = ServerProcess(*flags, "--upload-timeout-seconds", "0.3")
    yield process
    process.close()


def test_a_body_beyond_its_limit(strict: ServerProcess) -> None:
    large = encoded(noise(256, 256))
    assert "100000 bytes" in refused(edit(strict, large), None, "body_too_large", 413)
    with connection(strict, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        client.sendall(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
        assert everything(client).startswith(b"HTTP/1.1 413 ")


def test_a_slow_body(strict: ServerProcess) -> None:
    with connection(strict, HEAD + b"Content-Length: 99\r\n\r\n" + part("a")) as client:
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"within 0.3 seconds" in received


def test_images_of_running_edits_count_against_the_memory(strict: ServerProcess) -> None:
    """Until they are answered."""
    with strict.http.stream("POST", EDITS, **held()) as first:
        strict.wait(running=1)
        refused(edit(strict, size="160x160"), None, "upload_memory_full", 503)
        assert edit(strict).status_code == 200
        strict.release()
        assert first.read()
    assert edit(strict, size="160x160").status_code == 200


def held() -> dict[str, object]:
    form = {"prompt": "hold: a cat", "stream": "true", "size": "128x128"}
    return {"files": {"image": ("a.png", encoded(halves()))}, "data": form}


def test_a_client_that_leaves_gives_its_memory_back(strict: ServerProcess) -> None:
    with strict.http.stream("POST", EDITS, **held()):
        strict.wait(running=1)
    strict.wait(running=0)
    until(lambda: edit(strict, size="160x160").status_code == 200)


def test_nothing_of_an_upload_stays_on_disk(start: Start, tmp_path: Path) -> None:
    """Large files are written to disk while they arrive, without a name."""
    server = start(TMPDIR=str(tmp_path))

    def open_files() -> list[str]:
        folder = Path(f"/proc/{server.process.pid}/fd")
        links = [os.readlink(link) for link in folder.iterdir() if link.exists() or link.is_symlink()]
        return [link for link in links if link.startswith(str(tmp_path))]

    large = part("image", bytes(2 << 20), '; filename="a"')
    with connection(server, HEAD + b"Content-Length: 3000000\r\n\r\n" + large):
        until(lambda: len(open_files()) == 1)
        assert list(tmp_path.iterdir()) == []
    until(lambda: open_files() == [])
    assert edit(server, encoded(noise(1024, 1024)), size="64x64").status_code == 200
    assert open_files() == list(tmp_path.iterdir()) == []
