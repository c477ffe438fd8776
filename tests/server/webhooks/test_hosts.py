"""`--webhook-hosts`, and the URLs that it allows."""

import pytest

from server.schemas.errors import ApiError
from server.settings.config_error import ConfigError
from server.webhooks.hosts import AllowedHosts

ALLOWED = AllowedHosts(
    (
        "hooks.example.com",
        "*.example.org",
        "http://inside.example.net",
        "other.example.com:8443",
        "93.184.216.34",
        "xn--bcher-kva.example",
    ),
    allow_private=False,
)


@pytest.mark.parametrize(
    ("url", "sent_to"),
    [
        ("https://hooks.example.com/x?y=1", "https://hooks.example.com/x?y=1"),
        ("HTTPS://Hooks.Example.COM:443", "https://hooks.example.com/"),
        ("https://a.b.example.org/", "https://a.b.example.org/"),
        ("http://inside.example.net/", "http://inside.example.net/"),
        ("https://other.example.com:8443/x", "https://other.example.com:8443/x"),
        ("https://93.184.216.34/", "https://93.184.216.34/"),
        ("https://0x5db8d822/", "https://93.184.216.34/"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
    ],
)
def test_allowed_urls_are_returned_in_their_normal_form(url: str, sent_to: str) -> None:
    assert ALLOWED.check(url) == sent_to


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hooks.example.com/", "http://hooks.example.com:80 is not a receiver that --webhook-hosts"),
        ("https://inside.example.net/", "not a receiver"),
        ("https://example.org/", "not a receiver"),
        ("https://evilexample.org/", "not a receiver"),
        ("https://hooks.example.com:8443/", "not a receiver"),
        ("https://hooks.example.com:0/", "not a receiver"),
        ("https://hooks.example.com./", "not a receiver"),
        ("https://a.example.org./", "not a receiver"),
        ("https://hooks.example.com.evil.net/", "not a receiver"),
        ("https://evil.net\\@hooks.example.com/", "not a receiver"),
        ("https://evil.net/@hooks.example.com/", "not a receiver"),
        ("https://127.0.0.1/", "not a receiver"),
        ("https://2130706433/", "https://127.0.0.1:443 is not a receiver"),
        ("https://0177.0.0.1/", "https://127.0.0.1:443 is not a receiver"),
        ("https://[::ffff:127.0.0.1]/", "not a receiver"),
        ("https://user@hooks.example.com/", "no user name or password"),
        ("https://user:word@hooks.example.com/", "no user name or password"),
        ("https://hooks.example.com/#part", "no fragment"),
        ("ftp://hooks.example.com/", "must be an https URL"),
        ("file:///etc/passwd", "must be an https URL"),
        ("/relative", "Not a URL"),
        ("https://", "Not a URL"),
        ("https://hooks.example.com:99999/", "Not a URL"),
        ("https://1.2.3.4.5/", "Not a URL"),
        ("https://hooks.example.com/" + "a" * 2048, "the limit is 2048"),
    ],
)
def test_other_urls_are_refused(url: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        ALLOWED.check(url)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", "webhook")
    assert said in caught.value.message


def test_without_hosts_every_webhook_is_refused() -> None:
    with pytest.raises(ApiError, match="--webhook-hosts is not set") as caught:
        AllowedHosts((), allow_private=True).check("https://hooks.example.com/")
    assert caught.value.param == "webhook"


@pytest.mark.parametrize(
    "entry",
    ["*", "a.*.com", "ftp://a.com", "https://a.com/path", "u@a.com", "a.com:x", "a b", "https://", "*.*.com"],
)
def test_an_invalid_entry_is_a_configuration_error(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"--webhook-hosts: "):
        AllowedHosts(("fine.example.com", entry), allow_private=False)


def test_a_private_address_needs_its_flag() -> None:
    with pytest.raises(
        ConfigError, match=r"10\.0\.0\.1 is not a public address; see --webhook-allow-private"
    ):
        AllowedHosts(("10.0.0.1",), allow_private=False)
    assert AllowedHosts(("http://[::1]:80",), True).check("http://[::1]/") == "http://[::1]/"
    with pytest.raises(ConfigError, match=r"169\.254"):
        AllowedHosts(("169.254.169.254",), allow_private=True)
