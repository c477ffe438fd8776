"""A server as a process of its own, and what a test asks of it."""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.server.forked_program import HANG, IS_MEASURED, REPOSITORY, Program, start_module

__all__ = ["HANG", "REPOSITORY", "ServerProcess", "small", "starting", "until"]
# One for all clients, since loading certificates takes time.
TLS = ssl.create_default_context()


class ServerProcess:
    """Listens on a free port once made; `log` is its stderr."""

    def __init__(
        self,
        *flags: str,
        module: str = "tests.server.fake_server",
        command: Sequence[str] = (),
        cwd: Path = REPOSITORY,
        **environment: str,
    ) -> None:
        """Runs `command`, else `module`, which is forked unless it is the server that users run."""
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        arguments, env = ["--port", "0", *flags], os.environ | environment
        self.process: Program
        if command or module == "server":
            program = [*(command or (sys.executable, "-m", module)), *arguments]
            self.process = subprocess.Popen(
                program, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        else:
            self.process = start_module(module, arguments, cwd=cwd, env=env, stderr=self._log)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the server did not start: {line}{self.log}")
        self.url = line.removeprefix("listening on ").strip()
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, timeout=HANG, verify=TLS)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def log_lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The JSON lines that have these fields."""
        lines = [json.loads(line) for line in self.log.split("\n") if line.startswith("{")]
        return [line for line in lines if fields.items() <= line.items()]

    def logged(self, **fields: Any) -> list[dict[str, Any]]:
        """The same, once there are any: a line is written just after the response."""
        until(lambda: bool(self.log_lines(**fields)))
        return self.log_lines(**fields)

    def create(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """POST /v1/images, a small picture of a cat unless `body` says else."""
        return self.http.post("/v1/images", json=small(**body), headers=headers)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.http.get("/_fake/state").json()
        return state

    def wait(self, **counts: int) -> None:
        """Until the engine's counts (running, finished, aborted) are these."""
        self.http.get("/_fake/wait", params=counts).raise_for_status()

    def release(self) -> None:
        self.http.post("/_fake/release").raise_for_status()

    def set(self, **attributes: Any) -> None:
        self.http.post("/_fake/set", json=attributes).raise_for_status()

    def metric(self, name: str) -> float:
        """The value of one sample, labels included in `name`."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def worker_pid(self) -> int:
        """Of the engine's process."""
        for pid in self.worker_pids():
            return pid
        raise LookupError("no worker")

    def worker_pids(self) -> Iterator[int]:
        """Of the engine's processes."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
                command = (status.parent / "cmdline").read_text()
            except OSError:
                continue
            if fields["PPid"] == str(self.process.pid) and "spawn_main" in command:
                yield int(fields["Pid"])

    def peak_bytes(self) -> int:
        """The most memory that the server's process has held since the last call."""
        folder = Path(f"/proc/{self.process.pid}")
        peak = int((folder / "status").read_text().partition("VmHWM:")[2].split()[0])
        (folder / "clear_refs").write_text("5")
        return peak << 10

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        return self.process.wait(HANG)

    def close(self) -> None:
        self.http.close()
        if IS_MEASURED:
            self._end_in_order()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()
        self._log.close()

    def _end_in_order(self) -> None:
        """Repeat SIGTERM, which cuts the drain short, so that the process writes its coverage and exits."""
        for _ in range(100):
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
                return


def until(condition: Callable[[], bool]) -> None:
    """For what no event tells: ask again and again, and fail in the end."""
    give_up = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def small(**body: Any) -> dict[str, Any]:
    prompt = {} if "prompt" in body or "json_prompt" in body else {"prompt": "a cat"}
    return {"size": "64x64", **prompt, **body}


@contextlib.contextmanager
def starting() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that end with the block."""
    started: list[ServerProcess] = []

    def start(*flags: str, **options: Any) -> ServerProcess:
        started.append(ServerProcess(*flags, **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.close()
