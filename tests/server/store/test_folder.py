"""Images at URLs of this server, stored in a folder."""

import io
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings
from server.store import from_settings
from server.store.names import file_name
from tests.server import sse
from tests.server.access.test_api_keys import write_keys
from tests.server.forked_program import run_module
from tests.server.process import HANG, ServerProcess, until
from tests.server.routes.test_errors import check

Start = Callable[..., ServerProcess]
SECRET = "a secret of more than 32 characters"
NAME = re.compile(r"img-[0-9a-f]{32}-\d-\d{10}\.(png|jpeg|webp)")


def flags(folder: Path, *more: str) -> tuple[str, ...]:
    return ("--store", f"file://{folder}", *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    keys = folder.with_name("keys.json")
    write_keys(keys, {"name": "web", "key": "web"})
    process = ServerProcess(
        *flags(folder, "--api-keys-file", str(keys), "--cors-origins", "https://a.example"),
        IDEOSERVE_URL_SECRET=SECRET,
    )
    process.http.headers["Authorization"] = "Bearer web"
    yield process
    assert SECRET not in process.log
    process.close()


@pytest.fixture(scope="module")
def url(server: ServerProcess) -> str:
    """Of an image with seed 7."""
    return url_of(server, seed=7)


def url_of(server: ServerProcess, **body: Any) -> str:
    url: str = server.create(response_format="url", **body).json()["data"][0]["url"]
    return url


def get(url: str, **headers: str) -> httpx.Response:
    """Without an API key."""
    return httpx.get(url, headers=headers, timeout=HANG)


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_the_response_has_urls_in_place_of_base64(server: ServerProcess, folder: Path) -> None:
    body = server.create(response_format="url", n=2, seed=7).json()
    base64 = server.create(n=2, seed=7).json()
    assert body.keys() == base64.keys()
    assert body["usage"] == base64["usage"]
    assert [image.keys() for image in body["data"]] == [{"url", "seed"}] * 2
    assert [image["seed"] for image in body["data"]] == [7, 8]
    for index, image in enumerate(body["data"]):
        assert image["url"].startswith(f"{server.url}/v1/files/{body['id']}-{index}-")
        assert picture(get(image["url"]).content).getpixel((0, 0)) == (7 + index, 64 + index, 128)
    names = {path.name for path in folder.iterdir()}
    assert all(NAME.fullmatch(name) for name in names)  # no part of a file that is being written


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_headers_of_a_file(server: ServerProcess, kind: str) -> None:
    url = url_of(server, output_format=kind)
    response = get(url, Origin="https://b.example")
    assert picture(response.content).format == kind.upper()
    assert response.headers["content-type"] == f"image/{kind}"
    assert response.headers["content-length"] == str(len(response.content))
    assert re.fullmatch(
        rf'inline; filename="img-[0-9a-f]{{32}}-0\.{kind}"', response.headers["content-disposition"]
    )
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["access-control-allow-origin"] == "*"
    life = re.fullmatch(r"private, max-age=(\d+), immutable", response.headers["cache-control"])
    assert life
    assert 3500 < int(life[1]) <= 3600


def test_head_is_the_same_without_the_body(url: str) -> None:
    full, head = get(url), httpx.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "etag", "content-disposition"):
        assert head.headers[name] == full.headers[name]


def test_ranges_and_conditions(url: str) -> None:
    full = get(url)
    part = get(url, Range="bytes=1-3")
    assert (part.status_code, part.content) == (206, full.content[1:4])
    assert part.headers["content-range"] == f"bytes 1-3/{len(full.content)}"
    assert get(url, Range="bytes=-5").content == full.content[-5:]
    assert get(url, Range="bytes=999999-").status_code == 416
    unchanged = get(url, **{"If-None-Match": full.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert "max-age" in unchanged.headers["cache-control"]


def test_a_stream_has_urls_of_images_and_base64_of_previews(server: ServerProcess) -> None:
    response = server.create(stream=True, partial_images=1, response_format="url", n=2, seed=9)
    events = sse.named(response.text.split("\n"))
    for event in events:
        is_preview = event.name == "image_generation.partial_image"
        assert ("b64_json" in event.data, "url" in event.data) == (is_preview, not is_preview)
    completed = [event.data for event in events if "url" in event.data]
    assert [event["seed"] for event in completed] == [9, 10]
    assert all(event["usage"] for event in completed)
    assert picture(get(completed[1]["url"]).content).getpixel((0, 0)) == (10, 65, 128)


def test_the_default_is_base64(server: ServerProcess) -> None:
    for fields in ({}, {"response_format": "b64_json"}, {"model": "fake-model", "response_format": None}):
        (image,) = server.create(**fields).json()["data"]
        assert image.keys() == {"b64_json", "seed"}


def test_the_openai_client_downloads_the_image(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="web") as client:
        answer = client.images.generate(prompt="a cat", response_format="url", extra_body={"seed": 5})
    assert answer.data
    assert answer.data[0].b64_json is None
    assert answer.data[0].url
    assert picture(get(answer.data[0].url).content).getpixel((0, 0)) == (5, 64, 128)


def test_json_is_preferred_to_one_image_file(server: ServerProcess) -> None:
    accepted = server.create({"Accept": "image/png, application/json"}, response_format="url")
    assert "url" in accepted.json()["data"][0]
    check(
        server.create({"Accept": "image/png"}, response_format="url"), 400, "invalid_value", "response_format"
    )


def test_a_retry_has_a_url_that_is_valid_as_long(server: ServerProcess) -> None:
    bodies = [
        server.create({"Idempotency-Key": "again"}, response_format="url", seed=3).json() for _ in range(2)
    ]
    assert bodies[0]["id"] == bodies[1]["id"]
    for body in bodies:
        assert picture(get(body["data"][0]["url"]).content).getpixel((0, 0)) == (3, 64, 128)


def changed(url: str, part: str, text: str) -> str:
    found = re.search(rf"{part}=(\w+)", url)
    assert found
    return url.replace(found[0], f"{part}={text}")


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.partition("?")[0],
        lambda url: changed(url, "signature", "0" * 64),
        lambda url: changed(url, "signature", "é"),
        lambda url: url[:-1],
        lambda url: changed(url, "expires", "9999999999"),
        lambda url: changed(url, "expires", "soon"),
        lambda url: url.replace(".png", ".webp"),
        lambda url: re.sub("img-.", "img-x", url),
        lambda url: re.sub("/img-[^?]*", "/..%2f..%2fetc%2fpasswd", url),
        lambda url: re.sub("/img-[^?]*", "/.part-1", url),
    ],
    ids=range(10),
)
def test_a_changed_url_tells_nothing(url: str, change: Callable[[str], str]) -> None:
    response = get(change(url))
    if "passwd" in change(url):  # a path of several segments
        check(response, 404, "not_found")
        return
    error = check(response, 403, "invalid_signature", "signature")
    assert error["type"] == "permission_error"


def test_an_expired_url(start: Start, tmp_path: Path) -> None:
    server = start(*flags(tmp_path, "--url-ttl-seconds", "1"))
    url = url_of(server)
    until(lambda: get(url).status_code == 403)
    check(get(url), 403, "url_expired", "expires")


def test_a_deleted_file(server: ServerProcess, folder: Path) -> None:
    url = url_of(server)
    (folder / url.rpartition("/")[2].partition("?")[0]).unlink()
    check(get(url), 404, "file_not_found")


def test_a_url_holds_on_other_servers_with_the_secret(
    start: Start, server: ServerProcess, folder: Path, tmp_path: Path, url: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    other = start(*flags(folder, "--url-secret-file", str(secret)))
    assert get(url.replace(server.url, other.url)).status_code == 200
    assert not other.log_lines(level="warning")


def test_the_base_of_a_url_is_that_of_the_request(server: ServerProcess) -> None:
    """With the scheme of a proxy on this machine."""
    headers = {"Host": "images.example:8443", "X-Forwarded-Proto": "https"}
    body = server.create(headers, response_format="url").json()
    assert body["data"][0]["url"].startswith("https://images.example:8443/v1/files/img-")


def test_a_fixed_base_a_random_secret_and_no_sweep(
    start: Start, server: ServerProcess, tmp_path: Path, url: str
) -> None:
    expired = old(tmp_path, 3600)
    other = start(*flags(tmp_path, "--public-url", "https://cdn.example/ideo/", "--no-store-sweep"))
    assert url_of(other).startswith("https://cdn.example/ideo/v1/files/img-")
    check(get(url.replace(server.url, other.url)), 403, "invalid_signature", "signature")
    (warning,) = other.logged(level="warning")
    assert "--url-secret-file" in warning["message"]
    assert expired.exists()


def old(folder: Path, seconds: int, name: str = "img-1") -> Path:
    path = folder / file_name(name, 0, int(time.time()) - seconds, "png")
    path.write_bytes(bytes(1000))
    return path


def test_expired_files_are_deleted_and_others_left(start: Start, tmp_path: Path) -> None:
    expired, recent = old(tmp_path, 3600), old(tmp_path, -3600)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    part = tmp_path / ".part-1"
    part.write_bytes(b"left by a crash")
    os.utime(part, (0, 0))
    server = start(*flags(tmp_path))
    until(lambda: not expired.exists() and not part.exists())
    assert (recent.exists(), other.exists()) == (True, True)
    assert server.metric("ideoserve_store_bytes") == 1000


def test_a_full_store_refuses_before_any_device_time(start: Start, tmp_path: Path) -> None:
    old(tmp_path, -3600).write_bytes(bytes(1 << 20))
    server = start(*flags(tmp_path, "--max-store-bytes", str(1 << 20)))
    response = server.create(response_format="url")
    check(response, 503, "store_full", "response_format")
    assert response.headers["retry-after"] == "60"
    assert server.state()["requests"] == []
    assert server.create().status_code == 200


def test_a_failed_write_is_said_and_a_retry_costs_no_device_time(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    server = start(*flags(folder))
    folder.rename(tmp_path / "away")
    headers = {"Idempotency-Key": "k"}
    response = server.create(headers, response_format="url")
    error = check(response, 502, "store_unavailable", "response_format")
    assert "Idempotency-Key" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert str(folder) not in response.text
    (event,) = sse.named(server.create(stream=True, response_format="url").text.split("\n"))
    assert event.data["error"]["code"] == "store_unavailable"
    assert server.metric('ideoserve_backend_requests_total{backend="store",outcome="failed"}') == 2
    assert server.metric('ideoserve_requests_total{outcome="store_unavailable"}') == 2
    (tmp_path / "away").rename(folder)
    assert server.create(headers, response_format="url").status_code == 200
    assert server.state()["finished"] == 2
    # A limit of file sizes stands in for a full disk.
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (10, 10))
    check(server.create(response_format="url"), 503, "store_full", "response_format")
    assert len(list(folder.iterdir())) == 1
    assert server.metric('ideoserve_backend_requests_total{backend="store",outcome="full"}') == 1


def test_a_store_that_cannot_be_used_is_one_line() -> None:
    result = run_module("server", "--model", "models/demo", "--port", "0", "--store", "file:///proc/images")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("ideoserve: --store: cannot write to /proc/images: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"store": "file:///nowhere/images"}, "--store: cannot write to /nowhere/images: "),
        ({"store": "file://host/images"}, "--store: must be file:///FOLDER, s3://"),
        ({"store": "/images"}, "--store: must be file:///FOLDER"),
        ({"store": "ftp://host/x"}, "--store: must be file:///FOLDER"),
        ({"store": "s3://"}, "--store: must be file:///FOLDER"),
        ({"store": "s3://key:hush@images"}, "--store: must be file:///FOLDER"),
        ({"store": "s3://images?key=hush"}, "--store: must be file:///FOLDER"),
        ({"store": "az://images"}, "--store: .*[Aa]ccount"),
        (
            {"store": "file:///proc", "url_secret": "hush"},
            "--url-secret-file: .* at least 32",
        ),
    ],
)
def test_bad_settings(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}") as failure:
        from_settings(Settings(model="fake", **given), lambda *_: None)
    assert len(str(failure.value).splitlines()) == 1
    assert "hush" not in str(failure.value)


@pytest.mark.parametrize("url", ["cdn.example", "ftp://cdn.example", "https://cdn.example/?a", "https://"])
def test_a_bad_public_url(capsys: pytest.CaptureFixture[str], url: str) -> None:
    with pytest.raises(SystemExit) as exit:
        read_settings(["--model", "fake", "--public-url", url])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("ideoserve: --public-url: ")


def test_a_worker_stores_nothing() -> None:
    worker = Settings(model="fake", store="file:///nowhere/images", queue="nats://localhost", role="worker")
    assert from_settings(worker, lambda *_: None) is None


def test_buckets_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "server.store.bucket_store", raising=False)
    with pytest.raises(ConfigError, match=r"^--store: .*ideoserve\[store\]"):
        from_settings(Settings(model="fake", store="s3://images"), lambda *_: None)
