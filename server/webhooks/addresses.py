"""The network addresses that webhooks may be sent to."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from server.upstream.client import UpstreamError

Address = IPv4Address | IPv6Address
# Host and port to addresses; blocks. Raises OSError.
Lookup = Callable[[str, int], list[str]]

GLOBAL_UNICAST = ip_network("2000::/3")
NAT64 = ip_network("64:ff9b::/96")
PRIVATE = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "fc00::/7",
            "::1/128",
        ),
    )
)
# Special-purpose networks that `ipaddress` counts as global, in some versions of Python.
SPECIAL = (ip_network("192.0.0.0/24"), ip_network("192.88.99.0/24"))
# Metadata services of clouds outside link-local networks: Azure, Alibaba, AWS, Google.
METADATA = frozenset(map(ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))
LOOKUP_THREADS = 16


def is_public(address: Address) -> bool:
    """Whether the address, or the IPv4 address that it embeds, is unicast on the public internet."""
    address = _embedded(address)
    if address in METADATA or any(address in network for network in SPECIAL):
        return False
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def is_private(address: Address) -> bool:
    """Whether the address is in a private network or loopback, and not a metadata service."""
    address = _embedded(address)
    return address not in METADATA and any(address in network for network in PRIVATE)


def is_allowed(address: Address, allow_private: bool) -> bool:
    return is_public(address) or (allow_private and is_private(address))


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped, 6to4 or NAT64 address; any other address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def look_up(host: str, port: int) -> list[str]:
    """Addresses of the host by the resolver of the system. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Resolves the host of a webhook once per attempt. Refuses it if any of its addresses is not allowed."""

    def __init__(self, allow_private: bool, lookup: Lookup = look_up) -> None:
        self._allow_private = allow_private
        self._lookup = lookup
        # Not the threads of the event loop, which other work needs while a name server does not respond.
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="webhook-lookup")

    async def resolve(self, host: str, port: int) -> list[str]:
        """Raises UpstreamError."""
        found = await self._look_up(host, port)
        if not found:
            raise UpstreamError("unresolved", "its name has no address")
        if not all(is_allowed(ip_address(each), self._allow_private) for each in found):
            raise UpstreamError("forbidden", "its name has an address that is not allowed")
        return found

    async def _look_up(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, UnicodeError):
            return await loop.run_in_executor(self._threads, self._lookup, host, port)
        return []

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
