"""The receivers that `--webhook-hosts` allows."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from pydantic import ValidationError
from pydantic_core import Url

from server.schemas.errors import ApiError, invalid
from server.settings.config_error import ConfigError
from server.webhooks.addresses import is_allowed

FLAG = "--webhook-hosts"
MAX_URL = 2048  # characters
SCHEMES = ("https", "http")


@dataclass(frozen=True, slots=True)
class Receiver:
    """An allowed scheme, host and port. A host `*.suffix` stands for every host below the suffix."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, entry: str, allow_private: bool) -> Self:
        """Parse `[http://]HOST[:PORT]`. Raises ConfigError."""
        try:
            url = Url(entry if "://" in entry else f"https://{entry}")
        except ValueError:
            raise ConfigError(f"{FLAG}: {entry} is not a host") from None
        host = url.host or ""
        if url.scheme not in SCHEMES or _extras(url) or url.path != "/" or "*" in host.removeprefix("*."):
            raise ConfigError(f"{FLAG}: {entry} is not [http://]HOST[:PORT] or [http://]*.SUFFIX[:PORT]")
        if _is_refused_address(host, allow_private):
            raise ConfigError(f"{FLAG}: {entry} is not a public address; see --webhook-allow-private")
        return cls(url.scheme, host, url.port)

    def matches(self, url: Url) -> bool:
        host = url.host or ""
        named = host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host
        return named and (url.scheme, url.port) == (self.scheme, self.port)


class AllowedHosts:
    """Raises ConfigError."""

    def __init__(self, entries: tuple[str, ...], allow_private: bool) -> None:
        self._receivers = [Receiver.parse(entry, allow_private) for entry in entries]

    def __bool__(self) -> bool:
        return bool(self._receivers)

    def check(self, text: str) -> str:
        """Return the URL of a webhook in its normal form. Raises ApiError 400."""
        if not self:
            raise _invalid(f"This server sends no webhooks: {FLAG} is not set.")
        url = _parsed(text)
        if not self._matches(url):
            raise _invalid(f"{url.scheme}://{url.host}:{url.port} is not a receiver that {FLAG} allows.")
        return str(url)

    def allows(self, checked: str) -> bool:
        """Whether a URL that was checked, maybe by another server, is allowed here."""
        return self._matches(Url(checked))

    def _matches(self, url: Url) -> bool:
        return any(receiver.matches(url) for receiver in self._receivers)


def host_of(url: str) -> str:
    return Url(url).host or ""


def _parsed(text: str) -> Url:
    if len(text) > MAX_URL:
        raise _invalid(f"The URL has {len(text)} characters; the limit is {MAX_URL}.")
    try:
        url = Url(text)
    except (ValidationError, ValueError):
        raise _invalid("Not a URL.") from None
    if url.scheme not in SCHEMES:
        raise _invalid("The URL must be an https URL.")
    if extras := _extras(url):
        raise _invalid(f"The URL must have no {extras}.")
    return url


def _extras(url: Url) -> str:
    """Names the first part of the URL that no webhook has; empty if there is none."""
    if url.username or url.password:
        return "user name or password"
    return "fragment" if url.fragment is not None else ""


def _is_refused_address(host: str, allow_private: bool) -> bool:
    try:
        return not is_allowed(ip_address(host.strip("[]")), allow_private)
    except ValueError:
        return False


def _invalid(message: str) -> ApiError:
    return invalid(message, "webhook")
