"""A server of the part of S3 that the store uses. It verifies every signature (AWS Signature Version 4).

Its only bucket is `images`. A request for a key that contains `broken` gets 403.
"""

import hashlib
import hmac
import re
import threading
import time
from calendar import timegm
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

KEY_ID, SECRET, REGION = "AKID", "hush", "eu-west-1"
KEPT = ("content-type", "content-disposition", "cache-control")
LISTED = (
    "<Contents><Key>{}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)

objects: dict[str, tuple[dict[str, str], bytes]] = {}


class FakeS3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_GET(self) -> None:
        self._answer(self._list if "list-type" in self._query else self._get)

    def do_POST(self) -> None:
        self._answer(self._delete)

    @property
    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/images/")

    def _answer(self, act: Any) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._is_signed() or "broken" in self._key:
            self._respond(403, b"<Error><Code>AccessDenied</Code></Error>")
        else:
            act()

    def _put(self) -> None:
        kept = {name: self.headers[name] for name in KEPT if name in self.headers}
        objects[self._key] = (kept, self._body)
        self._respond(200, ETag='"1"')

    def _get(self) -> None:
        if self._key not in objects:
            self._respond(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        headers, data = objects[self._key]
        self._respond(200, data, **headers, ETag='"1"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")

    def _list(self) -> None:
        listed = [
            LISTED.format(key, len(data))
            for key, (_, data) in sorted(objects.items())
            if key.startswith(self._query.get("prefix", ""))
        ]
        self._respond(200, f"<ListBucketResult>{''.join(listed)}</ListBucketResult>".encode())

    def _delete(self) -> None:
        keys = re.findall("<Key>(.*?)</Key>", self._body.decode())
        for key in keys:
            objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._respond(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass

    def _is_signed(self) -> bool:
        """By the header, or by the query of a presigned URL that has not expired."""
        query = self._query
        if "X-Amz-Signature" in query:
            signature = query.pop("X-Amz-Signature")
            started = timegm(time.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ"))
            if time.time() > started + int(query["X-Amz-Expires"]):
                return False
            scope, names = query["X-Amz-Credential"], query["X-Amz-SignedHeaders"]
            return signature == self._signature(query, query["X-Amz-Date"], scope, names, "UNSIGNED-PAYLOAD")
        found = re.findall(r"(\w+)=([^,\s]+)", self.headers["Authorization"])
        fields, digest = dict(found), self.headers["x-amz-content-sha256"]
        if digest not in ("UNSIGNED-PAYLOAD", hashlib.sha256(self._body).hexdigest()):
            return False
        date, names = self.headers["x-amz-date"], fields["SignedHeaders"]
        return fields["Signature"] == self._signature(query, date, fields["Credential"], names, digest)

    def _signature(self, query: dict[str, str], date: str, credential: str, names: str, digest: str) -> str:
        pairs = sorted((quote(name, "~"), quote(value, "~")) for name, value in query.items())
        request = "\n".join(
            (
                self.command,
                urlsplit(self.path).path,
                "&".join(f"{name}={value}" for name, value in pairs),
                *(f"{name}:{self.headers[name].strip()}" for name in names.split(";")),
                "",
                names,
                digest,
            )
        )
        scope = credential.removeprefix(KEY_ID + "/")
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = ("AWS4" + SECRET).encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.new(key, text.encode(), "sha256").hexdigest()


def start() -> ThreadingHTTPServer:
    """Serve from a thread on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeS3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
