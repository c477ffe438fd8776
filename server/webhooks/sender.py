"""Sends a webhook once."""

import time

from server.upstream.client import Upstream, UpstreamClients
from server.webhooks.signature import Signer

UPSTREAM = "job_webhook"  # its name in metrics
SECONDS = 10.0
HEADERS = {
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "ideoserve-webhooks",
}


class Sender:
    """Signs messages and sends them. `seconds` is the time limit of an attempt."""

    def __init__(self, signer: Signer, upstreams: UpstreamClients, seconds: float = SECONDS) -> None:
        self._signer = signer
        self._upstreams = upstreams
        self._seconds = seconds

    async def send(self, url: str, message_id: str, body: bytes) -> None:
        """Raises UpstreamError unless the receiver responds with a 2xx."""
        signature = self._signer.headers(message_id, int(time.time()), body)
        await Upstream(UPSTREAM, url, self._seconds, self._upstreams).notify(HEADERS | signature, body)
