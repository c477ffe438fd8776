"""API keys: authentication, concurrency limits and priorities."""

import codecs
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from server.access.api_keys import Keys
from server.schemas.errors import ApiError
from server.settings.config_error import ConfigError
from tests.server.forked_program import run_module
from tests.server.process import ServerProcess, small

Start = Callable[..., ServerProcess]


def write_keys(file: Path, *keys: dict[str, Any]) -> None:
    """Replace the file atomically, as secrets are rotated."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": keys}))
    os.replace(fresh, file)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    web = {"name": "web", "sha256": hashlib.sha256(b"web-secret").hexdigest(), "max_concurrency": 1}
    batch = {"name": "nightly", "key": "nightly-secret", "priorities": ["batch"]}
    live = {"name": "live", "key": "live-secret", "priorities": ["interactive"]}
    write_keys(file, web, batch, live)
    return file


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_wrong_or_no_key(start: Start, keys: Path) -> None:
    server = start("--api-keys-file", str(keys))
    wrong: tuple[dict[str, Any], ...] = (
        {},
        bearer("web"),
        {"Authorization": "Bearer"},
        {"Api-Key": "x"},
        {"Authorization": "Basic web-secret"},
        {"Authorization": "", "Api-Key": ""},
        {"Api-Key": b"web-secr\xe9t"},
    )
    for headers in wrong:
        for response in (server.create(headers), server.http.get("/v1/models", headers=headers)):
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
    assert server.http.get("/v1/models/fake-model").status_code == 401
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert server.http.get(path).status_code == 200
    assert server.metric('ideoserve_rejected_total{reason="invalid_api_key"}') == len(wrong)


def test_both_headers_and_both_forms_of_a_key(start: Start, keys: Path) -> None:
    server = start("--api-keys-file", str(keys))
    for headers in (
        bearer("web-secret"),
        {"Api-Key": "nightly-secret"},
        {"Authorization": "bearer live-secret"},
    ):
        assert server.create(headers).status_code == 200
    for name in ("web", "nightly", "live"):
        assert server.logged(key=name, outcome="ok")
    assert "secret" not in server.log


def test_rotation_without_restart(start: Start, keys: Path) -> None:
    server = start("--api-keys-file", str(keys))
    write_keys(keys, {"name": "web", "key": "second"})
    assert server.create(bearer("web-secret")).status_code == 401
    assert server.create(bearer("second")).status_code == 200
    keys.write_text("{broken")
    assert server.create(bearer("second")).status_code == 200
    assert server.logged(level="error", logger="server.settings.watched_file")
    for useless in ("", '{"keys": [{"name": "web", "key": ""}]}'):
        keys.write_text(useless)
        assert server.create({"Api-Key": ""}).status_code == 401
        assert server.create(bearer("second")).status_code == 200
    keys.unlink()
    assert server.create(bearer("second")).status_code == 200


def test_a_file_without_keys_refuses_all_requests(start: Start, keys: Path) -> None:
    """All keys can be revoked at once."""
    server = start("--api-keys-file", str(keys))
    write_keys(keys)
    assert server.create().status_code == 401
    assert server.create(bearer("web-secret")).status_code == 401


def test_a_digest_is_of_the_bytes_that_are_sent(tmp_path: Path) -> None:
    """Any bytes, hex in either case, a file with a byte order mark."""
    file = tmp_path / "keys.json"
    key = "clé à".encode()
    write_keys(file, {"name": "web", "sha256": hashlib.sha256(key).hexdigest().upper()})
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    keys = Keys(file)
    for header in ((b"authorization", b"Bearer " + key), (b"api-key", key)):
        assert keys.authenticate(Headers(raw=[header])).name == "web"
    with pytest.raises(ApiError):
        keys.authenticate(Headers(raw=[(b"api-key", "clé à".encode("latin-1"))]))


def entries(*given: dict[str, Any]) -> str:
    return json.dumps({"keys": given})


def digest_of(blank: str) -> str:
    return entries({"name": "a", "sha256": hashlib.sha256(blank.encode()).hexdigest()})


SAME = {"name": "a", "key": "hush"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "EOF"),
        ("", "EOF"),
        (entries({"name": "a"}), "keys.0: exactly one of key and sha256"),
        (entries({"name": "a", "key": "hush", "sha256": "0" * 64}), "keys.0: exactly one of key and sha256"),
        (entries({"name": "a", "sha256": "hush"}), "keys.0.sha256: "),
        *(
            (entries({"name": "a", "key": key}), "keys.0.key: ")
            for key in ("", " ", "hush\n", "hu sh", "hüsh")
        ),
        *(
            (digest_of(blank), "keys.0.sha256: the digest of an empty key")
            for blank in ("", " ", "\n", "\r\n")
        ),
        (entries(SAME, {"name": "a", "key": "other"}), "two entries have the name 'a'"),
        (entries(SAME, {"name": "b", "key": "hush"}), "'a' and 'b' have the same key"),
        (None, "No such file"),
    ],
    ids=range(17),
)
def test_a_bad_file_stops_the_start(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as failure:
        Keys(file)
    assert str(file) in str(failure.value)
    assert said in str(failure.value)
    assert "hush" not in str(failure.value)


def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(entries({"name": "web", "key": ""}))
    run = run_module("tests.server.fake_server", "--api-keys-file", str(file))
    assert run.returncode == 2
    assert run.stderr.startswith(f"ideoserve: {file}: keys.0.key: ")
    assert len(run.stderr.splitlines()) == 1


def test_the_concurrency_limit_of_a_key(start: Start, keys: Path) -> None:
    server = start("--api-keys-file", str(keys))
    held = small(prompt="hold: a", stream=True)
    with server.http.stream("POST", "/v1/images", json=held, headers=bearer("web-secret")) as stream:
        server.wait(running=1)
        response = server.create(bearer("web-secret"))
        assert (response.status_code, response.json()["error"]["code"]) == (429, "concurrency_limit")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert server.create(bearer("live-secret")).status_code == 200
        server.release()
        stream.read()
    assert server.create(bearer("web-secret")).status_code == 200


def test_priorities_are_allowed_per_key(start: Start, keys: Path) -> None:
    server = start("--api-keys-file", str(keys))

    def priority(key: str, wanted: str | None) -> str | int:
        headers = bearer(key) | ({"X-Priority": wanted} if wanted else {})
        response = server.create(headers)
        if response.status_code != 200:
            assert response.json()["error"]["code"] == "priority_not_allowed"
            return response.status_code
        return str(server.state()["requests"][-1]["priority"])

    assert priority("web-secret", None) == "interactive"
    assert priority("web-secret", "batch") == "batch"
    assert priority("nightly-secret", None) == "batch"
    assert priority("nightly-secret", "interactive") == 403
    assert priority("live-secret", "batch") == 403


def test_the_openapi_document_requires_a_key(start: Start, keys: Path, server: ServerProcess) -> None:
    def security(process: ServerProcess) -> Any:
        return process.http.get("/openapi.json").json()["paths"]["/v1/images"]["post"].get("security")

    assert security(server) is None
    assert security(start("--api-keys-file", str(keys))) == [{"bearer": []}, {"apiKey": []}]
