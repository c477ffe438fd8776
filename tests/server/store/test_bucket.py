"""Images at presigned URLs of a bucket: against a fake S3 that verifies signatures, and signatures of the
other providers."""

import asyncio
import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

from server.store.bucket_store import BucketStore
from server.store.names import file_name
from server.store.store import StoreError
from tests.server.process import ServerProcess, until
from tests.server.routes.test_errors import check
from tests.server.store import fake_s3

EXPIRES = int(time.time()) + 3600
NAME = file_name("img-1", 0, EXPIRES, "webp")


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Of a server whose bucket is in the fake S3."""
    server = fake_s3.start()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": fake_s3.REGION,
        "AWS_ACCESS_KEY_ID": fake_s3.KEY_ID,
        "AWS_SECRET_ACCESS_KEY": fake_s3.SECRET,
    }
    server.shutdown()


@pytest.fixture
def bucket(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> BucketStore:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fake_s3.objects.clear()
    return BucketStore("s3://images/made", time.time)


def test_a_server_with_a_bucket(start: Callable[..., ServerProcess], environment: dict[str, str]) -> None:
    expired, other = "made/img-1-0-1000000000.png", "made/notes.txt"
    fake_s3.objects.update({expired: ({}, b"x"), other: ({}, b"x")})
    server = start("--store", "s3://images/made", **environment)
    body = server.create(response_format="url", seed=7, n=2).json()
    url = body["data"][1]["url"]
    response = httpx.get(url)
    assert Image.open(io.BytesIO(response.content)).getpixel((0, 0)) == (8, 65, 128)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == f'inline; filename="{body["id"]}-1.png"'
    assert re.fullmatch(r"private, max-age=3(600|59\d), immutable", response.headers["cache-control"])
    assert urlsplit(url).path.startswith(f"/images/made/{body['id']}-1-")
    assert httpx.get(url.replace("Expires=3600", "Expires=3601")).status_code == 403
    until(lambda: expired not in fake_s3.objects)
    assert other in fake_s3.objects
    check(httpx.get(f"{server.url}/v1/files/{NAME}"), 404, "not_found")
    assert fake_s3.SECRET not in server.log


def test_a_bucket_that_refuses(start: Callable[..., ServerProcess], environment: dict[str, str]) -> None:
    server = start("--store", "s3://images/broken", **environment)
    response = server.create(response_format="url")
    error = check(response, 502, "store_unavailable", "response_format")
    assert "broken" not in error["message"]
    assert server.metric('ideoserve_backend_requests_total{backend="store",outcome="failed"}') == 1
    (line,) = (line for line in server.logged(level="error") if "store an image" in line["message"])
    assert "403" in line["message"]


def test_files_of_a_bucket(bucket: BucketStore) -> None:
    async def use() -> None:
        await bucket.put(NAME, b"first")
        await bucket.put(NAME, b"image")
        assert await bucket.get(NAME) == b"image"
        await bucket.sweep(time.time())
        assert bucket.stored_bytes == 5
        await bucket.delete(NAME)
        await bucket.delete(NAME)
        assert await bucket.get(NAME) is None

    asyncio.run(use())


def test_an_unreachable_bucket(monkeypatch: pytest.MonkeyPatch, bucket: BucketStore) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    gone = BucketStore("s3://images", time.time)
    for call in (gone.put(NAME, b""), gone.get(NAME), gone.delete(NAME), gone.sweep(0)):
        with pytest.raises(StoreError):
            asyncio.run(call)


def test_google_cloud_storage_signs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = tmp_path / "account.json"
    owner = {"client_email": "a@b.iam.gserviceaccount.com", "client_id": "1", "private_key_id": "1"}
    account.write_text(json.dumps({"type": "service_account", "private_key": pem, **owner}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    query = presigned("gs://images/made", f"https://storage.googleapis.com/images/made/{NAME}")
    assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"]
    assert query["X-Goog-Expires"][0] in ("3599", "3600")


def test_azure_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(32)).decode())
    query = presigned("az://images/made", f"https://account.blob.core.windows.net/images/made/{NAME}")
    assert (query["sp"], query["sr"]) == (["r"], ["b"])
    assert query["sig"]


def presigned(store: str, expected: str) -> dict[str, list[str]]:
    """The query of a URL, without any call of the provider."""
    url = asyncio.run(BucketStore(store, time.time).url(NAME, int(time.time()) + 3600))
    assert url.partition("?")[0] == expected
    return parse_qs(urlsplit(url).query)


def test_times_are_those_of_the_fleet_but_a_signature_is_of_this_host(bucket: BucketStore) -> None:
    behind = BucketStore("s3://images/made", lambda: EXPIRES - 5400)
    asyncio.run(behind.put(NAME, b"image"))
    kept, _ = fake_s3.objects[f"made/{NAME}"]
    assert kept["cache-control"] == "private, max-age=5400, immutable"
    query = parse_qs(urlsplit(asyncio.run(behind.url(NAME, int(time.time()) + 3600))).query)
    assert query["X-Amz-Expires"][0] in ("3599", "3600")  # a second may pass
