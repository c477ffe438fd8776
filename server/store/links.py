"""Signed, expiring paths of the files that this server serves: the URL is the permission."""

import hashlib
import hmac
import secrets
from collections.abc import Callable

from server.schemas.errors import ApiError

PREFIX = "/v1/files/"


class Links:
    """HMAC-SHA256 over the name and the time, with a random secret if there is none."""

    def __init__(self, secret: bytes | None, now: Callable[[], float]) -> None:
        """`now` is the clock of all servers, in Unix seconds."""
        self.now = now
        self._secret = secret or secrets.token_bytes(32)
        self.end_with_process = secret is None

    def use(self, secret: bytes) -> None:
        """Sign with a secret that outlives this process."""
        self._secret, self.end_with_process = secret, False

    def path(self, name: str, expires: int) -> str:
        """Works until `expires`, in Unix seconds."""
        return f"{PREFIX}{name}?expires={expires}&signature={self._signature(name, str(expires))}"

    def check(self, name: str, expires: str, signature: str) -> None:
        """Raises ApiError 403, which tells nothing about the file."""
        expected = self._signature(name, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            message = "The signature is not valid for this URL and the current secret of the server."
            raise ApiError(403, "invalid_signature", message, param="signature")
        if int(expires) <= self.now():
            raise ApiError(403, "url_expired", "This URL has expired.", param="expires")

    def _signature(self, name: str, expires: str) -> str:
        return hmac.new(self._secret, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()
