"""Programs forked from a process that has imported what they need, which saves a second each."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, ForkServerProcess

REPOSITORY = Path(__file__).parents[2]
# Seconds after which a test gives up; nothing takes so long, even where many share a processor.
HANG = 180
# `make coverage` measures programs that Python starts itself; one that is killed writes no data.
IS_MEASURED = "COVERAGE_PROCESS_CONFIG" in os.environ
IMPORTED = ["server.__main__", "tests.server.fake_server"]


class ForkedProgram:
    """`python -m MODULE ARGUMENTS` with an empty standard input, and what the tests use of Popen."""

    def __init__(
        self, module: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stderr: IO[str]
    ) -> None:
        reader, writer = os.pipe()
        out = Connection(writer, readable=False)
        err = Connection(os.dup(stderr.fileno()), readable=False)
        job = (module, list(arguments), str(cwd), dict(env), out, err)
        self._process: ForkServerProcess = _context().Process(target=_run, args=job)
        self._process.start()
        process._children.discard(self._process)  # type: ignore[attr-defined]  # it may outlive the tests
        for stream in (out, err):
            stream.close()
        self.stdout: IO[str] = os.fdopen(reader)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Program = subprocess.Popen[str] | ForkedProgram


def start_module(
    module: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stderr: IO[str]
) -> Program:
    if not IS_MEASURED:
        return ForkedProgram(module, arguments, cwd=cwd, env=env, stderr=stderr)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)


def run_module(
    module: str, *arguments: str, env: Mapping[str, str] = os.environ, cwd: Path = REPOSITORY
) -> "subprocess.CompletedProcess[str]":
    """Its exit code and output, once it has ended."""
    with tempfile.NamedTemporaryFile("r+") as stderr:
        program = start_module(module, arguments, cwd=cwd, env=env, stderr=stderr)
        assert program.stdout
        with program.stdout:
            written = program.stdout.read()
        return subprocess.CompletedProcess(
            [module, *arguments], program.wait(HANG), written, Path(stderr.name).read_text()
        )


def _context() -> "ForkServerContext":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _run(
    module: str, arguments: list[str], cwd: str, env: dict[str, str], out: Connection, err: Connection
) -> None:
    """Be the program: nothing of the process that started it is left but what was imported."""
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # it tracks its own shared memory
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, number in ((out, 1), (err, 2)):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.argv = [module, *arguments]
    for name in (module, f"{module}.__main__"):  # one of them runs now
        sys.modules.pop(name, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
