"""Content credentials, read back by the reader of the c2pa library."""

import base64
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image
from pydantic import SecretStr

from server.generation import metadata
from server.integrations import Integrations
from server.provenance.credentials import Credentials
from server.provenance.trial import write_pair
from server.settings.config_error import ConfigError
from server.settings.settings import Settings
from server.upstream.client import UpstreamClients
from tests.server import sse
from tests.server.access.test_api_keys import bearer, write_keys
from tests.server.adapters.files import write_adapter
from tests.server.forked_program import run_module
from tests.server.process import ServerProcess
from tests.server.routes.test_errors import check

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("credentials"))


@pytest.fixture(scope="module")
def server(pair: tuple[Path, Path]) -> Iterator[ServerProcess]:
    certificate, key = pair
    keys = certificate.with_name("keys.json")
    web = {"name": "web", "key": "web"}
    write_keys(keys, web, {"name": "plain", "key": "plain", "may_disable": ["provenance"]})
    process = ServerProcess(
        *("--c2pa-certificate-file", str(certificate), "--c2pa-key-file", str(key)),
        *("--api-keys-file", str(keys), "--embed-prompt"),
        *("--adapters", str(write_adapter(certificate.with_name("adapters") / "style.safetensors").parent)),
    )
    process.http.headers["Authorization"] = "Bearer web"
    yield process
    assert "PRIVATE KEY" not in process.log
    process.close()


def credentials(data: bytes, media_type: str) -> dict[str, Any]:
    """The active manifest of a file with valid credentials from an untrusted signer."""
    with c2pa.Reader(media_type, io.BytesIO(data)) as reader:
        assert reader.get_validation_state() == "Valid"
        store = json.loads(reader.json())
    assert [status["code"] for status in store["validation_status"]] == ["signingCredential.untrusted"]
    manifest: dict[str, Any] = store["manifests"][store["active_manifest"]]
    return manifest


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_every_image_is_signed(server: ServerProcess, output_format: str) -> None:
    response = server.create(prompt="a wombat", n=2, seed=5, output_format=output_format)
    for seed, image in enumerate(response.json()["data"], start=5):
        data = base64.b64decode(image["b64_json"])
        manifest = credentials(data, f"image/{output_format}")
        assert manifest["claim_generator_info"][0]["name"] == "ideoserve"
        assert manifest["signature_info"]["common_name"] == "ideoserve trial"
        (actions,) = manifest["assertions"]
        (action,) = actions["data"]["actions"]
        assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", TRAINED)
        assert action["softwareAgent"]["name"] == "ideoserve fake-model"
        # The metadata is kept, and the credentials do not contain the prompt.
        facts = metadata.read(Image.open(io.BytesIO(data)))
        assert facts is not None
        assert (facts["seed"], facts["prompt"]) == (seed, "a wombat")
        assert "wombat" not in json.dumps(manifest)


def test_the_credentials_name_the_adapters(server: ServerProcess) -> None:
    response = server.create({"Accept": "image/png"}, model="fake-model:style")
    (actions,) = credentials(response.content, "image/png")["assertions"]
    (action,) = actions["data"]["actions"]
    (adapter,) = server.http.get("/v1/adapters").json()["data"]
    named = {"name": "style", "digest": adapter["digest"], "scale": 1.0}
    assert action["parameters"] == {"ideoserve.adapters": [named]}


def test_a_changed_pixel_invalidates_the_signature(server: ServerProcess) -> None:
    data = bytearray(server.create({"Accept": "image/jpeg"}).content)
    data[-10] ^= 1
    with c2pa.Reader("image/jpeg", io.BytesIO(bytes(data))) as reader:
        assert reader.get_validation_state() == "Invalid"


def test_streamed_images_are_signed(server: ServerProcess) -> None:
    response = server.create(stream=True, partial_images=1, output_format="webp")
    preview, completed = sse.named(response.text.split("\n"))
    for event in (preview, completed):
        credentials(base64.b64decode(event.data["b64_json"]), f"image/{event.data['output_format']}")


def test_opting_out_requires_permission(server: ServerProcess) -> None:
    check(server.create(provenance="off"), 403, "disabling_not_allowed", "provenance")
    response = server.create(bearer("plain") | {"Accept": "image/png"}, provenance="off")
    assert c2pa.Reader.try_create("image/png", io.BytesIO(response.content)) is None
    assert metadata.read(Image.open(io.BytesIO(response.content)))


def test_the_trial_command_does_not_overwrite(tmp_path: Path) -> None:
    command = ("server.provenance.trial", str(tmp_path / "new"))
    run = run_module(*command)
    certificate, key = tmp_path / "new/certificate.pem", tmp_path / "new/key.pem"
    assert run.stdout == f"--c2pa-certificate-file {certificate} --c2pa-key-file {key}\n"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    Credentials(certificate, SecretStr(key.read_text()), "model")
    again = run_module(*command)
    assert (again.returncode, again.stdout, len(again.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"c2pa_key": "x"}, "--c2pa-certificate-file or IDEOSERVE_C2PA_CERTIFICATE_FILE is required"),
        ({"c2pa_certificate_file": "x"}, "--c2pa-key-file or IDEOSERVE_C2PA_KEY is required"),
    ],
)
def test_incomplete_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        Integrations(Settings(model="fake", **given), UpstreamClients(lambda *_: None), "fake")


def pem(key: Any) -> SecretStr:
    return SecretStr(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def test_a_traditional_key_format(pair: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pair[1].read_bytes(), None)
    old = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert b"BEGIN EC PRIVATE KEY" in old
    Credentials(pair[0], SecretStr(old.decode()), "model")


@pytest.mark.parametrize("bad", ["no key", "another key", "another kind", "no certificate", "no file"])
def test_a_pair_that_cannot_sign_ends_the_start(pair: tuple[Path, Path], tmp_path: Path, bad: str) -> None:
    certificate, key = pair[0], SecretStr(pair[1].read_text())
    if bad == "no key":
        key = SecretStr("SECRET")
    elif bad == "another key":
        key = pem(ec.generate_private_key(ec.SECP256R1()))
    elif bad == "another kind":
        key = pem(ed25519.Ed25519PrivateKey.generate())
    elif bad == "no certificate":
        certificate = tmp_path / "junk"
        certificate.write_text("junk")
    else:
        certificate = tmp_path / "nothing"
    with pytest.raises(ConfigError) as failure:
        Credentials(certificate, key, "model")
    assert str(failure.value).startswith("--c2pa-")
    assert "SECRET" not in str(failure.value)
    assert str(tmp_path) not in str(failure.value)
