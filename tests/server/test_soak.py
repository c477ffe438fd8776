"""Two thousand requests, a fifth of them left in the middle, and nothing stays behind."""

from collections.abc import Callable

from tests.server.process import ServerProcess, until
from tests.server.soak import Soak

Start = Callable[..., ServerProcess]


def test_soak(start: Start) -> None:
    server = start("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")
    Soak(server.port, requests=200, concurrency=32, leaving=0.2).run()
    server.wait(running=0)
    before = server.http.get("/_fake/alive").json()
    memory = server.metric("process_resident_memory_bytes")
    descriptors = server.metric("process_open_fds")

    soak = Soak(server.port, requests=2000, concurrency=32, leaving=0.2).run()

    assert soak.answered + soak.left == 2000
    assert soak.left > 300
    server.wait(running=0)
    until(lambda: server.metric("process_open_fds") <= descriptors)
    for gauge in ("requests_running", "requests_waiting", "backlog_seconds"):
        assert server.metric(f"ideoserve_{gauge}") == 0
    assert server.http.post("/drain").json()["in_flight"] == 0
    assert server.http.get("/_fake/alive").json() == before
    assert server.metric("process_resident_memory_bytes") < memory + (16 << 20)
    assert not server.log_lines(level="error")
