"""Signatures, verified by the library of Standard Webhooks."""

import base64
import time

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from server.settings.config_error import ConfigError
from server.webhooks.signature import Signer

OLD, NEW, OTHER = ("whsec_" + base64.b64encode(bytes([fill]) * 32).decode() for fill in (1, 2, 3))
BODY = '{"type": "job.completed", "data": {"metadata": "ü"}}'.encode()


def signed(*secrets: str) -> dict[str, str]:
    return Signer("--flag", SecretStr("\n".join(secrets))).headers("job-1", int(time.time()), BODY)


def test_the_library_verifies_a_signature() -> None:
    assert Webhook(NEW).verify(BODY, signed(NEW))["type"] == "job.completed"
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, signed(NEW))
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(BODY, signed(NEW) | {"webhook-id": "job-2"})
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(BODY + b" ", signed(NEW))


def test_a_signature_of_each_secret_is_sent() -> None:
    for secret in (OLD, NEW):
        Webhook(secret).verify(BODY, signed(OLD, NEW))


@pytest.mark.parametrize(
    "secret",
    [
        base64.b64encode(bytes(32)).decode(),
        "whsec_",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_not-base64!",
    ],
)
def test_an_invalid_secret_is_a_configuration_error_without_it(secret: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--flag: a secret is whsec_ and the base64 of 24 to 64 bytes"
    ) as caught:
        Signer("--flag", SecretStr(f"{NEW} {secret}"))
    assert len(secret) < 10 or secret not in str(caught.value)
