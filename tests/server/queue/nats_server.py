"""A real nats-server with JetStream as a process of its own."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.server.process import until

PROGRAM = Path(sys.executable).parent / "nats-server"


class NatsServer:
    """Listens on loopback once made; keeps its port and its data over `kill` and `start`."""

    def __init__(self, folder: Path, config: str = "") -> None:
        """`config` is in the format of nats-server's file; the default has JetStream, without credentials."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.folder = folder
        self._log = folder / "nats.log"
        self._config = folder / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nlog_file: "{self._log}"\n'
            + (config or f'jetstream {{ store_dir: "{folder}", max_mem: 256M, max_file: 1G }}\n')
        )
        self.start()

    def start(self) -> None:
        """Return once it accepts connections."""
        self._log.unlink(missing_ok=True)
        self.process = subprocess.Popen([PROGRAM, "--config", self._config], stderr=subprocess.DEVNULL)
        until(lambda: "Server is ready" in self.log or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
