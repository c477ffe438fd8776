"""Servers on the demo model that keep their port across restarts, and the balancers of deploy/examples."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from tests.deploy.chart import REPOSITORY
from tests.server.process import ServerProcess

EXAMPLES = REPOSITORY / "deploy/examples"
DRAIN_SECONDS = 5  # the chart's default; longer than the health checks take to see the drain


def wait(condition: Callable[[], bool]) -> None:
    """Wait for up to five minutes, because the machine may be busy."""
    give_up = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)  # polls: another process sends no event when its port or readiness changes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Address(Protocol):
    """Where a server listens; `address` is its host and port."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...


class Server:
    """A server process that can be restarted on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the process and wait until it listens. It becomes ready later."""
        flags = ["--model", "models/demo", "--port", str(self.port), "--log-level", "warning"]
        flags += ["--drain-delay-seconds", str(DRAIN_SECONDS)]
        # On a busy machine the predicted times are long; the tests are not about admission.
        flags += ["--max-backlog-seconds", "3600", "--max-request-seconds", "3600"]
        self._process = ServerProcess(*flags, module="server", OMP_NUM_THREADS="1")

    def wait_ready(self) -> None:
        wait(lambda: self._process.http.get("/readyz").status_code == 200)

    def restart(self) -> int:
        """Drain the process, start a new one and wait until it is ready. Returns the exit code."""
        self._process.terminate()
        code = self._process.process.wait(60)
        self._process.close()
        self.start()
        self.wait_ready()
        return code

    def kill(self) -> None:
        self._process.process.kill()
        self._process.process.wait()

    def metrics(self) -> str:
        return self._process.http.get("/metrics").text

    def close(self) -> None:
        self._process.close()


@dataclass(frozen=True)
class Balancer:
    name: str
    url: str


@contextmanager
def balancer(name: str, servers: Sequence[Address], folder: Path, retries: bool = True) -> Iterator[Balancer]:
    """Run a balancer with the configuration of deploy/examples and the addresses of `servers`.

    `retries=False` turns off the retries of HAProxy.
    """
    port = free_port()
    file = folder / name
    text = (EXAMPLES / name).read_text()
    if not retries:
        assert "retries 3" in text
        text = text.replace("retries 3", "retries 0")
    file.write_text(_adapted(text, port, servers, folder))
    log = (folder / f"{name}.log").open("wb")
    with _terminated(subprocess.Popen(_command(name, file, folder), stdout=log, stderr=log)) as process:

        def listens() -> bool:
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait(listens)
        url = f"http://127.0.0.1:{port}"
        wait(lambda: httpx.get(f"{url}/v1/models").status_code == 200)
        yield Balancer(name if retries else f"{name} without retries", url)


@contextmanager
def _terminated(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Terminate the process on exit, also when its setup fails."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _adapted(text: str, port: int, servers: Sequence[Address], folder: Path) -> str:
    for number, server in enumerate(servers, start=1):
        text = text.replace(f"10.0.0.{number}:8000", server.address).replace(
            f"address: 10.0.0.{number}, port_value: 8000", f"address: 127.0.0.1, port_value: {server.port}"
        )
    text = text.replace("0.0.0.0:80", f"127.0.0.1:{port}")
    text = text.replace("address: 0.0.0.0, port_value: 80}", f"address: 127.0.0.1, port_value: {port}}}")
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{path}_temp_path {folder}/{path};" for path in paths)
    return text.replace("http {\n", f"http {{ {temporary}\n")


def _command(name: str, file: Path, folder: Path) -> list[str]:
    if name == "nginx.conf":
        directives = f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;"
        return ["nginx", "-c", str(file), "-p", str(folder), "-g", directives]
    if name == "haproxy.cfg":
        return ["haproxy", "-db", "-f", str(file)]
    envoy = str(Path(sys.executable).with_name("envoy"))
    base_id = str(os.getpid() % 30000)
    return [envoy, "-c", str(file), "--concurrency", "1", "-l", "warn", "--base-id", base_id]
