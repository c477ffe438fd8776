"""Devices, and the set-up of a CPU: threads, freed memory and environment."""

import subprocess
import sys

import pytest
import torch

from engine.runner.device import choose_device, set_up_cpu


def test_the_requested_device_is_used() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


FAULTS = """
import resource, sys, torch
from engine.runner.device import set_up_cpu
if sys.argv[1] == "kept":
    set_up_cpu(workers=1)
def allocate():
    torch.ones(1 << 24), torch.ones(1 << 24)
for _ in range(10):
    allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone is told")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert faults("kept") < faults("as it is") / 10


RESIDENT = """
import os, torch
from engine.runner.device import Device, set_up_cpu
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
set_up_cpu(workers=1)
before = resident()
blocks = [torch.ones(1 << 18) for _ in range(100)]
last = blocks.pop()
del blocks
kept = resident() - before
Device("cpu").release_memory()
print(kept >> 20, resident() - before >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone is told")
def test_kept_memory_can_be_released() -> None:
    run = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 90
    assert left < 10


SEEN_BY_TORCH = """
import multiprocessing, os, sys
from engine.worker import main as worker
def load(*arguments):
    names = ("MKL_NUM_STRIPES", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    print(*map(os.environ.get, names), "torch" in sys.modules)
    raise RuntimeError("enough")
worker._load = load
worker.main(multiprocessing.Pipe()[0], None, None, None)
"""


def seen_by_torch() -> str:
    command = [sys.executable, "-c", SEEN_BY_TORCH]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_worker_sets_up_its_environment_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MKL_NUM_STRIPES", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name)
    assert seen_by_torch() == "2 passive 1000 False\n"


def test_the_operators_wait_policy_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert seen_by_torch() == "2 active None False\n"


@pytest.mark.parametrize(("workers", "threads"), [(1, 3), (2, 1), (8, 1)])
def test_workers_share_the_cpus_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, workers: int, threads: int
) -> None:
    chosen: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("engine.runner.device.available_cpus", lambda: 3)
    monkeypatch.setattr("engine.runner.device._glibc", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    set_up_cpu(workers)
    assert chosen == [threads]
