"""Cross-origin requests from browsers."""

from collections.abc import Iterator

import pytest

from tests.server.process import ServerProcess
from tests.server.routes.test_errors import Start

ORIGIN = "https://app.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
}


@pytest.fixture(scope="module")
def listed() -> Iterator[ServerProcess]:
    process = ServerProcess("--cors-origins", f"https://other.example, {ORIGIN}")
    yield process
    process.close()


def test_a_preflight_passes(listed: ServerProcess) -> None:
    response = listed.http.options("/v1/images/generations", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["x-request-id"]
    assert listed.logged(method="OPTIONS", status=200)


def test_every_response_carries_the_headers(listed: ServerProcess) -> None:
    """A script could not read an error without them."""
    headers = {"Origin": ORIGIN}
    responses = [
        listed.create(headers),
        listed.create(headers, n=99),
        listed.create(headers, prompt="bug: a"),
        listed.create(headers, prompt="fail: a", stream=True),
        listed.http.get("/v2", headers=headers),
        listed.http.get("/v1/images", headers=headers),
        listed.http.get("/v1/models", headers=[("Origin", ORIGIN), *[("X-A", "1")] * 200]),
    ]
    assert [response.status_code for response in responses] == [200, 400, 500, 200, 404, 405, 431]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        exposed = response.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-request-id", "x-seed", "x-warnings", "retry-after", "server-timing"} <= set(exposed)


def test_another_origin_is_not_allowed(listed: ServerProcess) -> None:
    other = {"Origin": "https://evil.example"}
    assert listed.http.options("/v1/images", headers=PREFLIGHT | other).status_code == 400
    assert "access-control-allow-origin" not in listed.create(other).headers


def test_any_origin(start: Start) -> None:
    server = start("--cors-origins", "*")
    response = server.create({"Origin": "null"}, n=99)
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


def test_none_by_default(server: ServerProcess) -> None:
    response = server.http.options("/v1/images", headers=PREFLIGHT)
    assert (response.status_code, response.headers["allow"]) == (204, "OPTIONS, POST")
    for each in (response, server.create({"Origin": ORIGIN})):
        assert "access-control-allow-origin" not in each.headers
