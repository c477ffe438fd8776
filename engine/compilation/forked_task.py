"""A task in a forked process, which shares the memory of the loaded model. Linux only; torch-free."""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_LOWEST_PRIORITY = 19
# Of a fault that is reported.
_MAX_BYTES = 1000
_DONE = b"done"


class ForkedTask:
    """Runs `task` in a child process of the lowest priority. Ends with this process, its own children too.

    The child has this thread alone: `task` must not start parallel work.
    """

    def __init__(self, task: Callable[[], None]) -> None:
        """Raises OSError if the process cannot be started."""
        self._reader, writer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _run(task, writer, parent)
        os.close(writer)
        os.set_blocking(self._reader, False)
        self._report = b""

    def fileno(self) -> int:
        """Readable once there is news for `has_ended`."""
        return self._reader

    def has_ended(self) -> bool:
        """Whether the task is done. Raises RuntimeError with the fault if it has failed."""
        try:
            while received := os.read(self._reader, _MAX_BYTES):
                self._report += received
        except BlockingIOError:
            return False
        os.close(self._reader)
        _, status = os.waitpid(self._pid, 0)
        if self._report != _DONE:
            code = os.waitstatus_to_exitcode(status)
            fault = self._report.decode(errors="replace")
            raise RuntimeError(fault or f"the process exited with code {code}")
        return True


def _run(task: Callable[[], None], writer: int, parent: int) -> NoReturn:
    """In the child."""
    try:
        _isolate(writer, parent)
        task()
        os.write(writer, _DONE)
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode()[:_MAX_BYTES])
    finally:
        os._exit(0)


def _isolate(writer: int, parent: int) -> None:
    os.closerange(3, writer)  # the pipe to the client, which must close when the worker dies
    os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.nice(_LOWEST_PRIORITY)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # if memory runs out, end this process and not the worker
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))  # compilers too
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)
