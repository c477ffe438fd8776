"""The environment of the process: variables that libraries read while torch is imported, CPUs and memory.

Torch-free.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_VARIABLES = {
    # Divide the rows of the weights among the threads. By default MKL divides the tokens; if there are few of
    # them, every thread reads all weights.
    "MKL_NUM_STRIPES": "2",
}
# Threads sleep at barriers, GNU's after about 20 us of spinning. By default they spin for long, and two
# processes that share cores are up to a hundred times slower. See docs/performance.md, "Threads at barriers".
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")
# Lines of memory.stat about cached files, which the kernel drops when a group needs its memory.
_CACHED_V1, _CACHED_V2 = ("total_inactive_file ", "total_active_file "), ("inactive_file ", "active_file ")


def set_up_environment() -> None:
    """Set the variables that are not set yet. Call this before torch is imported."""
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else _WAITING
    for name, value in (_VARIABLES | waiting).items():
        os.environ.setdefault(name, value)


def available_cpus() -> int:
    """CPUs that the process may use: its affinity or the quota of its cgroups, rounded up; at least 1."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([affine, *_quotas()])))


def host_memory() -> int:
    """Bytes that the process may use: the memory of the machine, or what its cgroups may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for _, _, limit in _memory_limits())])


def free_memory() -> int:
    """Bytes that are left of `host_memory`; cached files count as free."""
    in_groups = (limit - _used(group, is_v1) for group, is_v1, limit in _memory_limits())
    return max(0, min([_available(), *in_groups]))


def _available() -> int:
    """Of the machine; 0 if it is unknown."""
    with contextlib.suppress(OSError):
        for line in MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 0


def _memory_limits() -> Iterator[tuple[Path, bool, int]]:
    """Each cgroup of the process and each group above it that has a limit, with this in bytes; and whether it
    is of version 1."""
    for group, is_v1 in _groups("memory"):
        with contextlib.suppress(OSError, ValueError):  # no such group, "max"
            limit = (group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).read_text()
            yield group, is_v1, int(limit)


def _used(group: Path, is_v1: bool) -> int:
    """Bytes that the processes of a group use, without cached files; 0 if they are unknown."""
    cached = _CACHED_V1 if is_v1 else _CACHED_V2
    with contextlib.suppress(OSError, ValueError):
        usage = (group / ("memory.usage_in_bytes" if is_v1 else "memory.current")).read_text()
        stat = (group / "memory.stat").read_text().splitlines()
        return int(usage) - sum(int(line.split()[1]) for line in stat if line.startswith(cached))
    return 0


def _quotas() -> Iterator[float]:
    """CPUs of each cgroup of the process and of the groups above it; infinite without a quota."""
    for group, is_v1 in _groups("cpu"):
        yield _quota(group, ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_v1 else ("cpu.max",))


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The cgroups of the process with this controller and those above them; and whether each is of version
    1."""
    try:
        memberships = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        is_v1 = bool(controllers)
        if is_v1 and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if is_v1 else CGROUPS
        for group in (Path(path), *Path(path).parents):
            yield root / group.relative_to("/"), is_v1


def _quota(group: Path, names: tuple[str, ...]) -> float:
    try:
        quota, period = " ".join((group / name).read_text() for name in names).split()
        cpus = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, "max"
        return math.inf
    return cpus if cpus > 0 else math.inf  # -1: none
