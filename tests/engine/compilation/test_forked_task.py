"""A task in a forked process: its result, its faults, and that nothing of it outlives the worker."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from engine.compilation.forked_task import ForkedTask

SECONDS = 60
# A worker whose task runs a program, as a compiler would.
WORKER = """
import os, subprocess, sys, time
from engine.compilation.forked_task import ForkedTask

def task():
    program = subprocess.Popen(["sleep", "3600"])
    with open(sys.argv[1], "w") as file:
        file.write(f"{os.getpid()} {program.pid}")
    program.wait()

task = ForkedTask(task)
print("started", flush=True)
sys.stdin.read()
"""


def end(task: ForkedTask) -> None:
    while not task.has_ended():
        assert wait([task.fileno()], SECONDS)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)  # polls: other processes send no event here


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_task_runs_in_a_process_of_the_lowest_priority_and_leaves_none(tmp_path: Path) -> None:
    facts = tmp_path / "facts"

    def run() -> None:
        facts.write_text(f"{os.getpid()} {os.nice(0)} {len(os.listdir('/proc/self/fd'))}")

    end(ForkedTask(run))
    pid, nice, descriptors = map(int, facts.read_text().split())
    assert pid != os.getpid()
    assert nice == 19
    assert descriptors == 6, "the standard streams, the report, the file and the folder"
    assert not Path(f"/proc/{pid}").exists()


def test_it_has_not_ended_before_its_end(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    task = ForkedTask(lambda: until(go_on.exists))
    assert not task.has_ended()
    go_on.touch()
    end(task)


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (lambda: int("x"), "ValueError: invalid literal for int.. with base 10: 'x'"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process exited with code -9"),
        (lambda: os._exit(3), "the process exited with code 3"),
    ],
)
def test_a_fault_is_reported(task: Callable[[], None], fault: str) -> None:
    forked = ForkedTask(task)
    with pytest.raises(RuntimeError, match=fault):
        end(forked)


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "exits"])
def test_neither_the_task_nor_its_programs_outlive_the_worker(tmp_path: Path, is_killed: bool) -> None:
    file = tmp_path / "pids"
    command = [sys.executable, "-c", WORKER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        until(lambda: file.exists() and len(file.read_text().split()) == 2)
        pids = list(map(int, file.read_text().split()))
        assert all(map(is_running, pids))
        if is_killed:
            worker.kill()
        assert worker.stdin
        worker.stdin.close()
    until(lambda: not any(map(is_running, pids)))
