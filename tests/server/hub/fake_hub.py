"""A Hugging Face Hub of one repository, whose weights can be held back."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
HELD = ".safetensors"
DOWN = "team/down"


class FakeHub(ThreadingHTTPServer):
    """Serves the files of `folder` as `repository`. Half of each weight file waits for `release`. About the
    repository DOWN it answers that it is out of service."""

    daemon_threads = True

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repository = folder, repository
        self.release = threading.Event()
        self.is_holding = threading.Event()
        self.served: list[str] = []  # paths of the files
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.release.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        path, hub = self.path.partition("?")[0], self.server
        commits = {**COMMITS, **{commit: commit for commit in COMMITS.values()}}
        for revision, commit in commits.items():
            if path == f"/api/models/{hub.repository}/revision/{revision}":
                return self._json(
                    {"id": hub.repository, "modelId": hub.repository, "sha": commit, "siblings": []}
                )
            if path == f"/api/models/{hub.repository}/tree/{revision}":
                return self._json([self._entry(file) for file in hub.folder.rglob("*") if file.is_file()])
            prefix = f"/{hub.repository}/resolve/{revision}/"
            if path.startswith(prefix) and (file := hub.folder / path.removeprefix(prefix)).is_file():
                return self._file(file, commit)
        if DOWN in path:
            return self._send(503, b"", {})
        return self._send(
            404, b"", {"X-Error-Code": "RevisionNotFound" if hub.repository in path else "RepoNotFound"}
        )

    def _entry(self, file: Path) -> dict[str, Any]:
        return {
            "type": "file",
            "path": str(file.relative_to(self.server.folder)),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }

    def _file(self, file: Path, commit: str) -> None:
        self.server.served.append(self.path)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        self._send(200, content, headers, is_held=file.name.endswith(HELD))

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], is_held: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2 if is_held else len(body)
        self.wfile.write(body[:half])
        if is_held:
            self.server.is_holding.set()
            self.server.release.wait()
        self.wfile.write(body[half:])
